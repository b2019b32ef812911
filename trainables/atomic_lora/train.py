"""The loop that a pool worker runs: adapters on a frozen base, packed, from a queue of jobs.

`train_adapters(settings, run, queue)` takes jobs until there are no more. It needs no Ray: from a `ListQueue` it trains
a plain list of jobs in a plain process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from trainables.arc import Example, Task, load_tasks, training_examples
from trainables.atomic_lora.bases import is_canvas, is_causal_lm
from trainables.atomic_lora.canvas import load_canvas
from trainables.atomic_lora.canvas_workload import CanvasWorkload
from trainables.atomic_lora.config import TextConfig, choose_slots
from trainables.atomic_lora.model import load_champion
from trainables.atomic_lora.workload import ArcWorkload, ChampionWorkload, LoRAWorkload
from trainables.common.context import Run
from trainables.common.folder import Folder
from trainables.common.jobs import JobQueue
from trainables.common.precision import has_fast_bf16
from trainables.pack.engine import PackEngine
from trainables.pack.probe import probe_slots
from trainables.texts import find_tasks, is_text

E = TypeVar("E")

# adapters evaluated at once, at least: a decoding step costs less per row the more rows share it
EVALUATION_SLOTS = 16


def train_adapters(settings: Mapping[str, Any], run: Run, queue: JobQueue) -> PackEngine[Any]:
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
    if is_text(settings["data"]):
        return _train_texts(settings, run, queue)
    chosen = load_tasks(settings["data"], settings["tasks"])
    workload = load_workload(settings, chosen, Folder(settings["folder"]), run.device)

    def largest() -> Sequence[Example]:
        task = max(chosen.values(), key=lambda task: task.tokens)
        return training_examples(task, settings["batch_size"], 0, 1, task.train)

    return _train(settings, workload, f"base {workload.fingerprint}", largest, queue)


def _train_texts(settings: Mapping[str, Any], run: Run, queue: JobQueue) -> PackEngine[Any]:
    # brings transformers, which takes a while to import
    from trainables.atomic_lora.text_workload import TextWorkload, load_text_base

    base, files = settings["base"], find_tasks(settings["data"])
    chosen = {task_id: files[task_id] for task_id in settings["tasks"] or files}
    workload = TextWorkload(
        load_text_base(base, run.device), base, chosen, Folder(settings["folder"]), settings["target_modules"],
        has_fast_bf16(run.device),
    )  # fmt: skip

    def largest() -> Sequence[Any]:
        task_id = max(chosen, key=lambda task_id: chosen[task_id].size)
        rows = workload.tokens(task_id, TextConfig()).train
        return sorted(rows, key=lambda row: -len(row.ids))[: settings["batch_size"]]

    return _train(settings, workload, f"base {workload.fingerprint}", largest, queue)


def _train(
    settings: Mapping[str, Any], workload: LoRAWorkload[E], signature: str, largest: Callable[[], Sequence[E]],
    queue: JobQueue,
) -> PackEngine[E]:  # fmt: skip
    """Train the queue's jobs; ``largest`` gives a step's rows of the largest job, by which a GPU's slots are found."""
    slots = choose_slots(settings["slots"], str(workload.device), is_canvas(settings["base"]))
    if settings["slots"] == "auto" and workload.device.type == "cuda":
        slots = probe_slots(workload.pack, workload, largest(), settings["rank"], most=slots)
    engine: PackEngine[E] = PackEngine(
        workload.pack,
        workload,
        slots,
        settings["rank"],
        workload.folder,
        signature,
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
