"""From examples to padded batches, with the padding counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainables.arc import BOS, CONTEXT_PAIRS, PAD, Example, Grid, Pair, encode, grid_tokens
from trainables.atomic_lora.model import GridBatch

# A longer context pair is read at every second (third, ...) token: attention over whole pairs is a large part of
# a training step, for a vector of 32 numbers (benchmarks/context.py shows how large).
CONTEXT_TOKENS = 384


def collate(examples: Sequence[Example], pin: bool = False) -> GridBatch:
    """Return the padded batch of ``examples``, N rows in their order.

    Args:
        examples: At least one.
        pin: Put the tensors into pinned memory, for an asynchronous copy to a GPU.
    """
    source = padded([grid_sequence(example.query.input) for example in examples])
    target = padded([grid_sequence(example.query.output) for example in examples])
    longest_pair = max(padded_lengths(example)[2] for example in examples)
    context = _empty(len(examples), CONTEXT_PAIRS, 4, longest_pair)
    for row, example in zip(context, examples, strict=True):
        for place, pair in zip(row, example.context, strict=False):
            _fill(place, pair_sequence(pair))
    tensors = [torch.from_numpy(array) for array in (source, context, target)]
    return GridBatch(*(t.pin_memory() for t in tensors) if pin else tensors)


def example_tokens(example: Example) -> int:
    """Number of tokens that the model reads and writes for one example, padding excluded."""
    own = grid_tokens(example.query.input) + grid_tokens(example.query.output)
    return own + sum(pair_tokens(pair) for pair in example.context)


def padded_lengths(example: Example) -> tuple[int, ...]:
    """Lengths of an example's input, output and context pairs, each of which `collate` pads to its longest."""
    pairs = [pair_tokens(pair) for pair in example.context[:CONTEXT_PAIRS]]
    longest = max(pairs, default=1)
    return grid_tokens(example.query.input), grid_tokens(example.query.output), *(longest,) * CONTEXT_PAIRS


def grid_sequence(grid: Grid) -> np.ndarray:
    """Return tokens, rows and columns of a grid, int64 [3, T]."""
    return np.stack(encode(grid))


def target_sequence(grid: Grid) -> np.ndarray:
    """Return what the decoder reads to write a grid, earlier tokens, rows and columns, int64 [3, U]."""
    tokens, rows, columns = encode(grid)
    return np.stack([np.concatenate([[BOS], tokens[:-1]]), rows, columns])


def pair_sequence(pair: Pair) -> np.ndarray:
    """Return tokens, rows, columns and roles (0 input, 1 output) of a context pair, int64 [4, V]."""
    stride = _stride(pair)
    sides = [grid_sequence(grid)[:, ::stride] for grid in (pair.input, pair.output)]
    roles = np.repeat([[0, 1]], [side.shape[1] for side in sides], axis=1)
    return np.concatenate([np.concatenate(sides, axis=1), roles])


def padded(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Return sequences [C, T_i] as one array [N, C, T], padded to the longest."""
    array = _empty(len(sequences), len(sequences[0]), max(sequence.shape[1] for sequence in sequences))
    for row, sequence in zip(array, sequences, strict=True):
        _fill(row, sequence)
    return array


def _empty(*shape: int) -> np.ndarray:
    array = np.zeros(shape, dtype=np.int64)
    array[..., 0, :] = PAD
    return array


def _fill(row: np.ndarray, sequence: np.ndarray) -> None:
    row[:, : sequence.shape[1]] = sequence


def _stride(pair: Pair) -> int:
    return -(-(grid_tokens(pair.input) + grid_tokens(pair.output)) // CONTEXT_TOKENS)


def pair_tokens(pair: Pair) -> int:
    """Number of tokens that are read of a context pair."""
    stride = _stride(pair)
    return -(-grid_tokens(pair.input) // stride) + -(-grid_tokens(pair.output) // stride)
