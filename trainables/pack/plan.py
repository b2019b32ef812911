"""What the pack engine is told of a job, and what it asks of a model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from trainables.common.jobs import Job
from trainables.pack.checkpoint import Factors

E = TypeVar("E")


@dataclass(frozen=True)
class AdapterPlan(Generic[E]):
    """A job as the engine sees it.

    Attributes:
        rank: LoRA rank, at most the engine's.
        alpha: LoRA alpha.
        target_modules: Layers to adapt, as `AdapterPack.select` understands them.
        lr: Peak learning rate.
        lr_schedule: A name in `schedules.DECAYS`, over ``epochs * steps_per_epoch`` steps.
        steps_per_epoch: Steps that an epoch's examples make.
        weight_decay: Decoupled weight decay.
        batch_size: Examples per step.
        epochs: Most epochs.
        patience: Epochs without a better validation before it stops: more answered exactly, or as many and an
            evaluation loss lower by ``min_delta``.
        min_delta: Smallest improvement of the loss that counts.
        clip_norm: Largest gradient norm.
        report_every: Epochs between rungs.
        examples: Gives the examples of an absolute epoch (from 1), the same ones whenever it is asked.
        validation: Examples that the evaluation loss, and the share answered exactly, are measured on.
        facts: Columns of the job's row that are known beforehand.
        signature: Names the data; a checkpoint of other data is not continued.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    lr: float
    lr_schedule: str
    steps_per_epoch: int
    weight_decay: float
    batch_size: int
    epochs: int
    patience: int
    min_delta: float
    clip_norm: float
    report_every: int
    examples: Callable[[int], Sequence[E]]
    validation: Sequence[E]
    facts: Mapping[str, Any] = field(default_factory=dict)
    signature: str = ""


@dataclass(frozen=True)
class Size:
    """How large an example is.

    Attributes:
        lengths: Of its sequences, one of each kind; see `BatchCost.tokens`.
        tokens: Tokens that the model computes on for it, without padding.
        targets: Tokens that its loss is summed over.
    """

    lengths: tuple[int, ...]
    tokens: int
    targets: int


@dataclass(frozen=True)
class Evaluation:
    """What a workload finds out about a finished adapter.

    Attributes:
        metrics: Held-out metrics, columns of the job's row.
        predictions: One mapping per held-out example, where the answers themselves are kept.
    """

    metrics: Mapping[str, Any]
    predictions: Sequence[Mapping[str, Any]] = ()


class Workload(Protocol[E]):
    """What the engine trains on: one for each model family."""

    def plan(self, job: Job) -> AdapterPlan[E]:
        """Turn a job into a plan. An exception fails this job alone."""

    def size(self, row: E) -> Size:
        """Return how large an example is."""

    def score(self, rows: Sequence[E]) -> tuple[Tensor, Tensor]:
        """Run the model on rows, which the pack knows the adapters of.

        Returns:
            The summed loss of each row, [N], and whether its whole answer is right, [N], booleans.
        """

    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[E]]]) -> list[Evaluation]:
        """Return the evaluations of the finished adapters, one in each slot of the bank in use.

        `AdapterPack.keep` tells the pack which of them each row of a batch belongs to.
        """

    def export(self, job: Job, plan: AdapterPlan[E], factors: Factors) -> str:
        """Write a finished adapter and return where it is."""
