"""The datasets of the family, the endless stream of training puzzles, and baselines that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from trainables.errors import InputError, did_you_mean
from trainables.puzzles import mazes, sudoku
from trainables.puzzles.puzzles import Puzzles, collect, mix, random_keys
from trainables.recursive_reasoner.config import ReasonerConfig

Augment = Callable[[np.ndarray, np.ndarray, int, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Dataset:
    """Puzzles to train on and to measure on.

    Attributes:
        name: As ``--dataset`` says it.
        vocabulary: Tokens of a cell.
        blank: The input token whose cells are asked for.
        train: Puzzles to train on.
        held_out: Puzzles to measure on; no symmetry maps one onto a training puzzle.
        augment: Symmetries: ``augment(inputs, targets, seed, positions)``.
    """

    name: str
    vocabulary: int
    blank: int
    train: Puzzles
    held_out: Puzzles
    augment: Augment

    @property
    def cells(self) -> int:
        """Cells of a puzzle."""
        return self.train.inputs.shape[1]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever any puzzle does."""
        digest = hashlib.sha256(self.name.encode())
        for puzzles in (self.train, self.held_out):
            digest.update(puzzles.inputs.tobytes() + puzzles.targets.tobytes())
        return digest.hexdigest()[:16]

    def majority(self) -> tuple[float, float]:
        """Return cell and exact accuracy on held-out puzzles of answering every asked cell with the commonest token.

        It is the commonest among the asked cells of the training puzzles.
        """
        token = np.bincount(self.train.targets[self.train.inputs == self.blank]).argmax()
        answers = np.where(self.held_out.inputs == self.blank, token, self.held_out.inputs)
        right, asked = answers == self.held_out.targets, self.held_out.inputs == self.blank
        return float((right & asked).sum() / asked.sum()), float(right.all(1).mean())


DATASETS = ("sudoku4", "sudoku6", "sudoku9", "maze")


def load_dataset(name: str, config: ReasonerConfig, seed: int = 0) -> Dataset:
    """Generate a dataset; the same arguments give the same puzzles.

    Args:
        name: One of `DATASETS`.
        config: Says how many puzzles, and how large mazes are.
        seed: Of the generator.

    Raises:
        InputError: If the name is unknown, or there are not as many puzzles.
    """
    if name not in DATASETS:
        near = did_you_mean(name, DATASETS) or "."
        raise InputError(f"--dataset {name!r} is not one of {', '.join(DATASETS)}{near}")
    return _load(name, config.maze_side, config.train_puzzles, config.held_out_puzzles, seed)


@cache
def _load(name: str, maze_side: int, train: int, held_out: int, seed: int) -> Dataset:
    side = maze_side if name == "maze" else int(name.removeprefix("sudoku"))
    module = mazes if name == "maze" else sudoku
    vocabulary, blank = (mazes.TOKENS, mazes.OPEN) if name == "maze" else (side + 1, sudoku.BLANK)
    try:
        puzzles = collect(partial(module.generate, side), train, held_out, seed)
    except ValueError as error:
        raise InputError(f"{name}: {error} Lower train_puzzles ({train}) or held_out_puzzles ({held_out}).") from error

    def augment(
        inputs: np.ndarray, targets: np.ndarray, seed: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return module.augment(inputs, targets, side, seed, positions)

    return Dataset(name, vocabulary, blank, *puzzles, augment)


class Stream:
    """Training puzzles one after the other without end; what lies at a position depends on nothing but the seed.

    Each pass shows every puzzle once, in an order and under symmetries of its own.

    Args:
        dataset: Where puzzles come from.
        seed: Of order and symmetries.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self._orders: dict[int, np.ndarray] = {}

    def at(self, positions: np.ndarray, hints: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, targets (both uint8 [N, T]) and asked cells (bool [N, T]) at positions [N].

        ``hints`` is the share of asked cells whose answer the inputs show.
        """
        train = self._dataset.train
        passes, places = np.divmod(positions, len(train))
        rows = np.array([self._order(int(p))[i] for p, i in zip(passes, places, strict=True)], dtype=np.int64)
        inputs, targets = self._dataset.augment(train.inputs[rows], train.targets[rows], self._seed, positions)
        asked = inputs == self._dataset.blank
        if hints:
            keys = mix(random_keys(self._seed, positions, inputs.shape[1]))
            inputs = np.where(asked & (keys < np.uint64(hints * 2.0**64)), targets, inputs)
        return inputs, targets, asked

    def _order(self, number: int) -> np.ndarray:
        if number not in self._orders:
            # rows of at most two passes are under way at once
            self._orders = {n: order for n, order in self._orders.items() if n >= number - 1}
            self._orders[number] = np.random.default_rng([self._seed, number]).permutation(len(self._dataset.train))
        return self._orders[number]
