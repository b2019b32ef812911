"""Adapter training: what a job means for the pack engine, and the loop that a pool worker runs.

`train_adapters(settings, run, queue)` takes jobs until there are no more. It needs no Ray: from a `ListQueue` it trains
a plain list of jobs in a plain process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainables.arc import (
    Example,
    Pair,
    Task,
    fingerprint,
    load_tasks,
    test_examples,
    training_examples,
    validation_examples,
)
from trainables.atomic_lora.config import AdapterConfig
from trainables.atomic_lora.data import collate, example_tokens, padded_lengths
from trainables.atomic_lora.decoding import generate, grid_metrics
from trainables.atomic_lora.evaluation import mean_metrics
from trainables.atomic_lora.loss import cell_hits, row_losses
from trainables.atomic_lora.model import Base, load_champion
from trainables.atomic_lora.pretrain import has_fast_bf16
from trainables.context import Run
from trainables.folder import Folder
from trainables.jobs import Job, JobQueue
from trainables.pack.bank import AdapterPack
from trainables.pack.batching import BatchCost
from trainables.pack.checkpoint import Factors, save_peft
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Losses

# adapters in training at once where nobody says otherwise
CPU_SLOTS, CUDA_SLOTS = 32, 64
# adapters evaluated at once, at least: a decoding step costs less per row the more rows share it
EVALUATION_SLOTS = 32
# a CPU is busy with a few thousand tokens; a GPU wants everything at once, and halves its batches where memory ends
CPU_COST, CUDA_COST = BatchCost(overhead=1_000, limit=32_000), BatchCost()

# metrics that the bare base has as well
COMPARED = ("grid_accuracy", "cell_accuracy", "size_accuracy")


class AdapterWorkload:
    """Adapters of a Champion on ARC tasks, as a `trainables.pack.engine.Workload`.

    Args:
        base: The frozen Champion; its chosen layers are wrapped by `self.pack`.
        base_name: Recorded in the exported adapters.
        tasks: Tasks by id.
        folder: The run's folder; adapters go to ``adapters/<task_id>/``, those of later samples one level below.
        target_modules: Every layer that any job adapts.
        bf16: Compute in bfloat16 (weights and optimizer state stay in float32).
    """

    def __init__(
        self,
        base: Base,
        base_name: str,
        tasks: Mapping[str, Task],
        folder: Folder,
        target_modules: Sequence[str],
        bf16: bool,
    ) -> None:
        self.base, self.base_name, self.tasks, self.folder, self.bf16 = base, base_name, tasks, folder, bf16
        self.pack = AdapterPack(base.model, target_modules)
        self.device = next(base.model.parameters()).device
        if bf16:
            # once, instead of at every product: autocast does not remember frozen weights
            for module in base.model.modules():
                if isinstance(module, nn.Linear):
                    module.bfloat16()
        self._base_metrics: dict[str, dict[str, Any]] = {}

    def plan(self, job: Job) -> AdapterPlan[Example]:
        """Derive everything that the engine needs from a job; the learning rate from the base's own."""
        config = adapter_config(job.config)
        task = self.tasks[job.task_id]
        held_out = split_pairs(task, config.validation_pairs)
        pairs = task.train[: len(task.train) - len(held_out)]
        validation = validation_examples(task, pairs, held_out)
        # a few test pairs are mirror images or recolourings of a demonstration: no view may show them
        avoid = (*task.test, *(example.query for example in validation))
        return AdapterPlan(
            rank=config.rank,
            alpha=config.alpha,
            target_modules=config.target_modules,
            lr=self.base.config.lr * config.lr_multiple,
            lr_schedule=config.lr_schedule,
            steps_per_epoch=-(-config.examples_per_epoch // config.batch_size),
            weight_decay=config.weight_decay,
            batch_size=config.batch_size,
            epochs=config.epochs,
            patience=config.patience,
            min_delta=config.min_delta,
            clip_norm=config.clip_norm,
            report_every=config.report_every,
            examples=lambda epoch: training_examples(task, config.examples_per_epoch, job.seed, epoch, pairs, avoid),
            validation=validation,
            facts={"num_examples": len(pairs)},
        )

    def lengths(self, row: Example) -> tuple[int, ...]:
        """Tokens of input, output and context pairs."""
        return padded_lengths(row)

    def losses(self, rows: Sequence[Example | None]) -> Losses:
        """Cross-entropy of each row's target tokens."""
        batch = collate(rows, pin=self.device.type == "cuda").to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.base.model(batch)
        total, count = row_losses(logits, batch.target[:, 0])
        return Losses(total, count, [0 if row is None else example_tokens(row) for row in rows])

    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[Example]]]) -> list[dict[str, Any]]:
        """Solve the held-out test pairs with each adapter and, once per task, with the bare base."""
        task_ids = [job.task_id for job, _ in finished]
        adapted = self._solve(task_ids)
        unknown = sorted(set(task_ids) - set(self._base_metrics))
        if unknown:
            with self.pack.use(None):
                self._base_metrics |= dict(zip(unknown, self._solve(unknown), strict=True))
        rows = []
        for task_id, own in zip(task_ids, adapted, strict=True):
            base = self._base_metrics[task_id]
            rows.append(
                {f"base_{name}": base[name] for name in (*COMPARED, "teacher_forced_cell_accuracy")}
                | {f"final_{name}": own[name] for name in COMPARED}
                | {name: value for name, value in own.items() if name not in COMPARED}
            )
        return rows

    @torch.no_grad()
    def _solve(self, task_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Metrics on the test pairs of each task; rows are slot-major, equally many for each task."""
        examples = [test_examples(self.tasks[task_id]) for task_id in task_ids]
        width = max(map(len, examples))
        rows = [row for task in examples for row in [*task, *[None] * (width - len(task))]]
        batch = collate(rows).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.base.model(batch)
            answers = generate(self.base.model, rows, self.device, self.pack)
        hits, cells = (t.tolist() for t in cell_hits(logits, batch.target[:, 0]))
        results = []
        for place, task in enumerate(examples):
            span = range(place * width, place * width + len(task))
            metrics = mean_metrics([grid_metrics(answers[i], example) for i, example in zip(span, task, strict=True)])
            metrics["teacher_forced_cell_accuracy"] = float(np.mean([hits[i] / cells[i] for i in span]))
            results.append(metrics)
        return results

    def export(self, job: Job, plan: AdapterPlan[Example], factors: Factors) -> str:
        """Write the adapter in PEFT's format and return its place within the run's folder."""
        place = f"adapters/{job.task_id}" + (f"/{job.sample}" if job.sample else "")
        with tempfile.TemporaryDirectory() as folder:
            save_peft(Path(folder), factors, plan.alpha, self.base_name)
            self.folder.upload(Path(folder), place)
        return place


def adapter_config(values: Mapping[str, Any]) -> AdapterConfig:
    """Return the typed configuration of a job; JSON has no tuples."""
    return AdapterConfig(**{**values, "target_modules": tuple(values["target_modules"])})


def split_pairs(task: Task, validation_pairs: int) -> tuple[Pair, ...]:
    """Return the demonstration pairs kept out of training: the last ones, and none of a task with fewer than three."""
    spare = max(0, len(task.train) - 2)
    count = min(validation_pairs, spare)
    return task.train[len(task.train) - count :]


def train_adapters(settings: Mapping[str, Any], run: Run, queue: JobQueue) -> PackEngine[Example]:
    """Train the queue's jobs, packed, until there are no more.

    Args:
        settings: ``base``, ``data``, ``tasks`` (ids, or None for all), ``folder`` (the run's), ``slots`` (a number or
            ``auto``), ``rank`` (the largest of any job), ``target_modules`` (every layer that any job adapts).
        run: Where it runs.
        queue: Jobs in, reports out.

    Returns:
        The engine, for its counts.

    Raises:
        InputError: If base, data or layers are not what the settings say.
    """
    base = load_champion(settings["base"], run.device)
    tasks = load_tasks(settings["data"])
    chosen = {task_id: tasks[task_id] for task_id in settings["tasks"] or tasks}
    folder = Folder(settings["folder"])
    workload = AdapterWorkload(
        base, settings["base"], chosen, folder, settings["target_modules"], has_fast_bf16(run.device)
    )
    signature = f"base {base.fingerprint}, data {fingerprint(tasks)}"
    slots = choose_slots(settings["slots"], run.device)
    engine: PackEngine[Example] = PackEngine(
        workload.pack,
        workload,
        slots,
        settings["rank"],
        folder,
        signature,
        evaluation_slots=max(slots, EVALUATION_SLOTS),
        # as autocast would round them at every token
        evaluation_dtype=torch.bfloat16 if workload.bf16 else torch.float32,
        cost=CUDA_COST if workload.device.type == "cuda" else CPU_COST,
    )
    engine.run(queue)
    return engine


def choose_slots(slots: int | str, device: str) -> int:
    """Return the number of slots that ``auto`` means on a device, or the number given."""
    if slots == "auto":
        return CUDA_SLOTS if torch.device(device).type == "cuda" else CPU_SLOTS
    return int(slots)
