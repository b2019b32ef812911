"""The loss of a supervision step, and what is counted of an answer."""

from __future__ import annotations

import torch
from torch import Tensor


def log_stablemax(logits: Tensor) -> Tensor:
    """Return log s(x) / sum s(x), with s(x) = x + 1 for x >= 0 and 1 / (1 - x) below, in float64.

    From "Grokking at the Edge of Numerical Stability" (Prieto et al., 2025); as published for TRM.

    Args:
        logits: [..., V].
    """
    x = logits.double()
    s = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    return torch.log(s / s.sum(dim=-1, keepdim=True))


def row_losses(log_p: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each row [N], the mean over its cells, from log-probabilities [N, T, V]."""
    picked = log_p.gather(-1, targets[..., None]).squeeze(-1)
    return -picked.mean(dim=1).float()


def score(answers: Tensor, targets: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of asked cells that are right [N], and whether all cells are [N], of answers [N, T]."""
    right = answers == targets
    cells = (right & asked).sum(dim=1).float() / asked.sum(dim=1).clamp(min=1)
    return cells, right.all(dim=1)
