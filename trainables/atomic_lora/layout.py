"""Rows of different lengths as the tokens of one tensor, so that little is computed on padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from trainables.atomic_lora.model import Group
from trainables.pack.bank import to_device


class Layout:
    """Where the tokens of N rows lie, one row after another.

    Args:
        lengths: Tokens of each row, [N].
        multiple: Each row is padded to a multiple of this, for kernels that are made for each shape anew, as on CPUs,
            and so that more rows are equally long.
        padded: Whether all rows are padded to the longest instead.

    Attributes:
        lengths: As given.
        rooms: Tokens of each row and its padding, [N].
        starts: Where each row begins, [N].
    """

    def __init__(self, lengths: Sequence[int], multiple: int, padded: bool) -> None:
        self.lengths, self.padded = list(lengths), padded
        rooms = [-(-length // multiple) * multiple for length in lengths]
        self.rooms = [max(rooms)] * len(rooms) if padded else rooms
        self.starts = [0, *itertools.accumulate(self.rooms[:-1])]
        self._row = np.repeat(np.arange(len(self.rooms)), self.rooms)
        self._offset = np.arange(len(self._row)) - np.repeat(self.starts, self.rooms)
        self._real = self._offset < np.array(lengths)[self._row]

    def index(self, starts: Sequence[int]) -> np.ndarray:
        """Return where each token lies in a buffer that holds row i from ``starts[i]`` on, [tokens].

        Padding lies where its row begins: what another adapter's row holds may not be finite.
        """
        return np.array(starts, dtype=np.int64)[self._row] + np.where(self._real, self._offset, 0)

    def rows(self) -> np.ndarray:
        """Return each token's row, [tokens]; N for padding."""
        return np.where(self._real, self._row, len(self.lengths))


def attention_groups(queries: Layout, keys: Layout | None, device: torch.device) -> list[Group]:
    """Return the groups in which rows attend to rows; without ``keys`` to themselves causally, which needs no mask."""
    rooms, lengths = (queries.rooms, queries.rooms) if keys is None else (keys.rooms, keys.lengths)
    found = []
    # neighbours of equal lengths
    for (u, t), rows in itertools.groupby(zip(queries.rooms, rooms, lengths, strict=True), key=lambda row: row[:2]):
        real = [length for _, _, length in rows]
        mask = None if min(real) == t else to_device(np.arange(t) < np.array(real)[:, None], device)
        found.append(Group(len(real), u, t, mask))
    return found
