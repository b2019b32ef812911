"""What a job means for the pack engine: a task's examples, the base's loss on them, and its held-out metrics.

Text tasks are in `trainables.atomic_lora.text_workload`.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.arc import (
    CONTEXT_PAIRS,
    Example,
    Grid,
    Task,
    fingerprint,
    grid_key,
    grid_tokens,
    pair_key,
    split_demonstrations,
    test_examples,
    training_examples,
    validation_examples,
)
from trainables.atomic_lora.card import model_card
from trainables.atomic_lora.config import AdapterConfig, LoRAConfig
from trainables.atomic_lora.data import (
    example_tokens,
    grid_sequence,
    padded,
    padded_lengths,
    pair_sequence,
    pair_tokens,
    target_sequence,
)
from trainables.atomic_lora.decoding import generate, grid_metrics
from trainables.atomic_lora.evaluation import mean_metrics, modal_grid_accuracy
from trainables.atomic_lora.family import FAMILY
from trainables.atomic_lora.layout import Layout, attention_groups
from trainables.atomic_lora.loss import all_right, cell_hits, row_losses
from trainables.atomic_lora.model import Base, mean_of_pairs, mean_of_tokens
from trainables.atomic_lora.prefixes import Prefixes
from trainables.common.family import Family
from trainables.common.folder import Folder
from trainables.common.jobs import Job
from trainables.pack.bank import AdapterPack, to_device
from trainables.pack.batching import COSTS, BatchCost
from trainables.pack.checkpoint import Factors, save_peft
from trainables.pack.plan import AdapterPlan, Evaluation, Size
from trainables.pack.serving import unservable

E = TypeVar("E")

# Sequences are padded to multiples of this: on CPUs oneDNN makes a kernel for every new shape, which is dearer than
# padding; on GPUs it has not been measured
MULTIPLE = 32
# layers whose outputs are kept, as long as no adapter is on them; and bytes kept of each of three kinds of sequences
BEFORE_ADAPTERS = ("encoder.0.self_attention", "decoder.0.self_attention", "context_encoder.layer.self_attention")
CPU_PREFIXES, CUDA_PREFIXES = 96 << 20, 2 << 30
# metrics that the bare base has as well
COMPARED = ("grid_accuracy", "cell_accuracy", "size_accuracy")


@dataclass(frozen=True)
class _Solved:
    """How a task's held-out pairs were answered: metrics over its test pairs and over the official ones, where these
    are others, and the answer to each test pair (None where it is no grid)."""

    metrics: dict[str, Any]
    official: dict[str, Any]
    answers: list[Grid | None]


class LoRAWorkload(ABC, Generic[E]):
    """Adapters of a frozen base, as a `trainables.pack.plan.Workload`: what all kinds of tasks and bases share.

    Args:
        model: The frozen base; its chosen layers are wrapped by `self.pack`.
        base_name: Recorded in the exported adapters.
        base_lr: Learning rate that ``lr_multiple`` is a multiple of.
        folder: The run's folder; adapters go to ``adapters/<trial_id>/``.
        target_modules: Every layer that any job adapts.
        bf16: Compute in bfloat16 (weights and optimizer state of the adapters stay in float32).
    """

    task_type: str | None = None
    family: Family
    fingerprint: str

    def __init__(
        self, model: nn.Module, base_name: str, base_lr: float, folder: Folder, target_modules: Sequence[str],
        bf16: bool,
    ) -> None:  # fmt: skip
        self.base_name, self.base_lr, self.folder, self.bf16 = base_name, base_lr, folder, bf16
        self.pack = AdapterPack(model, target_modules)
        self.device, self.base_dtype = next(model.parameters()).device, next(model.parameters()).dtype
        self.cost = COSTS[self.device.type]

    @abstractmethod
    def plan(self, job: Job) -> AdapterPlan[E]:
        """Derive everything that the engine needs from a job; the learning rate from the base's own."""

    @abstractmethod
    def size(self, row: E) -> Size:
        """Return how large an example is."""

    @abstractmethod
    def score(self, rows: Sequence[E]) -> tuple[Tensor, Tensor]:
        """Return cross-entropy summed over each row's target tokens, [N], and whether all of them are right, [N]."""

    @abstractmethod
    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[E]]]) -> list[Evaluation]:
        """Return the held-out metrics of each adapter, and those of the bare base beside them."""

    @abstractmethod
    def data_fingerprint(self, task_id: str) -> str:
        """Return 16 hex digits of a task's examples."""

    @staticmethod
    def component(layer: str) -> str:
        """Return the component that a layer's gradients are recorded under: here its top-level module."""
        return layer.partition(".")[0]

    def plan_of(self, job: Job, config: LoRAConfig, count: int, **own: Any) -> AdapterPlan[E]:
        """Return the plan of a job that draws ``count`` examples an epoch; ``own`` are the plan's other fields."""
        return AdapterPlan(
            rank=config.rank,
            alpha=config.alpha,
            target_modules=config.target_modules,
            lr=self.base_lr * config.lr_multiple,
            lr_schedule=config.lr_schedule,
            steps_per_epoch=-(-count // config.batch_size),
            weight_decay=config.weight_decay,
            batch_size=config.batch_size,
            epochs=config.epochs,
            patience=config.patience,
            min_delta=config.min_delta,
            clip_norm=config.clip_norm,
            report_every=config.report_every,
            signature=f"data {self.data_fingerprint(job.task_id)}",
            **own,
        )

    def export(self, job: Job, plan: AdapterPlan[E], factors: Factors, evaluation: Evaluation) -> str:
        """Write the adapter in PEFT's format, with its model card, and return its place within the run's folder.

        The trial's id names the place, because it alone is unique: another sweep that extends the run numbers its
        configurations of the same task from 0 again.
        """
        place = f"adapters/{job.trial_id}"
        chosen = job.config["export_dtype"]
        dtype = self.base_dtype if chosen == "base" else getattr(torch, chosen)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            targets = self.pack.endings(factors)
            save_peft(
                folder, factors, plan.alpha, self.base_name, targets, self.task_type, dtype,
                fan_in_fan_out=self.pack.is_transposed(factors),
            )  # fmt: skip
            card = model_card(
                self.family, job, self.base_name, self.fingerprint, self.data_fingerprint(job.task_id),
                evaluation.metrics, unservable(folder) if self.task_type == "CAUSAL_LM" else None,
            )  # fmt: skip
            (folder / "README.md").write_text(card, encoding="utf-8")
            self.folder.upload(folder, place)
        return place

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class ArcWorkload(LoRAWorkload[Example]):
    """Adapters of a frozen base on ARC tasks; a kind of base is a subclass.

    Args:
        model, base_name, base_lr, folder, target_modules, bf16: See `LoRAWorkload`.
        tasks: Tasks by id.
    """

    family = FAMILY
    # whether the base sees the same task where a view shows it in other colours
    recolours = True

    def __init__(
        self,
        model: nn.Module,
        base_name: str,
        base_lr: float,
        tasks: Mapping[str, Task],
        folder: Folder,
        target_modules: Sequence[str],
        bf16: bool,
    ) -> None:
        super().__init__(model, base_name, base_lr, folder, target_modules, bf16)
        self.tasks = tasks
        self._base_solved: dict[str, _Solved] = {}

    @abstractmethod
    def solve(self, rows: Sequence[Example]) -> tuple[list[Grid | None], list[int], list[int]]:
        """Return each row's answer, decoded autoregressively, and its teacher-forced hits among its colour cells."""

    def data_fingerprint(self, task_id: str) -> str:
        """Return 16 hex digits of a task's grids."""
        return fingerprint({task_id: self.tasks[task_id]})

    def plan(self, job: Job) -> AdapterPlan[Example]:
        """Derive everything that the engine needs from a job; the learning rate from the base's own."""
        config = adapter_config(job.config)
        task = self.tasks[job.task_id]
        pairs, held_out = split_demonstrations(task, config.validation_pairs)
        validation = validation_examples(task, pairs, held_out, self.recolours)
        avoid = (*task.test, *(example.query for example in validation))
        return self.plan_of(
            job,
            config,
            config.examples_per_epoch,
            examples=lambda epoch: training_examples(
                task, config.examples_per_epoch, job.seed, epoch, pairs, avoid, self.recolours
            ),
            validation=validation,
            facts={"num_examples": len(pairs)},
        )

    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[Example]]]) -> list[Evaluation]:
        """Solve the held-out pairs with each adapter and, once per task, with the bare base.

        Metrics of official test pairs, where they are a second held-out set, begin with ``official_``. Predictions have
        the pair's place among the task's test pairs (``pair``), its grids (``input``, ``expected``) and the two answers
        (``base``, ``adapted``). A baseline that needs no model is among the metrics: giving the task's most frequent
        training output as every answer (``modal_grid_accuracy``); copying the input is another.
        """
        task_ids = [job.task_id for job, _ in finished]
        adapted = self._solve(task_ids)
        unknown = sorted(set(task_ids) - set(self._base_solved))
        if unknown:
            with self.pack.use(None):
                self._base_solved |= dict(zip(unknown, self._solve(unknown), strict=True))
        evaluations = []
        for task_id, own in zip(task_ids, adapted, strict=True):
            base, task = self._base_solved[task_id], self.tasks[task_id]
            metrics = (
                {f"base_{name}": base.metrics[name] for name in (*COMPARED, "teacher_forced_cell_accuracy")}
                | {f"final_{name}": own.metrics[name] for name in COMPARED}
                | {name: value for name, value in own.metrics.items() if name not in COMPARED}
                | {"modal_grid_accuracy": modal_grid_accuracy(task, task.test)}
            )
            if task.official:
                metrics |= (
                    {f"official_base_{name}": base.official[name] for name in COMPARED}
                    | {f"official_final_{name}": own.official[name] for name in COMPARED}
                    | {f"official_{name}": own.official[name] for name in ("copy_grid_accuracy", "copy_cell_accuracy")}
                    | {"official_modal_grid_accuracy": modal_grid_accuracy(task, task.official)}
                )
            predictions = [
                {"pair": pair, "input": held.input, "expected": held.output, "base": before, "adapted": after}
                for pair, (held, before, after) in enumerate(
                    zip(self.tasks[task_id].test, base.answers, own.answers, strict=True)
                )
            ]
            evaluations.append(Evaluation(metrics, predictions))
        return evaluations

    @torch.no_grad()
    def _solve(self, task_ids: Sequence[str]) -> list[_Solved]:
        """Answer the held-out pairs of each task, which are the rows of its slot."""
        tasks = [self.tasks[task_id] for task_id in task_ids]
        examples = [[*test_examples(task), *test_examples(task, task.official)] for task in tasks]
        rows = [row for task in examples for row in task]
        owners = [slot for slot, task in enumerate(examples) for _ in task]
        with self.pack.use(self.pack.bank):
            self.pack.keep(owners)
            answers, hits, cells = self.solve(rows)
        results = []
        starts = np.cumsum([0, *map(len, examples)])
        for start, held, task in zip(starts, examples, tasks, strict=False):
            found = [grid_metrics(answer, example) for answer, example in zip(answers[start:], held, strict=False)]
            count = len(task.test)
            span = slice(start, start + count)
            metrics = mean_metrics(found[:count])
            shares = [hit / of for hit, of in zip(hits[span], cells[span], strict=True)]
            metrics["teacher_forced_cell_accuracy"] = float(np.mean(shares))
            official = mean_metrics(found[count:]) if task.official else {}
            results.append(_Solved(metrics, official, answers[span]))
        return results


