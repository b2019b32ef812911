"""Outputs of the base's first layers: computed once for each item, equal to computing them anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.atomic_lora.prefixes import Prefixes
from trainables.pack.batching import BatchCost

PADDING = 13


class Squares:
    """Stands for the first layers: [N, C, T] -> [N, T, 2], and counts the sequences that it was given."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, sequences: Tensor) -> Tensor:
        assert (sequences[:, 0] != PADDING).any(1).all()
        self.seen += len(sequences)
        return torch.stack([sequences[:, 0], sequences[:, 1] ** 2], -1).float()


def encode(item: str) -> np.ndarray:
    return np.array([[int(c) for c in item], [int(c) for c in item]], dtype=np.int64)


def prefixes(begin: Squares, tokens: int = 100, multiple: int = 1) -> Prefixes[str]:
    limit = 8 * tokens
    return Prefixes(begin, encode, str, torch.device("cpu"), limit, multiple, BatchCost(overhead=2, limit=6))


def expect(found: tuple[Tensor, Tensor], items: list[str], width: int) -> None:
    x, real = found
    assert x.shape == (len(items), width, 2) and real.shape == (len(items), width)
    for row, mask, item in zip(x, real, items, strict=True):
        values = torch.tensor([[int(c), int(c) ** 2] for c in item]).float()
        assert torch.equal(row[: len(item)], values) and not row[len(item) :].any()
        assert mask.tolist() == [i < len(item) for i in range(width)]


@pytest.mark.parametrize(("multiple", "width"), [(1, 4), (3, 6)])
def test_each_distinct_item_is_computed_once(multiple: int, width: int) -> None:
    begin = Squares()
    kept = prefixes(begin, multiple=multiple)
    items = ["12", "3", "12", "4567"]
    for _ in range(2):
        expect(kept.get(items), items, width)
        assert begin.seen == 3
    expect(kept.get(["89", "3"]), ["89", "3"], 2 if multiple == 1 else 3)
    assert begin.seen == 4


def test_a_full_buffer_is_emptied_and_fills_anew() -> None:
    begin = Squares()
    kept = prefixes(begin, tokens=6)
    expect(kept.get(["123"]), ["123"], 3)
    expect(kept.get(["123", "4567"]), ["123", "4567"], 4)
    assert begin.seen == 3
    expect(kept.get(["123"]), ["123"], 3)
    assert begin.seen == 3


def test_a_batch_above_the_limit_gets_room() -> None:
    begin = Squares()
    kept = prefixes(begin, tokens=3)
    items = ["1234", "567", "89"]
    expect(kept.get(["12"]), ["12"], 2)
    expect(kept.get(items), items, 4)
    expect(kept.get(items), items, 4)
    assert begin.seen == 4


def test_no_gradient_reaches_what_is_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    kept: Prefixes[str] = Prefixes(
        lambda s: s.transpose(1, 2).float() * weight, encode, str, torch.device("cpu"), limit=1000
    )
    assert not kept.get(["12"])[0].requires_grad


def test_what_failed_is_computed_again() -> None:
    begin = Squares()
    kept = prefixes(begin)
    with pytest.raises(ValueError, match="invalid literal"):
        kept.get(["12", "x"])
    expect(kept.get(["12"]), ["12"], 2)
