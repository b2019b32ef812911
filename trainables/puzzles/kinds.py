"""The kinds of puzzles by name: how each is drawn and augmented, and what its tokens mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainables.common.errors import InputError, did_you_mean
from trainables.puzzles import arc_grids, mazes, sudoku, views
from trainables.puzzles.puzzles import Puzzles

KINDS = ("sudoku4", "sudoku6", "sudoku9", "maze", "arc", "mixed")


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
        return {"maze": mazes.TOKENS, "arc": arc_grids.TOKENS}.get(self.name, self.side + 1)

    @property
    def generated(self) -> bool:
        """Whether there are as many puzzles as one likes."""
        return self.name != "arc"

    @property
    def modalities(self) -> tuple[str, ...]:
        """What puzzles are shown as, of `views.MODALITIES`; where there are several, a puzzle's id says which."""
        return views.MODALITIES if self.name == "mixed" else ("grid",)

    def ids(self, classes: np.ndarray) -> np.ndarray:
        """Return the ids int32 [N] of generated puzzles by their classes uint64 [N]."""
        return views.modalities(classes) if self.name == "mixed" else np.zeros(len(classes), dtype=np.int32)

    def show(self, inputs: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return what a model gets to read of inputs uint8 [N, T] with ids [N]: the same, or see `views.show`."""
        return views.show(inputs, ids) if len(self.modalities) > 1 else inputs

    def asked(self, inputs: np.ndarray) -> np.ndarray:
        """Return which cells of inputs uint8 [N, T] the answer is asked of, bool [N, T]."""
        if self.name == "arc":
            return np.ones(inputs.shape, dtype=bool)
        return inputs == (mazes.OPEN if self.name == "maze" else sudoku.BLANK)

    def generate(self, count: int, rng: np.random.Generator) -> Puzzles:
        """Draw ``count`` puzzles, possibly repeated; only of a kind that is generated."""
        puzzles = (mazes if self.name == "maze" else sudoku).generate(self.side, count, rng)
        return replace(puzzles, ids=self.ids(puzzles.classes))

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, seed: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return puzzles and answers uint8 [N, T] under symmetries drawn from ``seed`` and each position.

        ARC grids come as they are: each of their symmetries is a rule of its own already.
        """
        if self.name == "arc":
            return inputs, targets
        module = mazes if self.name == "maze" else sudoku
        return module.augment(inputs, targets, self.side, seed, positions)


def kind_of(name: str, maze_side: int, arc_side: int) -> Kind:
    """Return the kind of that name; mazes have ``maze_side`` cells in a row, ARC grids at most ``arc_side``.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in KINDS:
        near = did_you_mean(name, KINDS) or "."
        raise InputError(f"--dataset {name!r} is not one of {', '.join(KINDS)}{near}")
    sides = {"maze": maze_side, "arc": arc_side, "mixed": 4}
    return Kind(name, sides[name] if name in sides else int(name.removeprefix("sudoku")))
