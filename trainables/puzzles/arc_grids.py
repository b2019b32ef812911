"""ARC tasks as puzzles: a grid in, a grid out, and which task under which symmetry as the puzzle's id.

As in "Hierarchical Reasoning Model" (Wang et al., 2025): a task is known to the model by a learned prefix alone, so a
task under each of the 8 symmetries is a rule of its own. Training puzzles are the demonstrations under all of them,
held-out puzzles the official test pairs as they are. Grids lie in the upper left corner of a square, the rest is
``OUTSIDE``. Colours are not permuted.
"""

from __future__ import annotations

import numpy as np

from trainables.arc import COLOURS, Grid, Pair, dihedral, grid_key, load_tasks
from trainables.puzzles.puzzles import Puzzles, hash_rows

OUTSIDE = COLOURS
TOKENS = COLOURS + 1
SYMMETRIES = 8


def load(side: int) -> tuple[Puzzles, Puzzles, dict[str, dict[str, int]]]:
    """Return the training and the held-out puzzles of all tasks whose grids have sides of at most ``side``.

    Training puzzles with the input of a test pair of their task, under the same or another symmetry, are left out; how
    many, and how many demonstrations `load_tasks` leaves out, comes third, by task. ``difficulty`` is the number of
    cells of the output.
    """
    train: list[tuple[Pair, int]] = []
    held_out: list[tuple[Pair, int]] = []
    left_out: dict[str, dict[str, int]] = {}
    fitting = [
        task
        for task in load_tasks().values()
        if max(max(grid.shape) for pair in (*task.train, *task.test) for grid in (pair.input, pair.output)) <= side
    ]
    for number, task in enumerate(fitting):
        first = SYMMETRIES * number
        held_out += [(pair, first) for pair in task.test]
        tests = {grid_key(_turned(pair, symmetry).input) for pair in task.test for symmetry in range(SYMMETRIES)}
        views = [(_turned(pair, symmetry), first + symmetry) for pair in task.train for symmetry in range(SYMMETRIES)]
        shown = [(pair, rule) for pair, rule in views if grid_key(pair.input) not in tests]
        train += shown
        counts = {**task.left_out, "held_out_views": len(views) - len(shown)}
        left_out[task.id] = {reason: count for reason, count in counts.items() if count}
    return _puzzles(train, side), _puzzles(held_out, side), {task_id: own for task_id, own in left_out.items() if own}


def _puzzles(pairs: list[tuple[Pair, int]], side: int) -> Puzzles:
    inputs, targets = (
        np.stack([_square(grid, side) for grid in grids])
        for grids in zip(*((p.input, p.output) for p, _ in pairs), strict=True)
    )
    ids = np.array([rule for _, rule in pairs], dtype=np.int32)
    classes = hash_rows(np.concatenate([inputs, targets], axis=1))
    return Puzzles(inputs, targets, np.array([pair.output.size for pair, _ in pairs], dtype=np.int32), classes, ids)


def _square(grid: Grid, side: int) -> np.ndarray:
    square = np.full((side, side), OUTSIDE, dtype=np.uint8)
    square[: grid.shape[0], : grid.shape[1]] = grid
    return square.ravel()


def _turned(pair: Pair, symmetry: int) -> Pair:
    return Pair(dihedral(pair.input, symmetry), dihedral(pair.output, symmetry))
