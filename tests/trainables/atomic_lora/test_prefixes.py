"""Outputs of the base's first layers: computed once for each item, equal to computing them anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.atomic_lora.layout import Layout
from trainables.atomic_lora.prefixes import Prefixes
from trainables.pack.batching import BatchCost

CPU = torch.device("cpu")


class Squares:
    """Stands for the first layers: [C, tokens] -> [tokens, 2], and counts the sequences that it was given."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, tokens: Tensor, layout: Layout) -> Tensor:
        assert tokens.shape == (2, sum(layout.rooms))
        self.seen += len(layout.lengths)
        return torch.stack([tokens[0], tokens[1] ** 2], -1).float()


def encode(item: str) -> np.ndarray:
    return np.array([[int(c) for c in item], [int(c) for c in item]], dtype=np.int64)


def prefixes(begin: Squares, tokens: int = 100, padded: bool = False) -> Prefixes[str]:
    cost = BatchCost(overhead=2, limit=6, padded=padded, multiple=2)
    return Prefixes(begin, encode, str, 8 * tokens, CPU, cost)


def expect(kept: Prefixes[str], items: list[str]) -> None:
    """Ask for items, in both layouts, and compare."""
    for padded in (False, True):
        layout = Layout([len(item) for item in items], 3, padded, CPU)
        x = kept.get(items, layout)
        assert x.shape == (sum(layout.rooms), 2)
        for row, item in zip(x.split(layout.rooms), items, strict=True):
            assert torch.equal(row[: len(item)], torch.tensor([[int(c), int(c) ** 2] for c in item]).float())


@pytest.mark.parametrize("padded", [False, True])
def test_each_distinct_item_is_computed_once(padded: bool) -> None:
    begin = Squares()
    kept = prefixes(begin, padded=padded)
    for _ in range(2):
        expect(kept, ["12", "3", "12", "4567"])
        assert begin.seen == 3
    expect(kept, ["89", "3"])
    assert begin.seen == 4


def test_a_full_buffer_is_emptied_and_fills_anew() -> None:
    begin = Squares()
    kept = prefixes(begin, tokens=6)
    expect(kept, ["123"])
    expect(kept, ["123", "4567"])
    assert begin.seen == 3
    expect(kept, ["123"])
    assert begin.seen == 3


def test_a_batch_above_the_limit_gets_room() -> None:
    begin = Squares()
    kept = prefixes(begin, tokens=3)
    expect(kept, ["12"])
    for _ in range(2):
        expect(kept, ["1234", "567", "89"])
    assert begin.seen == 4


def test_without_a_limit_everything_is_computed_whenever_it_is_asked_for() -> None:
    begin = Squares()
    kept = prefixes(begin, tokens=0)
    expect(kept, ["12", "12"])
    assert begin.seen == 4


@pytest.mark.parametrize(("limit", "trained"), [(1000, False), (0, True)])
def test_gradients_reach_only_what_is_not_kept(limit: int, trained: bool) -> None:
    weight = torch.ones(1, requires_grad=True)
    kept: Prefixes[str] = Prefixes(
        lambda tokens, layout: tokens.t().float() * weight, encode, str, limit, CPU, BatchCost()
    )
    assert kept.get(["12"], Layout([2], 1, False, CPU)).requires_grad is trained


def test_what_failed_is_computed_again() -> None:
    begin = Squares()
    kept = prefixes(begin)
    with pytest.raises(ValueError, match="invalid literal"):
        kept.get(["12", "x"], Layout([2, 1], 1, False, CPU))
    expect(kept, ["12"])
