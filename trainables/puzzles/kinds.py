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
        most_givens: Of a Sudoku, see `sudoku.generate`; None: as many as `sudoku.CLUES` says.
    """

    name: str
    side: int
    most_givens: int | None = None

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
        if self.name == "maze":
            puzzles = mazes.generate(self.side, count, rng)
        else:
            puzzles = sudoku.generate(self.side, count, rng, self.most_givens)
        return replace(puzzles, ids=self.ids(puzzles.classes))

    def symmetries(self, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a symmetry for each of K positions, drawn from ``seed`` and the position.

        It is cells int64 [K, T] and tokens int64 [K, V]: a grid under it has ``tokens[grid[cells[c]]]`` in cell ``c``.
        None for ARC grids: each of their symmetries is a rule of its own already.
        """
        if self.name == "arc":
            return None
        return (mazes if self.name == "maze" else sudoku).symmetries(self.side, seed, positions)

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, seed: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return puzzles and answers uint8 [N, T] under the `symmetries` of each position; ARC grids as they are."""
        found = self.symmetries(seed, positions)
        return (inputs, targets) if found is None else (turn(inputs, *found), turn(targets, *found))

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray | None:
        """Return which answers uint8 [N, T] of mazes mark a path, see `mazes.valid`; None where only one is right."""
        return mazes.valid(inputs, answers, self.side) if self.name == "maze" else None

    def level(self, puzzles: Puzzles) -> np.ndarray:
        """Return what makes puzzles hard or easy, int [N]: the steps of a maze's path, the givens of a Sudoku."""
        return puzzles.difficulty if self.name == "maze" else (puzzles.inputs != sudoku.BLANK).sum(axis=1)

    @property
    def most_harder(self) -> float:
        """The largest share of generated puzzles that are `harder`."""
        return 0.3 if self.name == "maze" else 0.2 if self.side in sudoku.FEWEST_TRAINED else 0.0

    def harder(self, puzzles: Puzzles) -> np.ndarray:
        """Return which of N generated puzzles are harder than any that is trained on, bool [N]."""
        if self.name == "maze":
            return self.level(puzzles) > mazes.LONGEST_TRAINED * self.side
        return self.level(puzzles) < sudoku.FEWEST_TRAINED.get(self.side, 0)


def turn(grids: np.ndarray, cells: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return grids uint8 [N, T] under symmetries: cells int64 [N, T], tokens int64 [N, V], see `Kind.symmetries`."""
    return np.take_along_axis(tokens, np.take_along_axis(grids, cells, 1).astype(np.int64), 1).astype(np.uint8)


def turn_back(grids: np.ndarray, cells: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the grids uint8 [N, T] of which `turn` makes ``grids``."""
    return turn(grids, cells.argsort(axis=1), tokens.argsort(axis=1))


def kind_of(name: str, maze_side: int, arc_side: int, givens: float = 1.0) -> Kind:
    """Return the kind of that name; mazes have ``maze_side`` cells in a row, ARC grids at most ``arc_side``.

    ``givens`` is the largest share of cells that a Sudoku shows; of mixtures, mazes and ARC grids it says nothing.

    Raises:
        InputError: If the name is unknown, or Sudoku of its side are not to have so few givens.
    """
    if name not in KINDS:
        near = did_you_mean(name, KINDS) or "."
        raise InputError(f"--dataset {name!r} is not one of {', '.join(KINDS)}{near}")
    sides = {"maze": maze_side, "arc": arc_side, "mixed": 4}
    side = sides[name] if name in sides else int(name.removeprefix("sudoku"))
    if not name.startswith("sudoku"):
        return Kind(name, side)
    low, high = sudoku.CLUES[side]
    most, fewest = int(givens * side * side), max(low, sudoku.FEWEST_TRAINED.get(side, 0))
    if most < fewest:
        raise InputError(
            f"givens is {givens}, at most {most} of the {side * side} cells of {name}; give {fewest / side**2:.2f} "
            "or more."
        )
    return Kind(name, side, most if most < high else None)
