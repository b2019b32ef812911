"""Sudoku of 4x4, 6x6 and 9x9 cells with one solution, and a solver that says how hard they are.

Cells hold 0 (blank) or a digit from 1. The solver works on many puzzles at once: each cell is a bit mask of the digits
it may hold, naked and hidden singles are drawn as far as they go, and where they end it guesses a cell with the fewest
candidates. ``difficulty`` is the number of such guesses in the whole search that proves the solution to be the only
one: 0 for a puzzle that singles solve.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from trainables.puzzles.puzzles import Puzzles, mix, random_keys

BLANK = 0
# rows and columns of a box, by the side of the grid
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
# clues that a puzzle is dug down to, if it stays unique: drawn evenly from this range. Where the lower end is below
# what minimal puzzles have, some puzzles are minimal
CLUES = {4: (4, 9), 6: (8, 18), 9: (17, 30)}
# puzzles with fewer clues are never trained on, but measured as the harder ones
FEWEST_TRAINED = {6: 10, 9: 24}


@dataclass(frozen=True)
class Geometry:
    """Indices of a grid of ``side`` x ``side`` cells.

    Attributes:
        side: Digits, and cells in a row.
        units: [3 * side, side] cells of each row, column and box.
        cell_units: [side * side, 3] the row, column and box of each cell.
    """

    side: int
    units: np.ndarray
    cell_units: np.ndarray

    @property
    def full(self) -> np.uint16:
        """The mask of a cell that may hold any digit."""
        return np.uint16((1 << self.side) - 1)


@cache
def geometry(side: int) -> Geometry:
    """Return the geometry of a grid whose side is in `BOXES`."""
    height, width = BOXES[side]
    rows, columns = np.indices((side, side)).reshape(2, -1)
    boxes = rows // height * (side // width) + columns // width
    cell_units = np.stack([rows, side + columns, 2 * side + boxes], axis=1)
    units = np.stack([np.flatnonzero((cell_units == unit).any(1)) for unit in range(3 * side)])
    return Geometry(side, units, cell_units)


# --------------------------------------------------------------------------------------------------------------- solver


def propagate(masks: np.ndarray, shape: Geometry) -> np.ndarray:
    """Draw naked and hidden singles until nothing changes, in place.

    Args:
        masks: uint16 [N, T] candidates of each cell.
        shape: Of the grid.

    Returns:
        bool [N]: False where a contradiction was found.
    """
    alive = np.ones(len(masks), dtype=bool)
    open_rows = np.arange(len(masks))
    while len(open_rows):
        now = masks[open_rows]
        single = now & (now - np.uint16(1)) == 0
        in_units = np.where(single, now, np.uint16(0))[:, shape.units]
        seen = np.bitwise_or.reduce(in_units, axis=2)
        twice = in_units.sum(axis=2, dtype=np.int32) != seen
        new = np.where(single, now, now & ~np.bitwise_or.reduce(seen[:, shape.cell_units], axis=2))
        candidates = new[:, shape.units]
        once, more = np.zeros_like(seen), np.zeros_like(seen)
        for cell in range(shape.side):
            more |= once & candidates[:, :, cell]
            once |= candidates[:, :, cell]
        hidden = new & np.bitwise_or.reduce((once & ~more)[:, shape.cell_units], axis=2)
        new = np.where(hidden != 0, hidden, new)
        crowded = (hidden & (hidden - np.uint16(1)) != 0) & (hidden != 0)
        dead = twice.any(1) | (once != shape.full).any(1) | (new == 0).any(1) | crowded.any(1)
        alive[open_rows[dead]] = False
        changed = (new != now).any(1) & ~dead
        masks[open_rows] = new
        open_rows = open_rows[changed]
    return alive


def search(masks: np.ndarray, shape: Geometry, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Search all N puzzles side by side until each has ``limit`` solutions or no branch left.

    Args:
        masks: uint16 [N, T] candidates of each cell; not changed.
        shape: Of the grid.
        limit: Solutions after which a puzzle's search ends.

    Returns:
        Solutions found [N], guesses [N], and one solution [N, T] as masks (0 where there is none).
    """
    found, guesses = np.zeros(len(masks), dtype=np.int32), np.zeros(len(masks), dtype=np.int32)
    solutions = np.zeros_like(masks)
    states, owners = masks.copy(), np.arange(len(masks))
    while len(states):
        alive = propagate(states, shape)
        states, owners = states[alive], owners[alive]
        counts = np.bitwise_count(states)
        solved = (counts == 1).all(1)
        np.add.at(found, owners[solved], 1)
        solutions[owners[solved]] = states[solved]
        going = ~solved & (found[owners] < limit)
        states, owners, counts = states[going], owners[going], counts[going]
        np.add.at(guesses, owners, 1)
        cells = np.where(counts == 1, 255, counts).argmin(1)
        rows = np.arange(len(states))
        options = (states[rows, cells][:, None] >> np.arange(shape.side, dtype=np.uint16)) & 1
        parents, digits = np.nonzero(options)
        states, owners = states[parents], owners[parents]
        states[np.arange(len(states)), cells[parents]] = np.uint16(1) << digits.astype(np.uint16)
    return np.minimum(found, limit), guesses, solutions


def to_masks(grids: np.ndarray, shape: Geometry) -> np.ndarray:
    """Return candidates uint16 [N, T] of grids uint8 [N, T]."""
    bits = np.uint16(1) << (np.maximum(grids, 1) - 1).astype(np.uint16)
    return np.where(grids == BLANK, shape.full, bits)


