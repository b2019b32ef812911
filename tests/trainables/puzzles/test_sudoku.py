"""Sudoku: unique solutions checked by another solver, measured difficulty, symmetries and the split."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trainables.puzzles import sudoku
from trainables.puzzles.kinds import Kind, turn, turn_back
from trainables.puzzles.puzzles import Puzzles, collect

# a 17-clue puzzle that singles solve, and one ("AI Escargot", Inkala, 2006) that needs guesses
ROYLE = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
ESCARGOT = "100007090030020008009600500005300900010080002600004000300000010040000007007000300"
SOLUTION = "693784512487512936125963874932651487568247391741398625319475268856129743274836159"


def _grid(text: str) -> np.ndarray:
    return np.array([list(map(int, text))], dtype=np.uint8)


def _all_solutions(grid: np.ndarray, side: int) -> list[list[int]]:
    """Plain backtracking over the rules themselves: the oracle."""
    height, width = sudoku.BOXES[side]
    cells = grid.tolist()

    def fits(cell: int, digit: int) -> bool:
        row, column = divmod(cell, side)
        return all(
            cells[r * side + c] != digit
            for r, c in itertools.product(range(side), repeat=2)
            if r == row or c == column or (r // height, c // width) == (row // height, column // width)
        )

    if 0 not in cells:
        return [cells]
    cell, found = cells.index(0), []
    for digit in range(1, side + 1):
        if fits(cell, digit):
            found += _all_solutions(np.array([*cells[:cell], digit, *cells[cell + 1 :]]), side)
    return found


@pytest.fixture(scope="module", params=[4, 6, 9])
def drawn(request: pytest.FixtureRequest) -> tuple[int, Puzzles]:
    return request.param, sudoku.generate(request.param, 20, np.random.default_rng(1))


def test_every_puzzle_has_one_solution(drawn: tuple[int, Puzzles]) -> None:
    side, puzzles = drawn
    found, _, solutions = sudoku.solve(puzzles.inputs, side)
    assert (found == 1).all() and (solutions == puzzles.targets).all()
    given = puzzles.inputs > 0
    assert (puzzles.inputs[given] == puzzles.targets[given]).all() and not given.all(1).any()
    units = puzzles.targets[:, sudoku.geometry(side).units]
    assert (np.sort(units, axis=2) == np.arange(1, side + 1)).all()


@pytest.mark.parametrize("side", [4, 6])
def test_another_solver_agrees(side: int) -> None:
    puzzles = sudoku.generate(side, 12, np.random.default_rng(2))
    for given, answer in zip(puzzles.inputs, puzzles.targets, strict=True):
        assert _all_solutions(given, side) == [answer.tolist()]


def test_a_known_puzzle_and_one_with_many_solutions() -> None:
    found, guesses, solution = sudoku.solve(_grid(ROYLE), 9)
    assert found[0] == 1 and (solution == _grid(SOLUTION)).all()
    assert guesses[0] == 0
    found, guesses, _ = sudoku.solve(_grid(ESCARGOT), 9)
    assert found[0] == 1 and guesses[0] > 5
    without_a_clue = _grid(ROYLE.replace("1", "0", 1))
    assert sudoku.solve(without_a_clue, 9)[0][0] == 2
    contradiction = _grid("11" + ROYLE[2:])
    assert sudoku.solve(contradiction, 9)[0][0] == 0


def test_difficulty_counts_guesses() -> None:
    easy = _grid(SOLUTION).copy()
    easy[0, ::9] = 0
    assert sudoku.solve(easy, 9)[1][0] == 0
    puzzles = sudoku.generate(9, 30, np.random.default_rng(3))
    assert (puzzles.difficulty == sudoku.solve(puzzles.inputs, 9)[1]).all()
    assert puzzles.difficulty.min() == 0 and puzzles.difficulty.max() > 3


def test_a_puzzle_does_not_depend_on_its_company_in_the_solver() -> None:
    puzzles = sudoku.generate(9, 10, np.random.default_rng(4))
    alone = [sudoku.solve(puzzles.inputs[i : i + 1], 9)[1][0] for i in range(10)]
    assert alone == puzzles.difficulty.tolist()


def test_the_seed_decides() -> None:
    first, again, other = (sudoku.generate(6, 5, np.random.default_rng(seed)).inputs for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def test_symmetries_keep_the_class_and_the_uniqueness(drawn: tuple[int, Puzzles]) -> None:
    side, puzzles = drawn
    positions = np.arange(len(puzzles))
    kind = Kind(f"sudoku{side}", side)
    inputs, targets = kind.augment(puzzles.inputs, puzzles.targets, 5, positions)
    assert (inputs != puzzles.inputs).any(1).mean() > 0.9
    assert (sudoku.classes(inputs, side) == puzzles.classes).all()
    found, _, solutions = sudoku.solve(inputs, side)
    assert (found == 1).all() and (solutions == targets).all()
    # each row by its own position, not by its place in the call
    some = kind.augment(puzzles.inputs[7:9], puzzles.targets[7:9], 5, positions[7:9])
    assert (some[0] == inputs[7:9]).all() and (some[1] == targets[7:9]).all()


def test_classes_tell_9x9_puzzles_apart() -> None:
    puzzles = sudoku.generate(9, 30, np.random.default_rng(6))
    assert len(np.unique(puzzles.classes)) == 30
    # one clue moved to another blank cell of the same grid is another puzzle
    changed = puzzles.inputs.copy()
    for row, answer in zip(changed, puzzles.targets, strict=True):
        blank, given = np.flatnonzero(row == 0)[0], np.flatnonzero(row)[0]
        row[blank], row[given] = answer[blank], 0
    assert (sudoku.classes(changed, 9) != puzzles.classes).all()


@pytest.mark.parametrize("side", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_training_and_held_out_puzzles_are_disjoint_up_to_symmetry(side: int) -> None:
    kind = Kind(f"sudoku{side}", side)
    train, held_out, harder = collect(kind.generate, 60, 8, 0, kind.harder)
    assert (len(train), len(held_out)) == (60, 8)
    assert len(np.unique(train.inputs, axis=0)) == 60
    shown = [kind.augment(train.inputs, train.targets, seed, np.arange(60))[0] for seed in range(3)]
    classes = sudoku.classes(np.concatenate(shown), side)
    assert not set(classes.tolist()) & set(held_out.classes.tolist())
    # nor does another seed train on them
    other, *_ = collect(kind.generate, 60, 1, 1, kind.harder)
    assert not set(other.classes.tolist()) & set(held_out.classes.tolist())
    givens = [(part.inputs != 0).sum(1) for part in (train, held_out, harder)]
    assert min(givens[0].min(), givens[1].min()) >= sudoku.FEWEST_TRAINED.get(side, 0)
    assert (givens[2] < sudoku.FEWEST_TRAINED.get(side, 0)).all()


def test_what_a_symmetry_turns_is_turned_back() -> None:
    for kind in (Kind("sudoku6", 6), Kind("maze", 9)):
        drawn = kind.generate(20, np.random.default_rng(3))
        symmetry = kind.symmetries(7, np.arange(20))
        assert symmetry is not None and kind.symmetries(7, np.arange(20, 40)) is not None
        turned = turn(drawn.targets, *symmetry)
        assert (turned != drawn.targets).any(1).sum() > 10 and (turn_back(turned, *symmetry) == drawn.targets).all()


def test_running_out_of_puzzles_is_said() -> None:
    few = sudoku.generate(4, 6, np.random.default_rng(0))
    with pytest.raises(ValueError, match="There are only about"):
        collect(lambda count, rng: few, 100, 10, 0, Kind("sudoku4", 4).harder)
