"""Which rows share a batch: where it is padded, similar sizes, in as few batches as that allows; else neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchCost:
    """What a batch costs a device, in tokens.

    Attributes:
        overhead: Fixed cost of a padded batch, as the number of tokens that take as long; infinite: always one batch.
        limit: Tokens that a batch of several rows may have, padding included, for the memory's sake.
        padded: Whether a batch's rows are padded to the longest; else they lie one after another.
        multiple: What each of a row's sequences is padded to a multiple of.
    """

    overhead: float = math.inf
    limit: float = math.inf
    padded: bool = True
    multiple: int = 1

    def tokens(self, lengths: Sequence[Sequence[int]]) -> int:
        """Return the tokens of a batch, padding included; what its rows may share counts for each of them.

        Args:
            lengths: For each row the lengths of its sequences, one of each kind, [N, kinds].
        """
        table = self.rounded(lengths)
        return len(table) * int(table.max(0).sum()) if self.padded else int(table.sum())

    def rounded(self, lengths: Sequence[Sequence[int]]) -> np.ndarray:
        """Return lengths rounded up to the multiple."""
        return -(-np.asarray(lengths) // self.multiple) * self.multiple


# On a GPU it is a guess until one is measured, and batches are halved where memory ends
COSTS = {"cpu": BatchCost(overhead=300, limit=8_000), "cuda": BatchCost(overhead=20_000)}


def group(lengths: Sequence[Sequence[int]], cost: BatchCost, most: int | None = None) -> list[list[int]]:
    """Partition k rows into batches of the least total cost among those of neighbours in size.

    Rows that are not padded are taken in their order instead, as many as the limit allows.

    Args:
        lengths: For each row the lengths of its sequences, one of each kind, [k, kinds].
        cost: Of a batch on the device.
        most: Rows that a batch may have.

    Returns:
        Batches of indices 0 to k - 1; each index once, in ascending order within a batch.
    """
    if not lengths:
        return []
    count = len(lengths)
    most = min(most or count, count)
    if math.isinf(cost.overhead) and math.isinf(cost.limit):
        return [list(range(start, min(start + most, count))) for start in range(0, count, most)]
    table = cost.rounded(lengths)
    if not cost.padded:
        return _in_order(table.sum(1), cost.limit, most)
    order = np.lexsort((np.arange(count), -table.sum(1)))
    table = table[order]
    best, ends = np.zeros(count + 1), np.zeros(count, dtype=int)
    for start in range(count - 1, -1, -1):
        stop = min(start + most, count)
        sizes = np.arange(1, stop - start + 1)
        padded = np.maximum.accumulate(table[start:stop]).sum(1) * sizes
        allowed = (padded <= cost.limit) | (sizes == 1)
        # an overhead without bound means the fewest batches that the limit allows
        overhead = cost.overhead if math.isfinite(cost.overhead) else float(table.sum() * count + 1)
        totals = np.where(allowed, overhead + padded + best[start + 1 : stop + 1], math.inf)
        pick = int(totals.argmin())
        best[start], ends[start] = totals[pick], start + pick + 1
    batches, start = [], 0
    while start < count:
        batches.append(sorted(order[start : ends[start]].tolist()))
        start = int(ends[start])
    return batches


def _in_order(tokens: np.ndarray, limit: float, most: int) -> list[list[int]]:
    batches: list[list[int]] = []
    room: float = 0
    for i, count in enumerate(tokens.tolist()):
        if not batches or count > room or len(batches[-1]) == most:
            batches.append([])
            room = limit
        batches[-1].append(i)
        room -= count
    return batches
