"""Decoding equals the teacher-forced model step by step, writes nothing but grids, and never sees the answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.arc import BOS, COLOURS, EOS, MAX_SIDE, PAD, ROW_END, VOCABULARY, Example, Grid, Pair, encode
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.data import collate
from trainables.atomic_lora.decoding import generate, grid_metrics
from trainables.atomic_lora.grammar import allowed
from trainables.atomic_lora.model import Champion

TINY = ChampionConfig(
    width=16, heads=2, feedforward=24, decoder_layers=2, context_width=8, context_heads=2, context_feedforward=16
)
torch.set_num_threads(1)


def _champion(seed: int = 0, row_end: float = 0.0, eos: float = 0.0) -> Champion:
    """An untrained model in fp64, biased towards ends of rows and of grids or away from them."""
    torch.manual_seed(seed)
    model = Champion(TINY).double().eval()
    with torch.no_grad():
        # spread the logits: near-uniform ones would test little
        model.head.weight *= 8.0
        model.head.bias[ROW_END] += row_end
        model.head.bias[EOS] += eos
    return model


def _grid(rng: np.random.Generator, height: int, width: int) -> Grid:
    return rng.integers(0, 10, (height, width)).astype(np.int8)


def _example(seed: int) -> Example:
    rng = np.random.default_rng(seed)
    pairs = [Pair(_grid(rng, *rng.integers(1, 6, 2)), _grid(rng, *rng.integers(1, 6, 2))) for _ in range(3)]
    return Example(tuple(pairs[: seed % 3]), pairs[2])


def _same(a: Grid | None, b: Grid | None) -> bool:
    return a is not None and b is not None and np.array_equal(a, b)


# ------------------------------------------------------------------------------------------------------ teacher-forced


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_stepwise_logits_equal_the_teacher_forced_ones(seed: int) -> None:
    model, examples = _champion(seed), [_example(seed), _example(seed + 1)]
    batch = collate(examples)
    full = model(batch)
    tokens, rows, columns = batch.target.unbind(1)
    caches = model.start_cache(batch.source, tokens.shape[1])
    context = model.context_encoder(batch.context)
    previous = torch.full_like(tokens[:, 0], BOS)
    for index in range(tokens.shape[1]):
        logits = model.step(previous, rows[:, index], columns[:, index], context, caches, index + 1)
        torch.testing.assert_close(logits, full[:, index], rtol=0, atol=1e-9)
        previous = tokens[:, index]


@torch.no_grad()
@pytest.mark.parametrize("bias", [{"row_end": 4.0}, {"row_end": 2.0, "eos": 2.0}, {}])
def test_an_answer_is_the_greedy_choice_at_every_step(bias: dict[str, float]) -> None:
    model, example = _champion(3, bias.get("row_end", 0.0), bias.get("eos", 0.0)), _example(5)
    answer = generate(model, [example])[0]
    assert answer is not None
    logits = model(collate([Example(example.context, Pair(example.query.input, answer))]))[0]
    tokens, rows, columns = encode(answer)
    width = np.where(rows == 0, 0, answer.shape[1])
    legal = allowed(*(torch.from_numpy(a) for a in (rows, columns, width)))
    assert logits.masked_fill(~legal, -torch.inf).argmax(-1).tolist() == tokens.tolist()


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=10, deadline=None)
def test_the_expected_output_is_never_read(seed: int, height: int, width: int) -> None:
    model, example = _champion(2, row_end=10.0, eos=10.0), _example(seed)
    other = _grid(np.random.default_rng(seed), height, width)
    nothing: Any = None
    for output in (other, nothing):
        asked = Example(example.context, Pair(example.query.input, output))
        assert _same(generate(model, [asked])[0], generate(model, [example])[0])


def test_neighbours_do_not_change_an_answer() -> None:
    model, examples = _champion(2, row_end=10.0, eos=10.0), [_example(seed) for seed in range(5)]
    together = generate(model, examples[::-1])
    for example, answer in zip(examples[::-1], together, strict=True):
        assert _same(answer, generate(model, [example])[0])


# ---------------------------------------------------------------------------------------------------------- the grammar


@given(st.integers(0, 10_000), st.floats(-2, 12), st.floats(6, 12))
@settings(max_examples=4, deadline=None)
def test_any_model_writes_a_valid_grid(seed: int, row_end: float, eos: float) -> None:
    for answer in generate(_champion(seed, row_end=row_end, eos=eos), [_example(seed), _example(seed + 1)]):
        assert answer is not None and answer.dtype == np.int8
        assert 1 <= min(answer.shape) and max(answer.shape) <= MAX_SIDE
        assert 0 <= answer.min() and answer.max() < COLOURS


@pytest.mark.parametrize(
    ("bias", "shape"),
    [
        ({"row_end": -1e6, "eos": -1e6}, (MAX_SIDE, MAX_SIDE)),
        ({"row_end": 1e6, "eos": -1e6}, (MAX_SIDE, 1)),
        ({"row_end": -1e6, "eos": 1e6}, (1, MAX_SIDE)),
        ({"row_end": 1e6, "eos": 1e6}, (1, 1)),
    ],
)
def test_the_model_decides_the_size(bias: dict[str, float], shape: tuple[int, int]) -> None:
    answer = generate(_champion(0, bias["row_end"], bias["eos"]), [_example(0)])[0]
    assert answer is not None and answer.shape == shape


def test_a_model_of_nothing_but_nan_still_ends() -> None:
    model = _champion()
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    answer = generate(model, [_example(0)])[0]
    assert answer is not None and max(answer.shape) <= MAX_SIDE


@given(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE))
def test_every_grid_and_only_grids_can_be_written(height: int, width: int) -> None:
    tokens, rows, columns = encode(np.zeros((height, width), np.int8))
    known = np.where(rows == 0, 0, width)
    table = allowed(*(torch.from_numpy(a) for a in (rows, columns, known)))
    assert table.shape == (len(tokens), VOCABULARY) and table[range(len(tokens)), tokens].all()
    assert not table[:, [BOS, PAD]].any()
    # in later rows nothing else than the next token's kind can stand, save that a row or the end may begin
    for token, row, column, choice in zip(tokens, rows, columns, table, strict=True):
        colours, row_end, eos = bool(choice[:COLOURS].all()), bool(choice[ROW_END]), bool(choice[EOS])
        assert colours == bool(choice[:COLOURS].any())
        if row == 0:
            assert (colours, row_end, eos) == (column < MAX_SIDE, column > 0, False)
        else:
            assert colours == (column < width and row < MAX_SIDE)
            assert row_end == (column == width) == (token == ROW_END)
            assert eos == (column == 0)


# -------------------------------------------------------------------------------------------------------------- metrics


def _query(before: list[list[int]], after: list[list[int]]) -> Example:
    return Example((), Pair(np.array(before, np.int8), np.array(after, np.int8)))


def _metrics(answer: list[list[int]] | None, example: Example) -> dict[str, float]:
    return grid_metrics(None if answer is None else np.array(answer, np.int8), example)


QUERY = _query([[1, 2], [3, 4]], [[1, 2], [3, 5]])


@pytest.mark.parametrize(
    ("answer", "grid", "cell", "size", "change"),
    [
        ([[1, 2], [3, 5]], 1.0, 1.0, 1.0, 1.0),
        ([[1, 2], [3, 4]], 0.0, 0.75, 1.0, 0.0),
        ([[9, 9], [9, 5]], 0.0, 0.25, 1.0, 1.0),
        ([[1, 2]], 0.0, 0.5, 0.0, 0.0),
        ([[1, 2, 0], [3, 5, 0], [0, 0, 0]], 0.0, 1.0, 0.0, 1.0),
        ([[1, 2, 3, 5]], 0.0, 0.5, 0.0, 0.0),
        (None, 0.0, 0.0, 0.0, 0.0),
    ],
    ids=["right", "copy", "change alone", "too small", "too large", "reshaped", "none"],
)
def test_an_answer_is_compared_cell_by_cell(
    answer: list[list[int]] | None, grid: float, cell: float, size: float, change: float
) -> None:
    assert _metrics(answer, QUERY) == {
        "grid": grid,
        "cell": cell,
        "size": size,
        "change_recall": change,
        "copy_grid": 0.0,
        "copy_cell": 0.75,
    }


def test_change_recall_is_nan_where_nothing_changes() -> None:
    metrics = _metrics([[1]], _query([[1]], [[1]]))
    assert (
        math.isnan(metrics["change_recall"]) and metrics["copy_grid"] == metrics["copy_cell"] == metrics["grid"] == 1.0
    )


def test_copying_a_larger_input_is_not_exact() -> None:
    metrics = _metrics([[1]], _query([[1, 2]], [[1]]))
    assert (metrics["copy_grid"], metrics["copy_cell"], metrics["grid"]) == (0.0, 1.0, 1.0)


def test_cells_outside_the_input_have_changed() -> None:
    metrics = _metrics([[1, 7]], _query([[1]], [[1, 2]]))
    assert (metrics["change_recall"], metrics["copy_cell"]) == (0.0, 0.5)
