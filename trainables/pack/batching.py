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

# places where a partition may cut its rows: 128 take about 2 ms of a host that has a GPU to feed
MOST_CUTS = 128


def group(lengths: Sequence[Sequence[int]], cost: BatchCost, most: int | None = None) -> list[list[int]]:
    """Partition k rows into batches of the least total cost among those of neighbours in size.

    Of more than `MOST_CUTS` rows it is the least among the partitions that cut at evenly spaced rows.

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
    cuts = _cuts(table, cost.limit, most)
    # the largest lengths between two cuts, and the rows before each cut
    largest = np.maximum.reduceat(table, cuts[:-1])
    # an overhead without bound means the fewest batches that the limit allows
    overhead = cost.overhead if math.isfinite(cost.overhead) else float(table.sum() * count + 1)
    parts = len(largest)
    best, ends = np.zeros(parts + 1), np.zeros(parts, dtype=int)
    for start in range(parts - 1, -1, -1):
        sizes = cuts[start + 1 :] - cuts[start]
        padded = np.maximum.accumulate(largest[start:]).sum(1) * sizes
        allowed = ((padded <= cost.limit) & (sizes <= most)) | (sizes == sizes[0])
        totals = np.where(allowed, overhead + padded + best[start + 1 :], math.inf)
        pick = int(totals.argmin())
        best[start], ends[start] = totals[pick], start + pick + 1
    batches, start = [], 0
    while start < parts:
        end = int(ends[start])
        batches.append(sorted(order[cuts[start] : cuts[end]].tolist()))
        start = end
    return batches


def _cuts(table: np.ndarray, limit: float, most: int) -> np.ndarray:
    """Return where a batch may begin or end among rows in descending order of size, as indices that include both ends.

    Dynamic programming is quadratic in them, so of many rows only every u-th is one; u rows always fit a batch.
    """
    count = len(table)
    fitting = min(most, limit // int(table.max(0).sum())) if math.isfinite(limit) else most
    every = max(1, min(-(-count // MOST_CUTS), int(fitting)))
    return np.append(np.arange(0, count, every), count)


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