def to_digits(masks: np.ndarray) -> np.ndarray:
    """Return grids uint8 [N, T] of masks with one bit each."""
    return np.where(masks == 0, 0, np.bitwise_count(masks - np.uint16(1)) + 1).astype(np.uint8)


def solve(grids: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of solutions (2: at least two), the guesses and one solution of each grid uint8 [N, T]."""
    shape = geometry(side)
    found, guesses, solutions = search(to_masks(grids, shape), shape, limit=2)
    return found, guesses, to_digits(solutions)


# ----------------------------------------------------------------------------------------------------------- generation


def generate(side: int, count: int, rng: np.random.Generator, most: int | None = None) -> Puzzles:
    """Draw ``count`` puzzles: random solutions, dug in random order as long as they stay unique.

    ``most`` is the upper end of `CLUES` in place of the one there; some minimal puzzles have more all the same.
    """
    shape = geometry(side)
    solutions = _random_solutions(shape, count, rng)
    cells = side * side
    low, high = CLUES[side]
    high = high if most is None else most
    wanted = rng.integers(low, high + 1, size=count)
    order = rng.permuted(np.tile(np.arange(cells), (count, 1)), axis=1)
    given, clues = np.ones((count, cells), dtype=bool), np.full(count, cells)
    for turn in range(cells):
        rows = np.flatnonzero(clues > wanted)
        cell = order[rows, turn]
        # still unique without this clue if and only if nothing solves the rest with another digit here
        test = np.where(given[rows], solutions[rows], shape.full)
        test[np.arange(len(rows)), cell] = shape.full & ~solutions[rows, cell]
        free = rows[search(test, shape, limit=1)[0] == 0]
        given[free, order[free, turn]] = False
        clues[free] -= 1
    targets = to_digits(solutions)
    inputs = np.where(given, targets, np.uint8(BLANK))
    _, guesses, _ = search(to_masks(inputs, shape), shape, limit=2)
    return Puzzles(inputs, targets, guesses, classes(inputs, side), np.zeros(count, dtype=np.int32))


def _random_solutions(shape: Geometry, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw complete grids as masks [count, T]: guess at random, and start again where that leads nowhere."""
    done: list[np.ndarray] = []
    while sum(map(len, done)) < count:
        states = np.full((count, shape.side**2), shape.full)
        while len(states):
            alive = propagate(states, shape)
            states = states[alive]
            counts = np.bitwise_count(states)
            solved = (counts == 1).all(1)
            done.append(states[solved])
            states, counts = states[~solved], counts[~solved]
            cells = np.where(counts == 1, 255.0, counts + rng.random(counts.shape)).argmin(1)
            rows = np.arange(len(states))
            options = (states[rows, cells][:, None] >> np.arange(shape.side, dtype=np.uint16)) & 1
            digits = (options * rng.random(options.shape)).argmax(1)
            states[rows, cells] = np.uint16(1) << digits.astype(np.uint16)
    return np.concatenate(done)[:count]


# ----------------------------------------------------------------------------------------------------------- symmetries


def classes(inputs: np.ndarray, side: int) -> np.ndarray:
    """Return a hash uint64 [N] of each puzzle uint8 [N, T] that no symmetry of Sudoku changes.

    Cells are coloured by repeated refinement (Weisfeiler and Leman, 1968) along rows, columns, boxes and equal digits,
    and the hash is that of all colours together. Two classes may share a hash; a class never has two.
    """
    shape = geometry(side)
    given = inputs != BLANK
    digits = (inputs[:, :, None] == np.arange(1, side + 1)) & given[:, :, None]
    colours = mix(given.astype(np.uint64))
    with np.errstate(over="ignore"):
        for _ in range(4):
            units = mix(colours[:, shape.units].sum(axis=2, dtype=np.uint64))[:, shape.cell_units]
            same = mix((colours[:, :, None] * digits).sum(axis=1, dtype=np.uint64))
            of_digit = (same[:, None, :] * digits).sum(axis=2, dtype=np.uint64)
            # rows and columns are summed, so that transposing changes nothing
            colours = mix(colours + mix(units[:, :, 0] + units[:, :, 1]) + mix(~units[:, :, 2]) + of_digit)
        return mix(colours.sum(axis=1, dtype=np.uint64))


def symmetries(side: int, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a random symmetry for each of K positions: cells int64 [K, T] and tokens int64 [K, side + 1].

    A grid under it has ``tokens[grid[cells[c]]]`` in cell ``c``. Digits are relabelled, bands, stacks, and the rows and
    columns within them permuted, and square grids transposed.
    """
    height, width = BOXES[side]
    bands, stacks = side // height, side // width
    keys = random_keys(seed, positions, side + bands + side + stacks + side + 1)
    relabel, band, row, stack, column, flip = np.split(keys, np.cumsum([side, bands, side, stacks, side]), axis=1)
    rows = _order(band, row.reshape(-1, bands, height))
    columns = _order(stack, column.reshape(-1, stacks, width))
    cells = (rows[:, :, None] * side + columns[:, None, :]).reshape(len(positions), -1)
    if height == width:
        turned = (rows[:, None, :] * side + columns[:, :, None]).reshape(len(positions), -1)
        cells = np.where(flip & np.uint64(1) == 0, cells, turned)
    return cells, np.concatenate([np.zeros((len(positions), 1), np.int64), 1 + relabel.argsort(axis=1)], axis=1)


def _order(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return an order of lines [N, side] that keeps those of a band together: keys [N, bands], [N, bands, lines]."""
    bands, lines = outer.argsort(axis=1), inner.argsort(axis=2)
    return (bands[:, :, None] * inner.shape[2] + lines).reshape(len(outer), -1)
