"""Puzzles in Parquet shards, each a pure function of its plan and index.

A shard is written whole or not at all, so a build that was killed goes on with the shards that are missing; one that is
damaged is missing too. Each holds the fingerprint of its rows, which is checked when it is read. Who draws shards in
parallel is `sweeps.backend.shards`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.puzzles.kinds import Kind
from trainables.puzzles.puzzles import HELD_OUT_ONE_IN, Puzzles

log = logging.getLogger(__name__)


class DamagedShardError(InputError):
    """A shard that is not there, or not as it was written."""


@dataclass(frozen=True)
class Plan:
    """What a folder of shards holds.

    Attributes:
        kind: Of the puzzles.
        seed: Of the generator.
        shard_size: Puzzles of a shard.
    """

    kind: Kind
    seed: int
    shard_size: int = 2048

    def shards_for(self, train: int, held_out: int) -> int:
        """Return how many shards are sure to hold so many puzzles of both sorts, where repetitions are rare."""
        share = 1 / HELD_OUT_ONE_IN
        needed = max(train / (1 - share), held_out / share) / (1 - self.kind.most_harder)
        # the split is by chance: four standard deviations and some repetitions
        return math.ceil((1.02 * needed + 4 * math.sqrt(needed / share)) / self.shard_size)

    def missing(self, folder: Folder, shards: int) -> list[int]:
        """Return the indices below ``shards`` whose shard is not in the folder, or is damaged.

        Raises:
            InputError: If the folder holds a shard of another plan, wherever.
        """
        names = folder.names(".parquet")
        for name in names:
            try:
                with folder.fs.open_input_file(folder.path(name)) as stream:
                    held = (pq.ParquetFile(stream).schema_arrow.metadata or {}).get(b"plan", b"another file").decode()
            except pa.ArrowInvalid:
                # damaged: it says nothing of a plan
                continue
            number = held.rpartition(" ")[2]
            index = int(number) if number.isdecimal() else 0
            if held != self._metadata(index):
                raise self._of_another_plan(folder.path(name), held, index)
        return [index for index in range(shards) if self.name(index) not in names or not self._is_whole(folder, index)]

    def _is_whole(self, folder: Folder, index: int) -> bool:
        try:
            self.read(folder, index)
        except DamagedShardError as error:
            log.warning("Shard %d is built again: %s", index, error)
            return False
        return True

    def _of_another_plan(self, where: str, held: str, index: int) -> InputError:
        wanted = self._metadata(index)
        return InputError(
            f"{where} holds {held}, not {wanted}; choose another folder, or the settings and the --seed of this one."
        )

    def name(self, index: int) -> str:
        """Return the file name of a shard."""
        return f"shard-{index:06d}.parquet"

    def write(self, folder: Folder, index: int) -> str:
        """Draw a shard and write it; return its fingerprint."""
        puzzles = self.kind.generate(self.shard_size, np.random.default_rng([self.seed, index]))
        digits = fingerprint(puzzles)
        table = pa.table(
            {
                "input": _binary(puzzles.inputs),
                "target": _binary(puzzles.targets),
                "difficulty": puzzles.difficulty,
                "class": puzzles.classes,
            }
        )
        buffer = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata({"plan": self._metadata(index), "fingerprint": digits}),
            buffer,
            compression="zstd",
        )
        folder.write(self.name(index), buffer.getvalue())
        return digits

    def read(self, folder: Folder, index: int) -> Puzzles:
        """Return the puzzles of a shard.

        Raises:
            DamagedShardError: If it is missing or damaged.
            InputError: If it is of another plan.
        """
        where, data = folder.path(self.name(index)), folder.read(self.name(index))
        if data is None:
            raise DamagedShardError(f"{where} is missing; build it with --dataset-only.")
        try:
            table = pq.read_table(io.BytesIO(data))
            stored = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
            inputs, targets = (_grids(table[name]) for name in ("input", "target"))
            difficulty, classes = (table[name].to_numpy() for name in ("difficulty", "class"))
            puzzles = Puzzles(inputs, targets, difficulty, classes, self.kind.ids(classes))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise DamagedShardError(f"{where} cannot be read ({error}); delete it and build it again.") from error
        if stored.get("plan") != self._metadata(index):
            raise self._of_another_plan(where, str(stored.get("plan")), index)
        if stored.get("fingerprint") != fingerprint(puzzles):
            raise DamagedShardError(
                f"{where} does not have the fingerprint it was written with; delete it and build it again."
            )
        return puzzles

    def _metadata(self, index: int) -> str:
        few = f" and at most {self.kind.most_givens} givens" if self.kind.most_givens else ""
        return f"{self.shard_size} {self.kind.name} of side {self.kind.side}{few}, seed {self.seed}, shard {index}"


def fingerprint(puzzles: Puzzles) -> str:
    """Return 16 hex digits that change whenever a puzzle, an answer or their order does."""
    return hashlib.sha256(puzzles.inputs.tobytes() + puzzles.targets.tobytes()).hexdigest()[:16]


def _binary(grids: np.ndarray) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(grids).tobytes())
    return pa.Array.from_buffers(pa.binary(grids.shape[1]), len(grids), [None, buffer])


def _grids(column: pa.ChunkedArray) -> np.ndarray:
    return np.stack([np.frombuffer(row, dtype=np.uint8) for row in column.to_pylist()])
