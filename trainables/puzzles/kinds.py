"""The kinds of puzzles by name: how each is drawn and augmented, and what its tokens mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainables.errors import InputError, did_you_mean
from trainables.puzzles import mazes, sudoku
from trainables.puzzles.puzzles import Puzzles

KINDS = ("sudoku4", "sudoku6", "sudoku9", "maze")


@dataclass(frozen=True)
class Kind:
    """A kind of puzzle.

    Attributes:
        name: One of `KINDS`.
        side: Cells in a row.
    """

    name: str
    side: int

    @property
    def vocabulary(self) -> int:
        """Tokens of a cell."""
        return mazes.TOKENS if self.name == "maze" else self.side + 1

    @property
    def blank(self) -> int:
        """The input token whose cells are asked for."""
        return mazes.OPEN if self.name == "maze" else sudoku.BLANK

    def generate(self, count: int, rng: np.random.Generator) -> Puzzles:
        """Draw ``count`` puzzles, possibly repeated."""
        return (mazes if self.name == "maze" else sudoku).generate(self.side, count, rng)

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, seed: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return puzzles and answers uint8 [N, T] under symmetries drawn from ``seed`` and each position."""
        module = mazes if self.name == "maze" else sudoku
        return module.augment(inputs, targets, self.side, seed, positions)


def kind_of(name: str, maze_side: int) -> Kind:
    """Return the kind of that name; mazes have ``maze_side`` cells in a row.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in KINDS:
        near = did_you_mean(name, KINDS) or "."
        raise InputError(f"--dataset {name!r} is not one of {', '.join(KINDS)}{near}")
    return Kind(name, maze_side if name == "maze" else int(name.removeprefix("sudoku")))
