"""From examples to padded batches, with the padding counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainables.arc import CONTEXT_PAIRS, PAD, Example, Pair, encode, grid_tokens
from trainables.atomic_lora.model import GridBatch

# A longer context pair is read at every second (third, ...) token: attention over whole pairs is a large part of
# a training step, for a vector of 32 numbers (benchmarks/context.py shows how large).
CONTEXT_TOKENS = 384


def collate(examples: Sequence[Example], pin: bool = False, multiple: int = 1) -> GridBatch:
    """Return the padded batch of ``examples``, N rows in their order.

    Args:
        examples: At least one.
        pin: Put the tensors into pinned memory, for an asynchronous copy to a GPU.
        multiple: Pad sequences to a multiple of this.
    """
    n = len(examples)
    lengths = zip(*(padded_lengths(example, multiple) for example in examples), strict=True)
    longest_source, longest_target, longest_pair, *_ = map(max, lengths)
    source = _empty(n, 3, longest_source)
    target = _empty(n, 3, longest_target)
    context = _empty(n, CONTEXT_PAIRS, 4, longest_pair)
    for row, example in enumerate(examples):
        _fill(source[row], example.query.input)
        _fill(target[row], example.query.output)
        for index, pair in enumerate(example.context[:CONTEXT_PAIRS]):
            _fill_pair(context[row, index], pair)
    tensors = [torch.from_numpy(array) for array in (source, context, target)]
    return GridBatch(*(t.pin_memory() for t in tensors) if pin else tensors)


def example_tokens(example: Example) -> int:
    """Number of tokens that the model reads and writes for one example, padding excluded."""
    own = grid_tokens(example.query.input) + grid_tokens(example.query.output)
    return own + sum(_pair_tokens(pair) for pair in example.context)


def padded_lengths(example: Example, multiple: int = 1) -> tuple[int, ...]:
    """Lengths of an example's input, output and context pairs, each of which a batch pads to its longest."""
    pairs = [_pair_tokens(pair) for pair in example.context[:CONTEXT_PAIRS]]
    lengths = grid_tokens(example.query.input), grid_tokens(example.query.output), max(pairs, default=1)
    source, target, pair = (-(-length // multiple) * multiple for length in lengths)
    return source, target, *(pair,) * CONTEXT_PAIRS


def _empty(*shape: int) -> np.ndarray:
    array = np.zeros(shape, dtype=np.int64)
    array[..., 0, :] = PAD
    return array


def _fill(row: np.ndarray, grid: np.ndarray) -> None:
    length = grid_tokens(grid)
    row[0, :length], row[1, :length], row[2, :length] = encode(grid)


def _stride(pair: Pair) -> int:
    return -(-(grid_tokens(pair.input) + grid_tokens(pair.output)) // CONTEXT_TOKENS)


def _pair_tokens(pair: Pair) -> int:
    stride = _stride(pair)
    return -(-grid_tokens(pair.input) // stride) + -(-grid_tokens(pair.output) // stride)


def _fill_pair(row: np.ndarray, pair: Pair) -> None:
    stride, start = _stride(pair), 0
    for role, grid in enumerate((pair.input, pair.output)):
        tokens = np.stack(encode(grid))[:, ::stride]
        end = start + tokens.shape[1]
        row[:3, start:end], row[3, start:end] = tokens, role
        start = end
