"""A tiny causal classifier with jobs of every kind: what the tests of the pack engine train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue, Report
from trainables.pack.bank import AdapterPack, Path
from trainables.pack.batching import BatchCost
from trainables.pack.checkpoint import Factors
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Evaluation, Size

INPUTS, CLASSES = 6, 5
# of an epoch's row, what depends on the others in the pack
PACKS_OWN = ("seconds", "padded_tokens")
DEFAULTS: dict[str, Any] = {
    "rank": 2, "alpha": 4.0, "target_modules": ["up", "hidden", "down"], "lr": 0.05, "lr_schedule": "constant",
    "weight_decay": 0.01, "batch_size": 2, "epochs": 3, "patience": 100, "min_delta": 0.0, "clip_norm": 1.0,
    "report_every": 100, "examples": 6, "fault": None, "fault_epoch": 2, "script": None,
}  # fmt: skip


class Net(nn.Module):
    """Inputs [N, T, I] -> logits [N, T, C]; a token sees itself and those before it. ``idle`` takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(INPUTS, 8)
        self.body = nn.ModuleDict({"hidden": nn.Linear(8, 8)})
        self.down = nn.Linear(8, CLASSES)
        self.idle = nn.Linear(INPUTS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.up(x))
        x = x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.down(torch.tanh(self.body["hidden"](x)))


@dataclass(frozen=True)
class Row:
    """One example: inputs [T, I], classes [T]; its losses, and whether it is right, come from ``script`` if it has one.

    A batch that holds a ``poisoned`` row raises.
    """

    inputs: Tensor
    classes: Tensor
    script: Iterator[tuple[float, bool]] | None = None
    poisoned: bool = False


def net(dtype: torch.dtype = torch.float64) -> Net:
    """Return the frozen base, the same one every time."""
    torch.manual_seed(0)
    return Net().to(dtype).eval().requires_grad_(False)


def job(trial_id: str, seed: int = 0, **config: Any) -> Job:
    """Return a job with `DEFAULTS` but for ``config``."""
    assert config.keys() <= DEFAULTS.keys()
    return Job(trial_id, f"task-{trial_id}", seed, DEFAULTS | config)


def draw(seed: int, epoch: int, count: int, dtype: torch.dtype) -> list[Row]:
    """Return random sequences of 1 to 5 tokens, labelled by a map that is the seed's own."""
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    teacher = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = []
    for _ in range(count):
        length = int(torch.randint(1, 6, (), generator=generator))
        inputs = torch.randn(length, INPUTS, generator=generator, dtype=torch.float64)
        rows.append(Row(inputs.to(dtype), (inputs @ teacher).argmax(-1)))
    return rows


