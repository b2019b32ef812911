"""Rows of different lengths as the tokens of one tensor, so that little is computed on padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainables.atomic_lora.model import Group
from trainables.pack.bank import to_device


class Layout:
    """Where the tokens of N rows lie, one row after another.

    Args:
        lengths: Tokens of each row, [N].
        multiple: Each row is padded to a multiple of this, for kernels that are made for each shape anew, as on CPUs,
            and so that more rows are equally long.
        padded: Whether all rows are padded to the longest instead.
        device: Where the tokens are.

    Attributes:
        lengths: As given.
        rooms: Tokens of each row and its padding, [N].
        starts: Where each row begins, [N].
        row: Each token's row, padding's too, [tokens].
    """

    def __init__(self, lengths: Sequence[int], multiple: int, padded: bool, device: torch.device) -> None:
        self.lengths, self.padded, self.device = list(lengths), padded, device
        rooms = [-(-length // multiple) * multiple for length in lengths]
        self.rooms = [max(rooms)] * len(rooms) if padded else rooms
        self.starts = [0, *itertools.accumulate(self.rooms[:-1])]
        numbers = to_device(np.array([lengths, self.rooms, self.starts], dtype=np.int64), device)
        count = self.starts[-1] + self.rooms[-1]
        self.row = torch.arange(len(lengths), device=device).repeat_interleave(numbers[1], output_size=count)
        self._offset = torch.arange(count, device=device) - numbers[2][self.row]
        self._real = self._offset < numbers[0][self.row]

    def index(self, starts: Sequence[int]) -> Tensor:
        """Return where each token lies in a buffer that holds row i from ``starts[i]`` on, [tokens].

        Padding lies where its row begins: what another adapter's row holds may not be finite.
        """
        return to_device(np.array(starts, dtype=np.int64), self.device)[self.row] + self._offset * self._real

    def place(self) -> Tensor:
        """Return each token's row, [tokens]; N for padding."""
        return torch.where(self._real, self.row, len(self.lengths))

    def tokens(self) -> Tensor:
        """Return where each token lies that is not padding."""
        spans = [np.arange(start, start + length) for start, length in zip(self.starts, self.lengths, strict=True)]
        return to_device(np.concatenate(spans), self.device)


def attention_groups(queries: Layout, keys: Layout | None = None) -> list[Group]:
    """Return the groups in which rows attend to rows; without ``keys`` to themselves causally, which needs no mask."""
    rooms, lengths = (queries.rooms, queries.rooms) if keys is None else (keys.rooms, keys.lengths)
    found = []
    # neighbours of equal lengths
    for (u, t), rows in itertools.groupby(zip(queries.rooms, rooms, lengths, strict=True), key=lambda row: row[:2]):
        real = [length for _, _, length in rows]
        mask = None if min(real) == t else to_device(np.arange(t) < np.array(real)[:, None], queries.device)
        found.append(Group(len(real), u, t, mask))
    return found