class ChampionWorkload(ArcWorkload):
    """Adapters of a Champion.

    Args:
        base: The frozen Champion.
        base_name, tasks, folder, target_modules, bf16: See `ArcWorkload`.
        cost: What a batch costs the device, and whether its rows are padded; by default they are unless the pack
            computes runs of rows, as on CPUs. On GPUs many rows in one product are worth it.
    """

    def __init__(
        self,
        base: Base,
        base_name: str,
        tasks: Mapping[str, Task],
        folder: Folder,
        target_modules: Sequence[str],
        bf16: bool,
        cost: BatchCost | None = None,
    ) -> None:
        super().__init__(base.model, base_name, base.config.lr, tasks, folder, target_modules, bf16)
        self.model, self.fingerprint = base.model, base.fingerprint
        if bf16:
            # once, instead of at every product: autocast does not remember frozen weights
            for module in self.model.modules():
                if isinstance(module, nn.Linear):
                    module.bfloat16()
        self.cost = cost or replace(self.cost, padded=self.pack.path != "runs", multiple=MULTIPLE)
        limit = CUDA_PREFIXES if self.device.type == "cuda" else CPU_PREFIXES
        limits = [0 if any(n.startswith(layer) for n in self.pack.layers) else limit for layer in BEFORE_ADAPTERS]
        settings = self.device, self.cost
        self.sources = Prefixes(self._begin_source, grid_sequence, grid_key, limits[0], *settings)
        self.targets = Prefixes(self._begin_target, target_sequence, grid_key, limits[1], *settings)
        self.pairs = Prefixes(self._begin_pairs, pair_sequence, pair_key, limits[2], *settings)

    def size(self, row: Example) -> Size:
        """Tokens of input, output and context pairs."""
        output = grid_tokens(row.query.output)
        if self.cost.padded:
            return Size(padded_lengths(row), example_tokens(row), output)
        pairs = [pair_tokens(pair) for pair in row.context[:CONTEXT_PAIRS]]
        lengths = grid_tokens(row.query.input), output, *pairs, *[0] * (CONTEXT_PAIRS - len(pairs))
        return Size(lengths, example_tokens(row), output)

    def score(self, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over each row's target tokens, [N], and whether all of them are right, [N]."""
        logits, tokens = self._teacher_forced(rows)
        return row_losses(logits, tokens)[0], all_right(logits, tokens)

    def solve(self, rows: Sequence[Example]) -> tuple[list[Grid | None], list[int], list[int]]:
        """Decode the rows, and count what is right where the true prefix is given."""
        hits, cells = (t.tolist() for t in cell_hits(*self._teacher_forced(rows)))
        with self._autocast():
            return generate(self.model, rows, self.device, self.pack), hits, cells

    def _teacher_forced(self, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Return logits [N, U, vocabulary] and tokens [N, U] of the outputs."""
        owners = self.pack.owners_of(range(len(rows))) or [0] * len(rows)
        # an adapter's rows lie together, and among them those of equal lengths
        lengths = self.cost.rounded([self.size(row).lengths for row in rows]).tolist()
        order = sorted(range(len(rows)), key=lambda i: (owners[i], lengths[i]))
        ordered, owned = [rows[i] for i in order], [owners[i] for i in order]
        layout = self._layout([grid_tokens(row.query.output) for row in ordered])
        with self._autocast():
            written = self._write(ordered, order, owned, layout)
            context = self._context(ordered, order, owned)
            with self._rows(order, layout):
                logits = self.model.read_out(written, context.index_select(0, layout.row))
        target = padded([grid_sequence(row.query.output)[:1] for row in rows])[:, 0]
        starts = np.empty(len(rows), dtype=np.int64)
        starts[order] = layout.starts
        # what lies behind a row's end carries no loss
        index = np.minimum(starts[:, None] + np.arange(target.shape[1]), len(written) - 1)
        chosen = logits.index_select(0, to_device(index.flatten(), self.device))
        return chosen.unflatten(0, target.shape), to_device(target, self.device)

    def _write(self, rows: Sequence[Example], numbers: Sequence[int], owners: Sequence[int], layout: Layout) -> Tensor:
        """Return the decoder's outputs [tokens, D]; a query that several rows of an adapter have is computed once."""
        first, places = distinct([(owner, pair_key(row.query)) for owner, row in zip(owners, rows, strict=True)])
        queries, numbers = [rows[i].query for i in first], [numbers[i] for i in first]
        inputs, outputs = [query.input for query in queries], [query.output for query in queries]
        source, target = (self._layout([grid_tokens(grid) for grid in grids]) for grids in (inputs, outputs))
        with self._rows(numbers, source):
            memory = self.model.remember(self.sources.get(inputs, source), attention_groups(source, source))
        with self._rows(numbers, target):
            begun, own = self.targets.get(outputs, target), attention_groups(target)
            written = self.model.write(begun, memory, attention_groups(target, source), own)
        if len(first) == len(rows):
            return written
        return written.index_select(0, layout.index([target.starts[place] for place in places]))

    def _context(self, rows: Sequence[Example], numbers: Sequence[int], owners: Sequence[int]) -> Tensor:
        """Return the context vectors [N, C]; a pair that several rows of an adapter show is read once."""
        shown = [
            (row, place, pair)
            for row, example in enumerate(rows)
            for place, pair in enumerate(example.context[:CONTEXT_PAIRS])
        ]
        if not shown:
            return torch.zeros(len(rows), self.model.context_encoder.width, device=self.device)
        # those of equal lengths attend together, where they have to
        shown.sort(key=lambda item: (owners[item[0]], pair_tokens(item[2])))
        first, places = distinct([(owners[row], pair_key(pair)) for row, _, pair in shown])
        showing, pairs = [shown[i][0] for i in first], [shown[i][2] for i in first]
        layout = self._layout([pair_tokens(pair) for pair in pairs])
        with self._rows([numbers[row] for row in showing], layout):
            x = self.model.context_encoder.finish(self.pairs.get(pairs, layout))
        means = mean_of_tokens(x, layout.place(), len(pairs))
        table = np.full((len(rows), CONTEXT_PAIRS), -1, dtype=np.int64)
        for (row, place, _), i in zip(shown, places, strict=True):
            table[row, place] = i
        index = to_device(table, self.device)
        return mean_of_pairs(means[index.clamp_min(0)], index >= 0)

    def _layout(self, lengths: Sequence[int]) -> Layout:
        return Layout(lengths, self.cost.multiple, self.cost.padded, self.device)

    def _rows(self, numbers: Sequence[int], layout: Layout) -> AbstractContextManager[None]:
        # padded rows are equally long, which the pack sees
        return self.pack.rows(numbers, None if layout.padded else layout.rooms)

    def _begin_source(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.model.begin_source(tokens, attention_groups(layout, layout))

    def _begin_target(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.model.begin_target(tokens, attention_groups(layout))

    def _begin_pairs(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.model.context_encoder.begin(tokens, attention_groups(layout, layout))


def distinct(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Return the index of the first of all equal keys, for each distinct one, and each key's place among these."""
    places: dict[Hashable, int] = {}
    first: list[int] = []
    for i, key in enumerate(keys):
        if key not in places:
            places[key] = len(first)
            first.append(i)
    return first, [places[key] for key in keys]


def adapter_config(values: Mapping[str, Any]) -> AdapterConfig:
    """Return the typed configuration of a job; JSON has no tuples."""
    return AdapterConfig(**{**values, "target_modules": tuple(values["target_modules"])})
