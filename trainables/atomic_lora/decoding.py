"""Greedy autoregressive decoding, batched over rows and so over adapters, with a key-value cache.

What can be written at all, and so the grid's size, is `grammar`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainables.arc import BOS, MAX_TOKENS, PAD, Example, Grid, Pair, compare, decode
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
    """Compare an answer with the held-out output, and the input with it; see `trainables.arc.compare`.

    Returns:
        ``grid`` (exact match), ``cell``, ``size`` and ``change_recall`` of the answer, ``copy_grid`` and ``copy_cell``
        of giving the input back.
    """
    own, copied = compare(answer, example.query), compare(example.query.input, example.query)
    return {
        "grid": own["exact"], "cell": own["cell"], "size": own["size"], "change_recall": own["change_recall"],
        "copy_grid": copied["exact"], "copy_cell": copied["cell"],
    }  # fmt: skip
