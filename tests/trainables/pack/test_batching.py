"""Which rows share a batch: partitions, their cost, their limits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from trainables.pack.batching import BatchCost, group


def padded_tokens(lengths: list[list[int]]) -> int:
    return len(lengths) * sum(max(kind) for kind in zip(*lengths, strict=True))


def cost_of(batches: list[list[int]], lengths: list[list[int]], overhead: float) -> float:
    return sum(overhead + padded_tokens([lengths[i] for i in batch]) for batch in batches)


def random_lengths(seed: int, count: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(1, 900, (count, 3)).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("overhead", [0.0, 300.0, 5000.0, math.inf])
def test_every_row_is_in_one_batch_within_the_limits(seed: int, overhead: float) -> None:
    lengths = random_lengths(seed, 17)
    batches = group(lengths, BatchCost(overhead, limit=8000), most=6)
    assert sorted(itertools.chain(*batches)) == list(range(17))
    for batch in batches:
        assert batch == sorted(batch) and len(batch) <= 6
        assert padded_tokens([lengths[i] for i in batch]) <= 8000 or len(batch) == 1


@pytest.mark.parametrize(("limit", "most"), [(math.inf, None), (math.inf, 5), (8000.0, None), (100_000.0, 100)])
def test_many_rows_are_partitioned_within_the_limits_at_almost_the_least_cost(limit: float, most: int | None) -> None:
    lengths = random_lengths(0, 700)
    batches = group(lengths, BatchCost(20_000.0, limit), most)
    assert sorted(itertools.chain(*batches)) == list(range(700))
    for batch in batches:
        assert len(batch) <= (most or 700)
        assert padded_tokens([lengths[i] for i in batch]) <= limit or len(batch) == 1
    alone = cost_of([[i] for i in range(700)], lengths, 20_000.0)
    assert cost_of(batches, lengths, 20_000.0) < alone
    if most is None and limit == math.inf:
        # equal parts, as many as are best
        order = sorted(range(700), key=lambda i: -sum(lengths[i]))
        costs = [
            cost_of([order[i : i + size] for i in range(0, 700, size)], lengths, 20_000.0) for size in range(1, 700)
        ]
        assert cost_of(batches, lengths, 20_000.0) <= min(costs)


def test_the_cost_is_the_least_of_all_partitions_of_neighbours() -> None:
    for seed in range(5):
        lengths = random_lengths(seed, 8)
        order = sorted(range(8), key=lambda i: (-sum(lengths[i]), i))
        found = cost_of(group(lengths, BatchCost(1500.0)), lengths, 1500.0)
        costs = []
        for cuts in itertools.product([False, True], repeat=7):
            ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [8]
            parts = [order[a:b] for a, b in zip([0, *ends], ends, strict=False)]
            costs.append(cost_of(parts, lengths, 1500.0))
        assert found == min(costs)


def test_without_an_overhead_different_sizes_are_apart_and_without_bounds_together() -> None:
    lengths = [[100], [7], [100], [7]]
    assert sorted(group(lengths, BatchCost(overhead=1.0))) == [[0, 2], [1, 3]]
    assert group(lengths, BatchCost()) == [[0, 1, 2, 3]]
    assert group(lengths, BatchCost(), most=3) == [[0, 1, 2], [3]]
    assert group([], BatchCost()) == []


def test_rows_that_are_not_padded_share_batches_in_their_order() -> None:
    lengths = [[30, 10], [7, 3], [50, 1], [4, 4], [200, 0], [1, 1]]
    cost = BatchCost(limit=60, padded=False)
    assert group(lengths, cost) == [[0, 1], [2, 3], [4], [5]]
    assert group(lengths, cost, most=1) == [[i] for i in range(6)]
    assert group([[3]] * 5, BatchCost(padded=False)) == [[0, 1, 2, 3, 4]]


def test_a_batch_counts_the_tokens_that_it_computes_on() -> None:
    lengths = [[30, 10], [7, 3], [50, 1]]
    assert BatchCost().tokens(lengths) == 3 * (50 + 10) == padded_tokens(lengths)
    assert BatchCost(multiple=16).tokens(lengths) == 3 * (64 + 16)
    assert BatchCost(padded=False).tokens(lengths) == 101
    assert BatchCost(padded=False, multiple=16).tokens(lengths) == 48 + 32 + 80