def pad(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return inputs [N, T, I] and classes [N, T], the classes of padding -100."""
    inputs = pad_sequence([row.inputs for row in rows], batch_first=True)
    return inputs, pad_sequence([row.classes for row in rows], batch_first=True, padding_value=-100)


def scripted(script: Sequence[float | tuple[float, bool]]) -> Iterator[tuple[float, bool]]:
    """Return a script, of losses alone where nothing is ever right; the first is the start's."""
    return iter([step if isinstance(step, tuple) else (step, False) for step in script])


class TinyWorkload:
    """Jobs of `job` on a `Net`; a job's ``fault`` says where it goes wrong (``fault_epoch``: when).

    Attributes:
        fits: Rows that one batch may have before memory runs out.
        batches: Number of rows of each batch.
        exported: Factors by trial id.
        evaluations: Trial ids of each batch that was evaluated.
        logits: What each adapter gave for its validation examples when it was evaluated, by trial id.
    """

    def __init__(
        self, dtype: torch.dtype = torch.float64, targets: Sequence[str] = ("all-linear",), path: Path = "bmm"
    ) -> None:
        self.dtype = dtype
        self.model = net(dtype)
        self.pack = AdapterPack(self.model, targets, path)
        self.fits = 10**9
        self.batches: list[int] = []
        self.exported: dict[str, Factors] = {}
        self.evaluations: list[list[str]] = []
        self.logits: dict[str, Tensor] = {}

    def plan(self, job: Job) -> AdapterPlan[Row]:
        config = job.config
        if config["fault"] == "plan":
            raise RuntimeError("no plan")

        def examples(epoch: int) -> list[Row]:
            rows = draw(job.seed, epoch, config["examples"], self.dtype)
            if epoch == config["fault_epoch"]:
                if config["fault"] == "examples":
                    raise RuntimeError("no examples")
                if config["fault"] == "nan":
                    rows[-1].inputs.fill_(torch.nan)
                if config["fault"] == "batch":
                    rows[-1] = replace(rows[-1], poisoned=True)
            return rows

        validation = [] if config["fault"] == "validation" else draw(job.seed, 0, 3, self.dtype)
        if config["fault"] == "validate":
            validation[0] = replace(validation[0], poisoned=True)
        if config["script"] is not None:
            validation = [Row(validation[0].inputs, validation[0].classes, scripted(config["script"]))]
        names = ("rank", "alpha", "lr", "lr_schedule", "weight_decay", "batch_size", "epochs", "patience", "min_delta")
        return AdapterPlan(
            **{name: config[name] for name in (*names, "clip_norm", "report_every")},
            target_modules=tuple(config["target_modules"]),
            steps_per_epoch=-(-config["examples"] // config["batch_size"]),
            examples=examples,
            validation=validation,
            facts={"num_examples": config["examples"]},
        )

    def size(self, row: Row) -> Size:
        return Size((len(row.classes),), len(row.classes), len(row.classes))

    def score(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        if len(rows) > self.fits:
            raise torch.OutOfMemoryError(f"no room for {len(rows)} rows")
        if any(row.poisoned for row in rows):
            raise RuntimeError("a bad batch")
        self.batches.append(len(rows))
        inputs, classes = pad(rows)
        logits = self.model(inputs)
        losses = F.cross_entropy(logits.transpose(1, 2), classes, reduction="none").sum(1)
        exact = ((logits.argmax(-1) == classes) | (classes < 0)).all(1)
        for i, row in enumerate(rows):
            if row.script is not None:
                loss, right = next(row.script)
                losses[i], exact[i] = loss * len(row.classes), right
        return losses, exact

    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[Row]]]) -> list[Evaluation]:
        self.evaluations.append([job.trial_id for job, _ in finished])
        if any(job.config["fault"] == "evaluate" for job, _ in finished):
            raise RuntimeError("no evaluation")
        rows = [row for _, plan in finished for row in plan.validation]
        counts = [len(plan.validation) for _, plan in finished]
        self.pack.keep([slot for slot, count in enumerate(counts) for _ in range(count)])
        logits = self.model(pad(rows)[0])
        for (job, _), own in zip(finished, logits.split(counts), strict=True):
            self.logits[job.trial_id] = own
        return [Evaluation({"final_cell_accuracy": 0.5}, [{"pair": 0, "adapted": [[1]]}]) for _ in finished]

    def export(self, job: Job, plan: AdapterPlan[Row], factors: Factors, evaluation: Evaluation) -> str:
        if job.config["fault"] == "export":
            raise OSError("no space left")
        self.exported[job.trial_id] = factors
        return f"adapters/{job.task_id}"


@dataclass(frozen=True)
class Trained:
    """An engine after its queue ran dry."""

    engine: PackEngine[Row]
    workload: TinyWorkload
    reports: list[Report]

    def last(self, trial_id: str) -> Report:
        return [report for report in self.reports if report.trial_id == trial_id][-1]

    def history(self, trial_id: str) -> list[Mapping[str, Any]]:
        """Everything that was said of a trial's epochs but for how long they took."""
        rows = [row for report in self.reports if report.trial_id == trial_id for row in report.history]
        return [{name: value for name, value in row.items() if name not in PACKS_OWN} for row in rows]


def train(
    jobs: Sequence[Job] | ListQueue, slots: int, *, rank: int = 4, dtype: torch.dtype = torch.float64,
    path: Path = "bmm", targets: Sequence[str] = ("all-linear",), folder: Folder | None = None, signature: str = "tiny",
    fits: int = 10**9, cost: BatchCost | None = None,
) -> Trained:  # fmt: skip
    """Train jobs in a fresh engine."""
    workload = TinyWorkload(dtype, targets, path)
    workload.fits = fits
    engine = PackEngine(workload.pack, workload, slots, rank, folder, signature, dtype, cost=cost)
    queue = jobs if isinstance(jobs, ListQueue) else ListQueue(jobs)
    engine.run(queue)
    return Trained(engine, workload, queue.reports)


def same(a: Factors, b: Factors) -> bool:
    """Whether two adapters are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(x, y) for n in a for x, y in zip(a[n], b[n], strict=True))


def distance(a: Factors, b: Factors) -> float:
    """Largest absolute difference between two adapters."""
    assert a.keys() == b.keys()
    return max(float((x - y).abs().max()) for n in a for x, y in zip(a[n], b[n], strict=True))
