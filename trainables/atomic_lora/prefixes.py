"""What the base computes before the first adapted layer, kept for the grids that come again.

No adapter changes it, so it is computed once for a grid (or a context pair) and read at every later step, by whichever
adapter. Half of the training examples are a task's own pairs, and validation sees the same ones every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainables.atomic_lora.data import padded
from trainables.pack.batching import BatchCost, group

T = TypeVar("T")


class Prefixes(Generic[T]):
    """Outputs of the base's first layers on sequences, one token to a row of a buffer.

    When the buffer is full it is emptied, and fills anew with what is needed then.

    Args:
        begin: Computes the outputs [N, T, D] of padded sequences, int64 [N, C, T].
        encode: Turns an item into its sequence, int64 [C, T].
        key: Identifies an item; equal keys mean equal sequences.
        device: Where to compute and keep them.
        limit: Bytes to keep, unless a single batch needs more.
        multiple: Pad sequences to a multiple of this.
        cost: What a batch costs the device; decides which of the items that are not there yet share one.
    """

    def __init__(
        self, begin: Callable[[Tensor], Tensor], encode: Callable[[T], np.ndarray], key: Callable[[T], Hashable],
        device: torch.device, limit: int, multiple: int = 1, cost: BatchCost | None = None,
    ) -> None:  # fmt: skip
        self._begin, self._encode, self._key = begin, encode, key
        self._device, self._limit, self._multiple, self._cost = device, limit, multiple, cost or BatchCost()
        # of each item the first row and the number of rows; row 0 is that of padding
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._buffer: Tensor | None = None
        self._used = 1

    @torch.no_grad()
    def get(self, items: Sequence[T]) -> tuple[Tensor, Tensor]:
        """Return the outputs of some items, at least one, [N, T, D], and bool [N, T], False at padding."""
        keys = [self._key(item) for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self._places}
        if missing and not self._add(missing):
            self._places.clear()
            self._used = 1
            self._add(dict(zip(keys, items, strict=True)), grow=True)
        places = [self._places[key] for key in keys]
        longest = max(length for _, length in places)
        rows = np.zeros((len(items), -(-longest // self._multiple) * self._multiple), dtype=np.int64)
        for row, (start, length) in zip(rows, places, strict=True):
            row[:length] = np.arange(start, start + length)
        index = to_device(rows, self._device)
        assert self._buffer is not None
        return self._buffer.index_select(0, index.flatten()).unflatten(0, index.shape), index > 0

    def _add(self, items: dict[Hashable, T], grow: bool = False) -> bool:
        """Compute items and put them into the buffer; False where there is no room for them."""
        keys, sequences = list(items), [self._encode(item) for item in items.values()]
        lengths = [sequence.shape[1] for sequence in sequences]
        end = self._used + sum(lengths)
        if self._buffer is not None and end > len(self._buffer) and not grow:
            return False
        for batch in group([[length] for length in lengths], self._cost):
            x = self._begin(to_device(padded([sequences[i] for i in batch], self._multiple), self._device))
            if self._buffer is None or end > len(self._buffer):
                room = max(end, self._limit // (x.shape[-1] * x.element_size()))
                self._buffer = x.new_empty(room, x.shape[-1])
                self._buffer[0] = 0
            real = np.concatenate([place * x.shape[1] + np.arange(lengths[i]) for place, i in enumerate(batch)])
            values = x.flatten(0, 1).index_select(0, to_device(real, self._device))
            self._buffer[self._used : self._used + len(real)] = values
            for i in batch:
                self._places[keys[i]] = self._used, lengths[i]
                self._used += lengths[i]
        return True


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return the array as a tensor on the device; to a GPU it is copied while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
