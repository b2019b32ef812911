"""Where tokens of rows lie, and which rows attend together."""

from __future__ import annotations

import torch

from trainables.atomic_lora.layout import Layout, attention_groups

CPU = torch.device("cpu")


def test_rows_are_as_long_as_they_are_up_to_a_multiple() -> None:
    layout = Layout([3, 2, 4], multiple=2, padded=False, device=CPU)
    assert layout.rooms == [4, 2, 4] and layout.starts == [0, 4, 6]
    assert layout.place().tolist() == [0, 0, 0, 3, 1, 1, 2, 2, 2, 2]
    assert layout.row.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert layout.tokens().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    # padding lies where its row begins
    assert layout.index([10, 50, 20]).tolist() == [10, 11, 12, 10, 50, 51, 20, 21, 22, 23]


def test_padded_rows_are_all_as_long_as_a_multiple_above_the_longest() -> None:
    layout = Layout([3, 2, 5], multiple=2, padded=True, device=CPU)
    assert layout.rooms == [6, 6, 6] and layout.starts == [0, 6, 12]
    assert layout.place().tolist() == [0, 0, 0, 3, 3, 3, 1, 1, 3, 3, 3, 3, 2, 2, 2, 2, 2, 3]


def shapes(queries: Layout, keys: Layout | None) -> list[tuple[int, int, int, list[list[bool]] | None]]:
    groups = attention_groups(queries, keys)
    return [(g.rows, g.queries, g.keys, None if g.mask is None else g.mask.tolist()) for g in groups]


def test_neighbours_of_equal_lengths_attend_together() -> None:
    queries, keys = Layout([2, 2, 3, 3], 1, False, CPU), Layout([5, 5, 5, 5], 1, False, CPU)
    assert shapes(queries, keys) == [(2, 2, 5, None), (2, 3, 5, None)]
    assert shapes(queries, None) == [(2, 2, 2, None), (2, 3, 3, None)]


def test_padding_is_not_attended_to() -> None:
    queries, keys = Layout([2, 4], 3, False, CPU), Layout([3, 1], 3, False, CPU)
    assert shapes(queries, keys) == [(1, 3, 3, None), (1, 6, 3, [[True, False, False]])]
    # to themselves rows attend causally, which hides what lies behind their ends
    assert shapes(queries, None) == [(1, 3, 3, None), (1, 6, 6, None)]
    padded = Layout([3, 1], 2, True, CPU)
    assert shapes(padded, padded) == [(2, 4, 4, [[True, True, True, False], [True, False, False, False]])]
