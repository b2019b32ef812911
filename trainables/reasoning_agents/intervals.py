"""95 % intervals of means over independent values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean, by the normal distribution; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return 1.96 * statistics.stdev(map(float, values)) / math.sqrt(len(values))
