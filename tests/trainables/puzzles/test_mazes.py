"""Mazes: one shortest path, marked; symmetries and the split."""

from __future__ import annotations

import numpy as np
import pytest

from trainables.puzzles import mazes
from trainables.puzzles.kinds import Kind
from trainables.puzzles.puzzles import Puzzles, collect

SIDE = 11
KIND = Kind("maze", SIDE)


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
    inputs, targets = KIND.augment(drawn.inputs, drawn.targets, 3, np.arange(60))
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
    kind = Kind("maze", 9)
    train, held_out, harder = collect(kind.generate, 60, 12, 0, kind.harder)
    shown = np.concatenate([kind.augment(train.inputs, train.targets, seed, np.arange(60))[0] for seed in range(8)])
    assert not set(mazes.classes(shown, 9).tolist()) & set(held_out.classes.tolist())
    assert not {row.tobytes() for row in shown} & {row.tobytes() for row in held_out.inputs}
    assert max(train.difficulty.max(), held_out.difficulty.max()) <= 18 < harder.difficulty.min()


def test_a_longer_path_is_valid_and_anything_else_that_is_marked_is_not() -> None:
    # two ways around a block of walls: the upper one is shorter
    maze = """
        #########
        #S.....G#
        #.#####.#
        #.#...#.#
        #.#.#.#.#
        #.#...#.#
        #.#####.#
        #.......#
        #########"""
    walls, marked = (_cells(maze, text) for text in (maze, maze.replace("S.....G", "S*****G")))
    kind = Kind("maze", 9)
    around = [np.ravel_multi_index((y, x), (9, 9)) for y in range(1, 8) for x in range(1, 8) if y == 7 or x in (1, 7)]
    longer = np.where(np.isin(np.arange(81), around) & (walls == mazes.OPEN), mazes.PATH, walls)
    both, gap, circle, noise = marked.copy(), marked.copy(), marked.copy(), marked.copy()
    both[around] = gap[12] = noise[0] = mazes.PATH
    gap[12] = mazes.OPEN
    ring = [np.ravel_multi_index((y, x), (9, 9)) for y in range(3, 6) for x in range(3, 6) if (y, x) != (4, 4)]
    circle[ring] = mazes.PATH
    answers = np.stack([marked, longer, both, gap, circle, noise, walls]).astype(np.uint8)
    found = kind.valid(np.tile(walls, (len(answers), 1)), answers)
    # a wall that is answered as path was not asked for
    assert found is not None and found.tolist() == [True, True, False, False, False, True, False]
    drawn = kind.generate(30, np.random.default_rng(2))
    right, unmarked = kind.valid(drawn.inputs, drawn.targets), kind.valid(drawn.inputs, drawn.inputs)
    assert right is not None and right.all() and unmarked is not None and not unmarked.any()


def _cells(maze: str, text: str) -> np.ndarray:
    tokens = {"#": mazes.WALL, ".": mazes.OPEN, "S": mazes.START, "G": mazes.GOAL, "*": mazes.PATH}
    return np.array([tokens[c] for c in "".join(text.split())], dtype=np.uint8)
