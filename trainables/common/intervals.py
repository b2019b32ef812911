"""95 % intervals of shares and means over independent values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# The quantile of the normal distribution that leaves 2.5 % above it.
QUANTILE = 1.959964


def wilson(successes: float, count: int) -> tuple[float, float]:
    """Return the interval of a share (Wilson, 1927)."""
    share, z = successes / count, QUANTILE**2 / count
    middle, half = share + z / 2, QUANTILE * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the interval of a mean, by the normal distribution; infinite for a single value.

    For outcomes of 0 and 1 it is half of `wilson`'s interval, which is not 0 where all are equal.
    """
    if len(values) < 2:
        return math.inf
    if set(values) <= {0, 1}:
        low, high = wilson(sum(values), len(values))
        return (high - low) / 2
    return QUANTILE * statistics.stdev(map(float, values)) / math.sqrt(len(values))
