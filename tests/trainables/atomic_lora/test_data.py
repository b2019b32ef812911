"""Padded batches: what is in them, where, and how long a context may get."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.arc import PAD, Example, Pair, decode, encode, grid_tokens
from trainables.atomic_lora.data import CONTEXT_TOKENS, collate, example_tokens


def _pair(*sides: int) -> Pair:
    rng = np.random.default_rng(list(sides))
    grids = [rng.integers(0, 10, sides[i : i + 2]).astype(np.int8) for i in (0, 2)]
    return Pair(*grids)


SMALL = Example((_pair(2, 3, 1, 1), _pair(1, 1, 2, 2)), _pair(2, 2, 3, 4))
LARGE = Example((_pair(4, 4, 4, 4),), _pair(5, 5, 6, 6))


def test_rows_are_padded_at_their_end() -> None:
    batch = collate([SMALL, LARGE])
    assert batch.source.shape == (2, 3, 31) and batch.target.shape == (2, 3, 43)
    assert batch.context.shape == (2, 2, 4, 42)
    for tensor, pairs in ((batch.source, "input"), (batch.target, "output")):
        for row, example in enumerate((SMALL, LARGE)):
            grid = getattr(example.query, pairs)
            length = grid_tokens(grid)
            assert np.array_equal(tensor[row, :, :length].numpy(), np.stack(encode(grid)))
            assert (tensor[row, 0, length:] == PAD).all() and (tensor[row, 1:, length:] == 0).all()


def test_a_context_pair_holds_both_grids_and_their_roles() -> None:
    batch = collate([SMALL, LARGE])
    pair = SMALL.context[0]
    before, after = grid_tokens(pair.input), grid_tokens(pair.output)
    tokens, roles = batch.context[0, 0, 0], batch.context[0, 0, 3]
    shown = decode(tokens[:before].tolist()), decode(tokens[before : before + after].tolist())
    assert shown[0] is not None and np.array_equal(shown[0], pair.input)
    assert shown[1] is not None and np.array_equal(shown[1], pair.output)
    assert roles[: before + after].tolist() == [0] * before + [1] * after
    assert (tokens[before + after :] == PAD).all()
    # LARGE has no second pair
    assert (batch.context[1, 1, 0] == PAD).all()


def test_an_example_without_context_still_has_a_place_for_it() -> None:
    assert (collate([Example((), _pair(1, 1, 1, 1))]).context[:, :, 0] == PAD).all()


def test_a_third_context_pair_is_not_read() -> None:
    three = Example((*SMALL.context, SMALL.context[0]), SMALL.query)
    assert torch.equal(collate([three]).context, collate([SMALL]).context)


sides = st.integers(1, 30)


@given(sides, sides, sides, sides)
def test_a_long_context_pair_is_read_at_every_nth_token(a: int, b: int, c: int, d: int) -> None:
    pair = Pair(np.ones((a, b), np.int8), np.ones((c, d), np.int8))
    total = grid_tokens(pair.input) + grid_tokens(pair.output)
    context = collate([Example((pair,), SMALL.query)]).context[0, 0]
    real = context[:, context[0] != PAD]
    # both grids start with their first token, so rounding up may add one
    assert real.shape[1] <= CONTEXT_TOKENS + 1
    stride = -(-total // CONTEXT_TOKENS)
    expected = [np.stack(encode(grid))[:, ::stride] for grid in (pair.input, pair.output)]
    assert np.array_equal(real[:3].numpy(), np.concatenate(expected, axis=1))
    assert (stride == 1) == (total <= CONTEXT_TOKENS)


@given(sides, sides, sides, sides)
def test_counted_tokens_are_those_of_the_batch(a: int, b: int, c: int, d: int) -> None:
    pair = Pair(np.ones((a, b), np.int8), np.ones((c, d), np.int8))
    for example in (Example((pair, SMALL.context[1]), SMALL.query), Example((), pair)):
        batch = collate([example, LARGE])
        count = sum(int((t[0].movedim(-2, 0)[0] != PAD).sum()) for t in (batch.source, batch.context, batch.target))
        assert example_tokens(example) == count
