"""Schedules shared by all families: every value is a pure function of the one global step.

Each function returns a factor, mostly within [0, 1], that multiplies a base value such as the learning rate.
"""

from __future__ import annotations

import math


def constant(step: int, total: int) -> float:
    """Return 1."""
    return 1.0


def linear(step: int, total: int) -> float:
    """Fall from 1 at step 0 to 0 at step ``total``."""
    return max(0.0, 1.0 - step / total)


def cosine(step: int, total: int) -> float:
    """Fall from 1 at step 0 to 0 at step ``total`` along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))


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
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    length = cycle
    while step >= length:
        step -= length
        length *= growth
    return ramp * (floor + (1.0 - floor) * cosine(step, length))
