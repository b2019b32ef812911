"""Datasets, the stream of training puzzles, and the majority baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.puzzles import mazes, sudoku
from trainables.puzzles.kinds import KINDS, kind_of
from trainables.puzzles.puzzles import Puzzles
from trainables.puzzles.shards import Plan
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import Dataset, Stream, load_dataset

CONFIG = ReasonerConfig(train_puzzles=50, held_out_puzzles=10, maze_side=9)


@pytest.fixture(scope="module")
def sudoku4() -> Dataset:
    return load_dataset("sudoku4", CONFIG)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "arc"])
def test_datasets_hold_what_was_asked_for(name: str) -> None:
    dataset = load_dataset(name, replace(CONFIG, train_puzzles=12, held_out_puzzles=3))
    assert (len(dataset.train), len(dataset.held_out)) == (12, 3)
    assert not set(dataset.train.classes.tolist()) & set(dataset.held_out.classes.tolist())
    for puzzles in (dataset.train, dataset.held_out):
        given = ~dataset.kind.asked(puzzles.inputs)
        assert (puzzles.inputs[given] == puzzles.targets[given]).all()
        assert puzzles.targets.max() < dataset.vocabulary


def test_sudoku_with_few_givens_are_dug_down_to_them_in_memory_and_from_shards(tmp_path: Path) -> None:
    few = replace(CONFIG, givens=0.3, train_puzzles=60, held_out_puzzles=8)
    plan = Plan(kind_of("sudoku6", 9, 10, few.givens), 0, shard_size=64)
    drawn = load_dataset("sudoku6", few)
    folder = Folder(tmp_path)
    digits = plan.write(folder, 0)
    assert len(digits) == 16 and plan.read(folder, 0).inputs.shape == (64, 36)
    for puzzles in (drawn.train, plan.read(folder, 0)):
        givens = (puzzles.inputs != 0).sum(1)
        # dug down to 8 to 10 of 36, but for those that are minimal before
        assert (givens <= 10).mean() > 0.5 and givens.max() <= 13
    with pytest.raises(InputError, match="at most 10 givens"):
        Plan(kind_of("sudoku6", 9, 10), 0, shard_size=64).read(folder, 0)


def test_fingerprints_tell_data_apart(sudoku4: Dataset) -> None:
    again = load_dataset("sudoku4", replace(CONFIG, lr=0.5))
    assert again is sudoku4, "what has nothing to do with the data makes no other data"
    other = load_dataset("sudoku4", CONFIG, seed=1)
    assert sudoku4.fingerprint != other.fingerprint and len(other.fingerprint) == 16


def test_an_unknown_dataset_and_too_many_puzzles_are_refused() -> None:
    with pytest.raises(InputError, match=r"--dataset 'sudoku5' is not one of .*; did you mean 'sudoku"):
        load_dataset("sudoku5", CONFIG)
    with pytest.raises(InputError, match=r"maze: There are only about .* Lower train_puzzles \(300\)"):
        load_dataset("maze", replace(CONFIG, maze_side=5, train_puzzles=300))


def test_a_position_of_the_stream_is_what_it_is_whoever_asks(sudoku4: Dataset) -> None:
    positions = np.arange(40, 130)
    together = Stream(sudoku4, seed=3).at(positions)
    stream = Stream(sudoku4, seed=3)
    parts = [stream.at(part) for part in np.split(positions, [1, 17, 60])]
    for whole, split in zip(together, zip(*parts, strict=True), strict=True):
        assert (whole == np.concatenate(split)).all()
    other = Stream(sudoku4, seed=4).at(positions)
    assert (together[0] != other[0]).any()


def test_a_pass_shows_every_puzzle_once_under_new_symmetries(sudoku4: Dataset) -> None:
    stream = Stream(sudoku4, seed=0)
    first, second = (stream.at(np.arange(start, start + 50)) for start in (0, 50))
    for inputs, targets, asked, _ in (first, second):
        assert sorted(sudoku.classes(inputs, 4)) == sorted(sudoku4.train.classes)
        assert (asked == (inputs == 0)).all() and (sudoku.solve(inputs, 4)[2] == targets).all()
    assert not {row.tobytes() for row in first[0]} == {row.tobytes() for row in second[0]}


def test_hints_show_a_share_of_the_asked_cells(sudoku4: Dataset) -> None:
    stream, positions = Stream(sudoku4, seed=0), np.arange(400)
    plain, hinted = stream.at(positions), stream.at(positions, hints=0.4)
    assert (plain[1] == hinted[1]).all() and (plain[2] == hinted[2]).all()
    shown = (hinted[0] != plain[0])[plain[2]]
    assert shown.mean() == pytest.approx(0.4, abs=0.02)
    assert (hinted[0][plain[2]][shown] == plain[1][plain[2]][shown]).all()


def test_the_majority_answers_every_asked_cell_with_the_commonest_token() -> None:
    dataset = load_dataset("maze", CONFIG)
    token, exact = dataset.majority()
    asked = dataset.held_out.inputs == mazes.OPEN
    never_a_path = (dataset.held_out.targets == mazes.OPEN)[asked].mean()
    assert token == pytest.approx(never_a_path) and 0.5 < token < 1.0 and exact == 0.0


def test_arc_puzzles_are_told_apart_by_task_and_symmetry() -> None:
    dataset = load_dataset("arc", replace(CONFIG, arc_side=5))
    assert dataset.rules % 8 == 0 and dataset.cells == 25 and dataset.vocabulary == 11
    assert (dataset.held_out.ids % 8 == 0).all() and set(dataset.held_out.ids) <= set(dataset.train.ids)
    stream = Stream(dataset, seed=0)
    inputs, targets, asked, ids = stream.at(np.arange(len(dataset.train)))
    assert asked.all() and sorted(ids) == sorted(dataset.train.ids)
    shown = {(i.tobytes(), t.tobytes()) for i, t in zip(inputs, targets, strict=True)}
    tests = {(i.tobytes(), t.tobytes()) for i, t in zip(dataset.held_out.inputs, dataset.held_out.targets, strict=True)}
    assert not shown & tests
    # the views of one demonstration: each under its own rule, as large as the grid turned
    one = dataset.train.take(dataset.train.ids < 8)
    sizes = {rule: (one.targets[one.ids == rule] < 10).sum(1).tolist() for rule in range(8)}
    assert len(set(map(tuple, sizes.values()))) == 1


def test_of_arc_no_view_has_the_input_of_a_test_pair_and_what_is_left_out_is_counted() -> None:
    dataset = load_dataset("arc", replace(CONFIG, arc_side=10))

    def inputs(puzzles: Puzzles) -> set[tuple[int, bytes]]:
        return {(int(rule) // 8, grid.tobytes()) for rule, grid in zip(puzzles.ids, puzzles.inputs, strict=True)}

    tests, train = inputs(dataset.held_out), inputs(dataset.train)
    assert tests and not tests & train
    # both of its demonstrations are the test pair, turned
    assert dataset.left_out["4522001f"] == {"held_out_views": 16}
