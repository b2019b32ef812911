"""The policy that chooses how a prompt is changed, and what it is rewarded for.

REINFORCE with a learned baseline (Williams, 1992). The reward is what changed: the score of the prediction under the
changed prompt minus that under the unchanged one, on a demonstration that the prompt does not hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.arc import COLOURS
from trainables.arc_efe import free_energy
from trainables.arc_efe.prompts import CHANGES

# accuracy counts 1, each of size, colours and reverse a half
PART = 0.5
HIGHEST_SCORE = 1 + 3 * PART


class Score(NamedTuple):
    """How good a prediction is, each [B] and in [0, 1]."""

    accuracy: Tensor
    size: Tensor
    colour: Tensor
    reverse: Tensor

    @property
    def total(self) -> Tensor:
        """``accuracy + 0.5 (size + colour + reverse)``, in [0, 2.5]."""
        return self.accuracy + PART * (self.size + self.colour + self.reverse)


class Policy(nn.Module):
    """Chooses among `CHANGES` from the prompt's embedding and the prediction under it, and predicts the reward."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        width = embedding + COLOURS + 3
        self.actor = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, len(CHANGES)))
        self.baseline = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 1))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of changes [B, 6] and the reward expected in a state [B] from states [B, W]."""
        return self.actor(state), self.baseline(state).squeeze(1)


def state_of(prompt: Tensor, logits: Tensor, size: Tensor) -> Tensor:
    """Return what the policy sees: prompt [B, E], colours, doubt, and how sure the size is; without gradient.

    Args:
        prompt: Prompt embeddings.
        logits: Of the last step, [B, S, S, 10].
        size: Logits [B, 2, 30].
    """
    p = logits.softmax(-1)
    sure = size.softmax(-1).amax(-1)
    parts = [prompt.float(), p.mean((1, 2)), free_energy.entropy(p).mean((1, 2))[:, None], sure]
    return torch.cat(parts, 1).detach()


def policy_loss(logits: Tensor, expected: Tensor, action: Tensor, reward: Tensor, entropy_weight: float) -> Tensor:
    """Return the loss of actions [B] that brought rewards [B]: REINFORCE, the baseline's square error, and entropy."""
    log_p = logits.log_softmax(1)
    advantage = (reward - expected).detach()
    chosen = log_p.gather(1, action[:, None]).squeeze(1)
    doubt = -(log_p.exp() * log_p).sum(1)
    return (-advantage * chosen - entropy_weight * doubt).mean() + PART * F.mse_loss(expected, reward.detach())


@torch.no_grad()
def score(
    logits: Tensor, size: Tensor, reconstructed: Tensor, targets: Tensor, target_size: Tensor, inputs: Tensor
) -> Score:
    """Compare predictions with targets.

    Args:
        logits: Of the last step, [B, S, S, 10].
        size: Logits of height and width, [B, 2, 30].
        reconstructed: Logits of the input that the backward model gives to the predicted output, [B, S, S, 10].
        targets, inputs: [B, S, S], with ``OUTSIDE`` beyond the grid.
        target_size: [B, 2].
    """
    answer, shown = logits.argmax(-1), within(predicted_size(size, targets.shape[1]), targets.shape[1])
    asked, given = targets < COLOURS, inputs < COLOURS
    right = (answer == targets) & shown & asked
    shares = [_shares(grid, mask) for grid, mask in ((answer, shown), (targets, asked))]
    return Score(
        right.sum((1, 2)) / target_size.prod(1),
        (predicted_size(size, targets.shape[1]) == target_size).all(1).float(),
        torch.minimum(*shares).sum(1),
        ((reconstructed.argmax(-1) == inputs) & given).sum((1, 2)) / given.sum((1, 2)),
    )


def predicted_size(size: Tensor, side: int) -> Tensor:
    """Return height and width [B, 2], at most ``side``, from logits [B, 2, 30]."""
    return size[..., :side].argmax(-1) + 1


def within(size: Tensor, side: int) -> Tensor:
    """Return which cells of a canvas are in grids of sizes [B, 2], bool [B, S, S]."""
    line = torch.arange(side, device=size.device)
    return (line[None, :, None] < size[:, :1, None]) & (line[None, None, :] < size[:, 1:, None])


def _shares(grid: Tensor, mask: Tensor) -> Tensor:
    counts = (F.one_hot(grid.clamp_max(COLOURS - 1), COLOURS) * mask[..., None]).sum((1, 2)).float()
    return counts / counts.sum(1, keepdim=True).clamp_min(1)
