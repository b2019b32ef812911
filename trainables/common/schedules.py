"""Schedules shared by all families: every value is a pure function of the one global step.

Three things are here. `Schedule` moves a value from ``start`` to ``end``, over a share of the run or over a number of
steps, along one of `RISES`; a setting holds it as text, such as ``cosine:0.1:0.001:50%``. `DECAYS` are factors that
fall from 1 to 0 over a run, and `cosine_warm_restarts` is the learning rate of the Champion. A run's length in steps is
`total_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainables.common.errors import InputError

# ----------------------------------------------------------------------------------------------------- length of a run


def total_steps(groups: int, mean_examples: float, batch_size: int, epochs: int) -> int:
    """Return the optimizer steps of a run: ``max(1, floor(groups * mean_examples / batch_size)) * epochs``.

    Args:
        groups: Things that examples are made of, such as puzzles or tasks.
        mean_examples: Examples that an epoch draws of a group, on average.
        batch_size: Examples of a step, over all workers.
        epochs: Epochs of the run.
    """
    return max(1, math.floor(groups * mean_examples / batch_size)) * epochs


# ------------------------------------------------------------------------------------------------- from start to end

# f(p) for p in [0, 1]. The exponential one reaches 1 - exp(-5) = 0.993 at the end and stays there
RISES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda p: 0.0,
    "linear": lambda p: p,
    "cosine": lambda p: (1.0 - math.cos(math.pi * p)) / 2.0,
    "exponential": lambda p: 1.0 - math.exp(-5.0 * p),
}


@dataclass(frozen=True)
class Schedule:
    """A value that goes from ``start`` to ``end``: ``start + (end - start) * f(p)`` with ``p = step / length``.

    Attributes:
        start: Value at step 0.
        end: Value from the end of the length on (``exponential``: what it tends to).
        shape: f, a name in `RISES`.
        ratio: Length as a share of the run's total steps.
        steps: Length in steps; it replaces ``ratio``.
    """

    start: float
    end: float
    shape: str = "linear"
    ratio: float = 1.0
    steps: int | None = None

    def value(self, step: int, total: int) -> float:
        """Return the value at global step ``step`` (from 0) of a run of ``total`` steps."""
        length = self.steps if self.steps is not None else self.ratio * total
        return self.start + (self.end - self.start) * RISES[self.shape](min(1.0, step / length))

    @property
    def moves(self) -> bool:
        """Whether the value is meant to change during a run."""
        return self.shape != "constant" and self.start != self.end

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read ``0.1``, ``linear:0.3:0.05``, ``cosine:0.1:0.001:50%`` or ``exponential:1:0.1:2000`` (steps).

        Raises:
            InputError: If the text is none of these.
        """
        shape, *numbers = text.strip().split(":")
        try:
            if not numbers:
                return cls(_finite(shape), _finite(shape), "constant")
            if shape in RISES and shape != "constant" and len(numbers) in (2, 3):
                start, end = map(_finite, numbers[:2])
                length = numbers[2] if len(numbers) == 3 else "100%"
                if length.endswith("%") and 0 < _finite(length[:-1]) <= 100:
                    return cls(start, end, shape, ratio=_finite(length[:-1]) / 100)
                if not length.endswith("%") and int(length) > 0:
                    return cls(start, end, shape, steps=int(length))
        except ValueError:
            pass
        raise InputError(
            f"{text!r} is not a schedule; write a number, or SHAPE:START:END or SHAPE:START:END:LENGTH with a SHAPE of "
            "linear, cosine or exponential and a LENGTH such as 50% of the run or 2000 steps."
        )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


# ------------------------------------------------------------------------------------------------ factors from 1 to 0


def constant(step: int, total: int) -> float:
    """Return 1."""
    return 1.0


def linear(step: int, total: int) -> float:
    """Fall from 1 at step 0 to 0 at step ``total``."""
    return 1.0 - RISES["linear"](min(1.0, step / total))


def cosine(step: int, total: int) -> float:
    """Fall from 1 at step 0 to 0 at step ``total`` along half a cosine."""
    return 1.0 - RISES["cosine"](min(1.0, step / total))


DECAYS = {"constant": constant, "linear": linear, "cosine": cosine}


def cosine_warm_restarts(step: int, cycle: int, growth: int = 2, warmup: int = 0, floor: float = 0.01) -> float:
    """Cosine annealing with warm restarts (SGDR, Loshchilov and Hutter, 2017), each cycle ``growth`` times the last.

    Args:
        step: Global step, from 0.
        cycle: Steps of the first cycle.
        growth: Factor between the lengths of successive cycles.
        warmup: Steps of a linear warm-up, which multiplies the whole.
        floor: Value at the end of a cycle.
    """
    length = cycle
    ramp = warm_up(step, warmup)
    while step >= length:
        step -= length
        length *= growth
    return ramp * (floor + (1.0 - floor) * cosine(step, length))


def warm_up(step: int, steps: int) -> float:
    """Return the factor of a linear warm-up: ``(step + 1) / steps`` up to 1, and 1 where ``steps`` is 0."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
