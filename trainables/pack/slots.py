"""Adapters in training, their rows in a batch, adapters that wait to be evaluated, and counts of it all."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from trainables.common.jobs import Job
from trainables.pack.plan import AdapterPlan, Size

# what a rung checkpoint keeps of a `Slot` beside its tensors
KEPT = (
    "epoch", "step", "best_epoch", "best_exact", "best_loss", "patience_exact", "patience_loss", "stale_epochs",
    "busy_seconds", "history",
)  # fmt: skip

E = TypeVar("E")


@dataclass
class Slot(Generic[E]):
    """An adapter in training.

    What it is compared by is the share of the validation examples that it answers exactly, then its loss on them. Epoch
    0 is its start, when it still changes nothing of the base.
    """

    index: int
    job: Job
    plan: AdapterPlan[E]
    names: list[str]
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_exact: float = -1.0
    best_loss: float = math.inf
    patience_exact: float = -1.0
    patience_loss: float = math.inf
    stale_epochs: int = 0
    busy_seconds: float = 0.0
    earlier_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    reported: int = 0
    started: float = field(default_factory=time.perf_counter)
    lr: float = 0.0
    # of the epoch under way
    waiting: list[Sequence[E]] = field(default_factory=list)
    epoch_started: float = 0.0
    epoch_examples: int = 0
    epoch_tokens: int = 0
    epoch_padded: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether training has ended, by its number of epochs or by its patience."""
        return self.epoch >= self.plan.epochs or self.stale_epochs >= self.plan.patience

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started


@dataclass(frozen=True)
class Row(Generic[E]):
    """An example that a slot trains or validates on.

    Attributes:
        slot: Its slot.
        example: The example.
        size: How large it is.
        weight: What its summed loss counts in the slot's mean over all tokens of the step.
    """

    slot: Slot[E]
    example: E
    size: Size
    weight: float


@dataclass(frozen=True)
class Finished(Generic[E]):
    """A trained adapter waiting for its evaluation: its slot's record and its best weights [P]."""

    slot: Slot[E]
    weights: Tensor
    early_stopped: bool


@dataclass
class EngineStats:
    """Counts since the engine was made: optimizer steps of the pack, batches that they took, examples, tokens with and
    without padding, and slots in use summed over steps."""

    steps: int = 0
    batches: int = 0
    examples: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    slots_used: int = 0

    @property
    def padding_waste(self) -> float:
        """Share of the computed tokens that were padding."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0
