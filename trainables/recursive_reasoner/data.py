"""The datasets of the family, the endless stream of training puzzles, and baselines that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.puzzles import arc_grids
from trainables.puzzles.kinds import Kind, kind_of
from trainables.puzzles.puzzles import Puzzles, collect, mix, random_keys, split
from trainables.puzzles.shards import Plan
from trainables.recursive_reasoner.config import ReasonerConfig


@dataclass(frozen=True)
class Dataset:
    """Puzzles to train on and to measure on.

    Attributes:
        kind: Of the puzzles.
        train: Puzzles to train on.
        held_out: Puzzles to measure on; no symmetry maps one onto a training puzzle.
        harder: Puzzles to measure on that are harder than all of these, see `Kind.harder`; often fewer, or none.
        left_out: By task, how much is neither trained nor measured on, by reason.
    """

    kind: Kind
    train: Puzzles
    held_out: Puzzles
    harder: Puzzles
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that ``--dataset`` takes."""
        return self.kind.name

    @property
    def vocabulary(self) -> int:
        """Tokens of a cell."""
        return self.kind.vocabulary

    @property
    def rules(self) -> int:
        """Puzzle ids, from 0; of a mixture one for each modality."""
        return max(len(self.kind.modalities), 1 + int(max(self.train.ids.max(), self.held_out.ids.max())))

    @property
    def cells(self) -> int:
        """Cells of a puzzle."""
        return self.train.inputs.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever any puzzle does."""
        digest = hashlib.sha256(self.name.encode())
        for puzzles in (self.train, self.held_out, self.harder):
            digest.update(puzzles.inputs.tobytes() + puzzles.targets.tobytes() + puzzles.ids.tobytes())
        return digest.hexdigest()[:16]

    def majority(self) -> tuple[float, float]:
        """Return cell and exact accuracy on held-out puzzles of answering every asked cell with the commonest token.

        It is the commonest among the asked cells of the training puzzles.
        """
        token = np.bincount(self.train.targets[self.kind.asked(self.train.inputs)]).argmax()
        asked = self.kind.asked(self.held_out.inputs)
        right = np.where(asked, token, self.held_out.inputs) == self.held_out.targets
        return float((right & asked).sum() / asked.sum()), float(right.all(1).mean())


def load_dataset(name: str, config: ReasonerConfig, seed: int = 0, folder: str | None = None) -> Dataset:
    """Generate a dataset, or read one that was built; the same arguments give the same puzzles.

    Args:
        name: One of `trainables.puzzles.kinds.KINDS`.
        config: Says how many puzzles, and how large mazes are.
        seed: Of the generator.
        folder: Of the shards that `sweeps.backend.shards` built of it; None generates the puzzles here.

    Raises:
        InputError: If the name is unknown, there are not as many puzzles, or a shard is missing or damaged.
    """
    kind = kind_of(name, config.maze_side, config.arc_side, config.givens)
    return _load(kind, config.train_puzzles, config.held_out_puzzles, seed, folder)


@cache
def _load(kind: Kind, train: int, held_out: int, seed: int, folder: str | None) -> Dataset:
    if not kind.generated:
        known, unknown, left_out = arc_grids.load(kind.side)
        return Dataset(kind, known, unknown, unknown.take(np.arange(0)), left_out)
    if folder is None:
        try:
            return Dataset(kind, *collect(kind.generate, train, held_out, seed, kind.harder))
        except ValueError as error:
            raise _too_many(kind, f"{error}", train, held_out) from error
    plan = Plan(kind, seed)
    shards = range(plan.shards_for(train, held_out))
    puzzles = Puzzles.concatenate([plan.read(Folder(folder), index) for index in shards]).distinct()
    parts = split(puzzles, kind.harder(puzzles))
    if len(parts[0]) < train or len(parts[1]) < held_out:
        found = f"{folder} holds {len(parts[0])} different puzzles to train on and {len(parts[1])} to hold out."
        raise _too_many(kind, found, train, held_out)
    counts = train, held_out, min(held_out, len(parts[2]))
    first, second, third = (part.take(np.arange(n)) for part, n in zip(parts, counts, strict=True))
    return Dataset(kind, first, second, third)


def _too_many(kind: Kind, found: str, train: int, held_out: int) -> InputError:
    return InputError(f"{kind.name}: {found} Lower train_puzzles ({train}) or held_out_puzzles ({held_out}).")


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

    def at(self, positions: np.ndarray, hints: float = 0.0) -> tuple[np.ndarray, ...]:
        """Return inputs, targets (both uint8 [N, T]), asked cells (bool [N, T]) and ids [N] at positions [N].

        ``hints`` is the share of asked cells whose answer the inputs show.
        """
        train = self._dataset.train
        passes, places = np.divmod(positions, len(train))
        rows = np.array([self._order(int(p))[i] for p, i in zip(passes, places, strict=True)], dtype=np.int64)
        inputs, targets = self._dataset.kind.augment(train.inputs[rows], train.targets[rows], self._seed, positions)
        asked = self._dataset.kind.asked(inputs)
        if hints:
            # The upper 53 bits are a uniform number in [0, 1) that a float holds exactly, so a share of 1 shows all.
            uniform = (mix(random_keys(self._seed, positions, inputs.shape[1])) >> np.uint64(11)) * 2.0**-53
            inputs = np.where(asked & (uniform < hints), targets, inputs)
        return inputs, targets, asked, train.ids[rows]

    def _order(self, number: int) -> np.ndarray:
        if number not in self._orders:
            # rows of at most two passes are under way at once
            self._orders = {n: order for n, order in self._orders.items() if n >= number - 1}
            self._orders[number] = np.random.default_rng([self._seed, number]).permutation(len(self._dataset.train))
        return self._orders[number]
