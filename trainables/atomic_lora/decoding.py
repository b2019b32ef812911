"""Greedy autoregressive decoding, batched over rows and so over adapters, with a key-value cache.

What can be written at all, and so the grid's size, is `grammar`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainables.arc import BOS, MAX_TOKENS, PAD, Example, Grid, Pair, decode
from trainables.atomic_lora.data import collate
from trainables.atomic_lora.grammar import GridState
from trainables.atomic_lora.model import Champion
from trainables.pack.bank import AdapterPack

# the cache grows in blocks, and rows that are done are dropped once a block
BLOCK = 32
BLANK = np.zeros((1, 1), dtype=np.int8)


@torch.no_grad()
def generate(
    model: Champion,
    examples: Sequence[Example],
    device: str | torch.device = "cpu",
    pack: AdapterPack | None = None,
) -> list[Grid | None]:
    """Return the model's answer to each example's query; the query's own output is never read.

    Args:
        model: The Champion, bare or with packed adapters on it.
        examples: Rows, those that the pack's bank in use belongs to.
        device: Where the model is.
        pack: The pack on the model, if there is one: it follows the rows that still have something to write.

    Returns:
        A grid for each row; None for a row that spells no grid.
    """
    if pack is None:
        return _generate(model, examples, device, None)
    with pack.use(pack.bank, pack.owners):
        return _generate(model, examples, device, pack)


def _generate(
    model: Champion, examples: Sequence[Example], device: str | torch.device, pack: AdapterPack | None
) -> list[Grid | None]:
    # the batch is built without the answers, so that none can leak
    batch = collate([Example(e.context, Pair(e.query.input, BLANK)) for e in examples]).to(device)
    context = model.context_encoder(batch.context)
    caches = model.start_cache(batch.source, BLOCK)
    state = GridState(len(examples), device)
    previous = torch.full_like(state.rows, BOS)
    answers = torch.full((len(examples), MAX_TOKENS), PAD, device=device)
    left = torch.arange(len(examples), device=device)
    for length in range(1, MAX_TOKENS + 1):
        if length % BLOCK == 1:
            # dropped first: the longest answers are often those of a few
            alive = ~state.done
            if not bool(alive.any()):
                break
            if not bool(alive.all()):
                state.keep(alive)
                previous, left, context = previous[alive], left[alive], context[alive]
                caches = [cache.keep(alive) for cache in caches]
                if pack is not None:
                    pack.keep(alive.nonzero()[:, 0].tolist())
            if length > 1:
                caches = [cache.grow(BLOCK) for cache in caches]
        logits = model.step(previous, state.rows, state.columns, context, caches, length)
        token = state.write(logits.float().masked_fill(~state.allowed(), -torch.inf).argmax(-1))
        answers[left, length - 1] = token
        previous = token
    spelled = answers.cpu().numpy()
    return [decode(row.tolist()) for row in spelled]


def grid_metrics(answer: Grid | None, example: Example) -> dict[str, float]:
    """Compare an answer with the held-out output, all values in [0, 1].

    Cells are compared at equal positions; a cell outside the answer counts as wrong. ``change_recall`` is the share of
    right cells among those that differ from the input (a cell outside the input differs), and NaN where none does.

    Returns:
        ``grid`` (exact match), ``cell``, ``size`` and ``change_recall`` of the answer, ``copy_grid`` and ``copy_cell``
        of giving the input back.
    """
    truth, source = example.query.output, example.query.input
    right = _agreement(answer, truth)
    copied = _agreement(source, truth)
    changed = ~copied
    return {
        "grid": float(answer is not None and answer.shape == truth.shape and right.all()),
        "cell": float(right.mean()),
        "size": float(answer is not None and answer.shape == truth.shape),
        "change_recall": float(right[changed].mean()) if changed.any() else float("nan"),
        "copy_grid": float(source.shape == truth.shape and copied.all()),
        "copy_cell": float(copied.mean()),
    }


def _agreement(answer: Grid | None, truth: Grid) -> np.ndarray:
    right = np.zeros(truth.shape, dtype=bool)
    if answer is not None:
        height, width = np.minimum(answer.shape, truth.shape)
        right[:height, :width] = answer[:height, :width] == truth[:height, :width]
    return right
