"""95 % intervals of means over independent values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean, by the normal distribution; infinite for a single value.

    For outcomes of 0 and 1 it is Agresti and Coull's (1998), which is not 0 where all are equal.
    """
    if len(values) < 2:
        return math.inf
    if set(values) <= {0, 1}:
        count = len(values) + 4
        share = (sum(values) + 2) / count
        return 1.96 * math.sqrt(share * (1 - share) / count)
    return 1.96 * statistics.stdev(map(float, values)) / math.sqrt(len(values))
