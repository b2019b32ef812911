"""The loop that a pool worker runs: adapters on a frozen base, packed, from a queue of jobs.

`train_adapters(settings, run, queue)` takes jobs until there are no more. It needs no Ray: from a `ListQueue` it trains
a plain list of jobs in a plain process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainables.arc import Example, Task, load_tasks, training_examples
from trainables.atomic_lora.bases import is_canvas, is_causal_lm
from trainables.atomic_lora.canvas import load_canvas
from trainables.atomic_lora.canvas_workload import CanvasWorkload
from trainables.atomic_lora.config import choose_slots
from trainables.atomic_lora.model import load_champion
from trainables.atomic_lora.workload import ArcWorkload, ChampionWorkload
from trainables.common.context import Run
from trainables.common.folder import Folder
from trainables.common.jobs import JobQueue
from trainables.common.precision import has_fast_bf16
from trainables.pack.engine import PackEngine
from trainables.pack.probe import probe_slots

# adapters evaluated at once, at least: a decoding step costs less per row the more rows share it
EVALUATION_SLOTS = 16


def train_adapters(settings: Mapping[str, Any], run: Run, queue: JobQueue) -> PackEngine[Example]:
    """Train the queue's jobs, packed, until there are no more.

    Args:
        settings: ``base``, ``data``, ``tasks`` (ids, or None for all), ``folder`` (the run's), ``slots`` (a number or
            ``auto``), ``rank`` and ``batch_size`` (the largest of any job), ``target_modules`` (every layer that any
            job adapts).
        run: Where it runs.
        queue: Jobs in, reports out.

    Returns:
        The engine, for its counts.

    Raises:
        InputError: If base, data or layers are not what the settings say.
    """
    chosen = load_tasks(settings["data"], settings["tasks"])
    folder = Folder(settings["folder"])
    workload = load_workload(settings, chosen, folder, run.device)
    slots = choose_slots(settings["slots"], run.device)
    if settings["slots"] == "auto" and workload.device.type == "cuda":
        largest = max(chosen.values(), key=lambda task: task.tokens)
        rows = training_examples(largest, settings["batch_size"], 0, 1, largest.train)
        slots = probe_slots(workload.pack, workload, rows, settings["rank"], most=slots)
    engine: PackEngine[Example] = PackEngine(
        workload.pack,
        workload,
        slots,
        settings["rank"],
        folder,
        f"base {workload.fingerprint}",
        evaluation_slots=max(slots, EVALUATION_SLOTS),
        # as autocast would round them at every token
        evaluation_dtype=torch.bfloat16 if workload.bf16 else torch.float32,
        cost=workload.cost,
        component=workload.component,
    )
    engine.run(queue)
    return engine


def load_workload(settings: Mapping[str, Any], tasks: Mapping[str, Task], folder: Folder, device: str) -> ArcWorkload:
    """Load the base that ``settings["base"]`` names (see `trainables.atomic_lora.bases`) and wrap its layers."""
    base, bf16 = settings["base"], has_fast_bf16(device)
    if is_causal_lm(base):
        # brings transformers, which takes a while to import
        from trainables.atomic_lora import causal_lm

        loaded = causal_lm.load_causal_lm(base, device)
        return causal_lm.CausalLMWorkload(loaded, base, tasks, folder, settings["target_modules"], bf16)
    if is_canvas(base):
        return CanvasWorkload(load_canvas(base, device), base, tasks, folder, settings["target_modules"], bf16)
    return ChampionWorkload(load_champion(base, device), base, tasks, folder, settings["target_modules"], bf16)
