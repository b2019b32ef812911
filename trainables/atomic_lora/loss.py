"""Cross-entropy over real tokens only, kept apart by row so that every adapter's loss is its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.arc import COLOURS, PAD


def row_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return summed cross-entropy [N] and number of real tokens [N] of logits [N, U, C] against tokens [N, U]."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(exact.transpose(1, 2), target, ignore_index=PAD, reduction="none")
    return losses.sum(1), (target != PAD).sum(1)


def all_right(logits: Tensor, target: Tensor) -> Tensor:
    """Return whether every real token of a row [N, U] is the likeliest of its logits [N, U, C], [N].

    Greedy decoding then writes exactly this row.
    """
    return ((logits.argmax(-1) == target) | (target == PAD)).all(1)


def cell_hits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return teacher-forced hits [N] among the colour cells [N] of each row; row ends and EOS are not counted."""
    cells = target < COLOURS
    return ((logits.argmax(-1) == target) & cells).sum(1), cells.sum(1)
