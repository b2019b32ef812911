"""Mazes with one shortest path from start to goal; the answer is the maze with that path marked.

Rooms lie at odd coordinates of a square grid. A random spanning tree joins them, some more walls are opened, so that
most mazes have loops, and start and goal are chosen so that exactly one shortest path joins them. ``difficulty`` is the
number of steps of that path.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from trainables.puzzles.puzzles import Puzzles, hash_rows, random_keys

WALL, OPEN, START, GOAL, PATH = range(5)
TOKENS = 5
# share of the walls left by the spanning tree that are opened
LOOPS = 0.1
# mazes whose path has more steps than this times their side are never trained on, but measured as the harder ones
LONGEST_TRAINED = 2


def generate(side: int, count: int, rng: np.random.Generator) -> Puzzles:
    """Draw ``count`` mazes of ``side`` x ``side`` cells; ``side`` is odd and at least 5."""
    grids, answers, steps = zip(*(_maze(side, rng) for _ in range(count)), strict=True)
    inputs, targets = (np.stack(drawn).reshape(count, -1) for drawn in (grids, answers))
    difficulty, ids = np.array(steps, dtype=np.int32), np.zeros(count, dtype=np.int32)
    return Puzzles(inputs, targets, difficulty, classes(inputs, side), ids)


def shortest_paths(grid: np.ndarray, start: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return steps from ``start`` [S, S] (-1: not reached) and the number of shortest paths [S, S] in a maze."""
    steps, paths = np.full(grid.shape, -1), np.zeros(grid.shape, dtype=np.int64)
    steps[start], paths[start] = 0, 1
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for there in _neighbours(here):
            if grid[there] == WALL:
                continue
            if steps[there] < 0:
                steps[there] = steps[here] + 1
                queue.append(there)
            if steps[there] == steps[here] + 1:
                paths[there] += paths[here]
    return steps, paths


def classes(inputs: np.ndarray, side: int) -> np.ndarray:
    """Return a hash uint64 [N] of each maze uint8 [N, T] that turning, mirroring and swapping its ends keep."""
    grids = np.where(inputs == GOAL, START, inputs).reshape(-1, side, side)
    return np.min([hash_rows(_turn(grids, symmetry).reshape(len(grids), -1)) for symmetry in range(8)], axis=0)


def symmetries(side: int, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one of the 8 symmetries of the square for each of K positions: cells int64 [K, T], tokens int64 [K, 5].

    A maze under it has ``tokens[maze[cells[c]]]`` in cell ``c``; tokens stay what they are.
    """
    chosen = random_keys(seed, positions, 1)[:, 0] % np.uint64(8)
    square = np.arange(side * side).reshape(1, side, side)
    turned = np.concatenate([_turn(square, symmetry).reshape(1, -1) for symmetry in range(8)])
    return turned[chosen], np.tile(np.arange(TOKENS), (len(positions), 1))


def valid(inputs: np.ndarray, answers: np.ndarray, side: int) -> np.ndarray:
    """Return which answers uint8 [N, T] mark a path from start to goal of mazes uint8 [N, T], bool [N].

    It need not be the shortest, but nothing else may be marked. What is answered in cells that are not open in the
    maze does not count.
    """
    grids = inputs.reshape(-1, side, side)
    ends = (grids == START) | (grids == GOAL)
    marked = ends | ((grids == OPEN) & (answers.reshape(grids.shape) == PATH))
    neighbours = sum(_moved(marked, *step).astype(np.int8) for step in _STEPS)
    # two neighbours on the path, at its ends one: all that is marked is one path, and perhaps circles beside it
    simple = (~marked | (neighbours == np.where(ends, 1, 2))).all((1, 2))
    reached = grids == START
    while True:
        wider = marked & (reached | np.logical_or.reduce([_moved(reached, *step) for step in _STEPS]))
        if (wider == reached).all():
            return simple & (reached == marked).all((1, 2))
        reached = wider


_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def _moved(grids: np.ndarray, down: int, right: int) -> np.ndarray:
    # the outermost cells are walls, so what leaves one side and comes back at the other is never marked
    return np.roll(grids, (down, right), axis=(1, 2))


def _turn(grids: np.ndarray, symmetry: int) -> np.ndarray:
    turned = np.rot90(grids, symmetry % 4, axes=(1, 2))
    return turned.swapaxes(1, 2) if symmetry >= 4 else turned


def _maze(side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    while True:
        grid = _carve(side, rng)
        start = _room(side, rng)
        steps, paths = shortest_paths(grid, start)
        rooms = np.zeros_like(grid, dtype=bool)
        rooms[1::2, 1::2] = True
        ends = np.argwhere(rooms & (paths == 1) & (steps >= max(4, steps.max() // 2)))
        if not len(ends):
            continue
        y, x = (int(i) for i in ends[rng.integers(len(ends))])
        answer, here = grid.copy(), (y, x)
        while here != start:
            answer[here] = PATH
            # one shortest path to the goal: one neighbour that is a step nearer to the start
            here = next(n for n in _neighbours(here) if steps[n] == steps[here] - 1)
        for marked in (grid, answer):
            marked[start], marked[y, x] = START, GOAL
        return grid, answer, int(steps[y, x])


def _carve(side: int, rng: np.random.Generator) -> np.ndarray:
    grid = np.full((side, side), WALL, dtype=np.uint8)
    grid[1::2, 1::2] = OPEN
    start = _room(side, rng)
    path, visited = [start], {start}
    while path:
        y, x = path[-1]
        options = [
            (y + dy, x + dx)
            for dy, dx in ((-2, 0), (2, 0), (0, -2), (0, 2))
            if 0 < y + dy < side - 1 and 0 < x + dx < side - 1 and (y + dy, x + dx) not in visited
        ]
        if not options:
            path.pop()
            continue
        room = options[int(rng.integers(len(options)))]
        grid[(y + room[0]) // 2, (x + room[1]) // 2] = OPEN
        visited.add(room)
        path.append(room)
    rows, columns = np.indices(grid.shape)
    between = (rows + columns) % 2 == 1
    between[[0, -1]] = between[:, [0, -1]] = False
    grid[between & (grid == WALL) & (rng.random(grid.shape) < LOOPS)] = OPEN
    return grid


def _room(side: int, rng: np.random.Generator) -> tuple[int, int]:
    y, x = 1 + 2 * rng.integers((side - 1) // 2, size=2)
    return int(y), int(x)


def _neighbours(cell: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    # the outermost cells are walls, so no index leaves the grid
    y, x = cell
    return (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)
