"""Mazes: one shortest path, marked; symmetries and the split."""

from __future__ import annotations

import numpy as np
import pytest

from trainables.puzzles import mazes
from trainables.puzzles.puzzles import Puzzles, collect

SIDE = 11


@pytest.fixture(scope="module")
def drawn() -> Puzzles:
    return mazes.generate(SIDE, 60, np.random.default_rng(0))


def _simple_paths(grid: np.ndarray, here: tuple[int, int], goal: tuple[int, int], longest: int) -> list[int]:
    """Lengths of all simple paths of at most so many steps: the oracle."""
    if here == goal:
        return [0]
    if longest == 0:
        return []
    grid = grid.copy()
    grid[here] = mazes.WALL
    found = []
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        there = here[0] + dy, here[1] + dx
        if grid[there] != mazes.WALL:
            found += [1 + length for length in _simple_paths(grid, there, goal, longest - 1)]
    return found


def _place(grid: np.ndarray, token: int) -> tuple[int, int]:
    (place,) = np.argwhere(grid == token)
    return int(place[0]), int(place[1])


def test_one_path_is_shortest_and_it_is_the_one_that_is_marked(drawn: Puzzles) -> None:
    for given, answer, steps in zip(drawn.inputs, drawn.targets, drawn.difficulty, strict=True):
        grid = given.reshape(SIDE, SIDE)
        start, goal = _place(grid, mazes.START), _place(grid, mazes.GOAL)
        assert _simple_paths(grid, start, goal, int(steps)) == [steps]
        marked = np.where(answer.reshape(SIDE, SIDE) == mazes.OPEN, mazes.WALL, answer.reshape(SIDE, SIDE))
        assert _simple_paths(marked, start, goal, SIDE * SIDE) == [steps]
        assert (answer == mazes.PATH).sum() == steps - 1
        assert (np.where(answer == mazes.PATH, mazes.OPEN, answer) == given).all()


def test_walls_close_the_maze_and_most_have_loops(drawn: Puzzles) -> None:
    grids = drawn.inputs.reshape(-1, SIDE, SIDE)
    assert (grids[:, [0, -1]] == mazes.WALL).all() and (grids[:, :, [0, -1]] == mazes.WALL).all()
    rooms = ((SIDE - 1) // 2) ** 2
    # a spanning tree joins its rooms by one passage less than there are rooms
    assert ((grids != mazes.WALL).sum((1, 2)) > 2 * rooms - 1).mean() > 0.5


def test_symmetries_keep_the_class(drawn: Puzzles) -> None:
    inputs, targets = mazes.augment(drawn.inputs, drawn.targets, SIDE, 3, np.arange(60))
    assert (inputs != drawn.inputs).any(1).sum() > 40
    assert (mazes.classes(inputs, SIDE) == drawn.classes).all()
    assert (np.where(targets == mazes.PATH, mazes.OPEN, targets) == inputs).all()
    swapped = np.where(inputs == mazes.START, mazes.GOAL, np.where(inputs == mazes.GOAL, mazes.START, inputs))
    assert (mazes.classes(swapped.astype(np.uint8), SIDE) == drawn.classes).all()
    assert len(np.unique(drawn.classes)) == 60
    moved = drawn.inputs.copy()
    moved[:, SIDE + 1] = np.where(moved[:, SIDE + 1] == mazes.OPEN, mazes.WALL, mazes.OPEN)
    assert not set(mazes.classes(moved, SIDE).tolist()) & set(drawn.classes.tolist())


def test_training_and_held_out_mazes_are_disjoint_up_to_symmetry() -> None:
    train, held_out = collect(lambda count, rng: mazes.generate(9, count, rng), 60, 12, seed=0)
    shown = np.concatenate([mazes.augment(train.inputs, train.targets, 9, seed, np.arange(60))[0] for seed in range(8)])
    assert not set(mazes.classes(shown, 9).tolist()) & set(held_out.classes.tolist())
    assert not {row.tobytes() for row in shown} & {row.tobytes() for row in held_out.inputs}
