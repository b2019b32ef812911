"""What all puzzles share: the arrays they lie in, hashes, and which of them are held out.

A puzzle is held out or not by a hash of its class under the symmetries of its kind, whatever the seed that it was
drawn with. So no held-out puzzle of any run is a turned, relabelled or repeated training puzzle of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

# one class in this many is held out
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Puzzles:
    """N puzzles of T cells, row by row.

    Attributes:
        inputs: uint8 [N, T] tokens as given.
        targets: uint8 [N, T] tokens of the one answer.
        difficulty: int32 [N]; what it counts is said by the generator.
        classes: uint64 [N]; equal for puzzles that a symmetry maps onto each other.
        ids: int32 [N]; equal for puzzles of one rule, where the rule is not the same for all; in a mixture the index of
            what each is shown as.
    """

    inputs: np.ndarray
    targets: np.ndarray
    difficulty: np.ndarray
    classes: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: np.ndarray) -> Puzzles:
        """Return some of the puzzles, by index or as a boolean array."""
        return Puzzles(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Puzzles]) -> Puzzles:
        """Return all puzzles of several arrays in order."""
        return Puzzles(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Puzzles)))

    def distinct(self) -> Puzzles:
        """Return the puzzles without repetitions, each at its first place."""
        _, first = np.unique(self.inputs, axis=0, return_index=True)
        return self.take(np.sort(first))

    @property
    def held_out(self) -> np.ndarray:
        """Which puzzles belong to a held-out class, bool [N]."""
        return mix(self.classes ^ np.uint64(0x5EED)) % np.uint64(HELD_OUT_ONE_IN) == 0


def split(puzzles: Puzzles, harder: np.ndarray) -> tuple[Puzzles, Puzzles, Puzzles]:
    """Return the puzzles to train on, those held out, and the ``harder`` ones, bool [N], which are neither."""
    held_out = puzzles.held_out & ~harder
    return puzzles.take(~held_out & ~harder), puzzles.take(held_out), puzzles.take(harder)


def mix(values: np.ndarray) -> np.ndarray:
    """Hash uint64 values one by one (the finaliser of SplitMix64, Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_rows(tokens: np.ndarray) -> np.ndarray:
    """Hash rows of tokens [..., T], each below 256: uint64 [...]."""
    places = np.arange(tokens.shape[-1], dtype=np.uint64) << np.uint64(8)
    return mix(mix(places + tokens.astype(np.uint64)).sum(axis=-1, dtype=np.uint64))


def random_keys(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Return random uint64 [K, count] that depend on the seed and each of K positions alone, not on their company."""
    row = mix(mix(np.asarray(positions, dtype=np.uint64)) ^ mix(np.array([seed], dtype=np.uint64)))
    return mix(row[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))


def collect(
    generate: Callable[[int, np.random.Generator], Puzzles],
    train: int,
    held_out: int,
    seed: int,
    harder: Callable[[Puzzles], np.ndarray],
) -> tuple[Puzzles, Puzzles, Puzzles]:
    """Draw distinct puzzles until there are enough to train on and to hold out.

    Args:
        generate: Draws so many puzzles, possibly fewer, possibly repeated.
        train: Training puzzles to return.
        held_out: Held-out puzzles to return.
        seed: Of the generator.
        harder: Says which puzzles are harder than any that is trained on, bool [N]; these belong to neither.

    Returns:
        Puzzles to train on, those held out, and the harder ones that came up, at most as many as are held out.

    Raises:
        ValueError: If drawing goes on without bringing new puzzles: there are not so many.
    """
    rng = np.random.default_rng(seed)
    kept = None
    while True:
        missing = train + held_out if kept is None else max(train - len(kept[0]), 8 * (held_out - len(kept[1])), 64)
        # one in eight is of no use to the training set, and some are repeated
        drawn = generate(min(4096, missing + missing // 4 + 8), rng)
        before = 0 if kept is None else sum(map(len, kept))
        everything = drawn if kept is None else Puzzles.concatenate([*kept, drawn])
        everything = everything.distinct()
        kept = split(everything, harder(everything))
        if len(kept[0]) >= train and len(kept[1]) >= held_out:
            counts = train, held_out, min(held_out, len(kept[2]))
            first, second, third = (part.take(np.arange(n)) for part, n in zip(kept, counts, strict=True))
            return first, second, third
        if len(everything) - before <= len(drawn) // 1000:
            raise ValueError(f"There are only about {len(kept[0])} puzzles to train on and {len(kept[1])} to hold out.")
