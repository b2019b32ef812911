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

from trainables.atomic_lora.layout import Layout
from trainables.pack.bank import to_device
from trainables.pack.batching import BatchCost, group

T = TypeVar("T")


class Prefixes(Generic[T]):
    """Outputs of the base's first layers on sequences, one token to a row of a buffer.

    When the buffer is full it is emptied, and fills anew with what is needed then.

    Args:
        begin: Computes the outputs [tokens, D] of tokens, int64 [C, tokens], which lie as a layout says.
        encode: Turns an item into its sequence, int64 [C, T].
        key: Identifies an item; equal keys mean equal sequences.
        limit: Bytes to keep, unless a single batch needs more; 0: compute everything whenever it is asked for.
        device: Where to compute and keep them.
        cost: What a batch costs the device; decides which of the items that are not there yet share one.
    """

    def __init__(
        self, begin: Callable[[Tensor, Layout], Tensor], encode: Callable[[T], np.ndarray],
        key: Callable[[T], Hashable], limit: int, device: torch.device, cost: BatchCost,
    ) -> None:  # fmt: skip
        self._begin, self._encode, self._key = begin, encode, key
        self._device, self._limit, self._cost = device, limit, cost
        # of each item the first row
        self._places: dict[Hashable, int] = {}
        self._buffer: Tensor | None = None
        self._used = 0

    def get(self, items: Sequence[T], layout: Layout) -> Tensor:
        """Return the outputs of some items, at least one, whose tokens lie as a layout says, [tokens, D].

        Padding holds what the row's first token does.
        """
        if not self._limit:
            return self._compute([self._encode(item) for item in items], layout)
        keys = [self._key(item) for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self._places}
        if missing and not self._add(missing):
            self._places.clear()
            self._used = 0
            self._add(dict(zip(keys, items, strict=True)), grow=True)
        assert self._buffer is not None
        return self._buffer.index_select(0, layout.index([self._places[key] for key in keys]))

    @torch.no_grad()
    def _add(self, items: dict[Hashable, T], grow: bool = False) -> bool:
        """Compute items and put them into the buffer; False where there is no room for them."""
        # those of equal lengths attend together
        sequences = dict(sorted(((k, self._encode(i)) for k, i in items.items()), key=lambda item: item[1].shape[1]))
        keys, lengths = list(sequences), [sequence.shape[1] for sequence in sequences.values()]
        end = self._used + sum(lengths)
        if self._buffer is not None and end > len(self._buffer) and not grow:
            return False
        for batch in group([[length] for length in lengths], self._cost):
            layout = Layout([lengths[i] for i in batch], self._cost.multiple, self._cost.padded, self._device)
            x = self._compute([sequences[keys[i]] for i in batch], layout)
            if self._buffer is None or end > len(self._buffer):
                room = max(end, self._limit // (x.shape[-1] * x.element_size()))
                self._buffer = None
                self._buffer = x.new_empty(room, x.shape[-1])
            values = x.index_select(0, layout.tokens())
            self._buffer[self._used : self._used + len(values)] = values
            for i in batch:
                self._places[keys[i]] = self._used
                self._used += lengths[i]
        return True

    def _compute(self, sequences: Sequence[np.ndarray], layout: Layout) -> Tensor:
        ends = np.cumsum([sequence.shape[1] for sequence in sequences])
        tokens = to_device(np.concatenate(sequences, axis=1), self._device)
        return self._begin(tokens[:, layout.index([0, *ends[:-1]])], layout)
