"""What prepares the latent state of a supervision step, with gradient, before its last cycle.

`LatentPaths` tries several latent states and mixes them by score. `ContinuousThought` follows COCONUT ("Training Large
Language Models to Reason in a Continuous Latent Space", Hao et al., 2024): the last hidden state is fed back as the
next input. Its curriculum has stages; each replaces a part of the solution that training showed by one more thought
(see `hint_share`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainables.common.schedules import Schedule
from trainables.recursive_reasoner.config import ReasonerConfig

# f(hidden, injection), both [N, S, D]
Update = Callable[[Tensor, Tensor], Tensor]


class NoPlanner(nn.Module):
    """Leaves everything as it is."""

    slots = 0

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()

    def forward(self, network: Update, z_h: Tensor, z_l: Tensor, x: Tensor, thoughts: int) -> tuple[Tensor, Tensor]:
        return z_l, x


class LatentPaths(nn.Module):
    """Starts ``paths`` latent states in learned directions, advances each by one update, and mixes them by a score."""

    slots = 0

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(config.paths, config.width))
        self.score = nn.Linear(config.width, 1)

    def forward(self, network: Update, z_h: Tensor, z_l: Tensor, x: Tensor, thoughts: int) -> tuple[Tensor, Tensor]:
        """States and x [N, S, D] -> latent state [N, S, D] and x."""
        paths = len(self.directions)
        starts = (z_l[None] + self.directions[:, None, None].to(z_l.dtype)).flatten(0, 1)
        ends = network(starts, (z_h + x).repeat(paths, 1, 1)).unflatten(0, (paths, -1))
        # [paths, N] from the mean over positions
        weights = self.score(ends.mean(2)).squeeze(-1).softmax(dim=0)
        return (weights[:, :, None, None].to(ends.dtype) * ends).sum(0), x


class ContinuousThought(nn.Module):
    """Adds thought slots to the sequence and fills them one after the other with the hidden state at the slot before.

    Slot 0 holds a learned start; a slot that is not filled yet holds a learned blank.
    """

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.slots = most_thoughts(config) + 1
        self.start = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.blank = nn.Parameter(torch.randn(config.width) * config.width**-0.5)

    def slot_inputs(self, rows: int) -> Tensor:
        """Return the slots' part of x before any thought, [N, slots, D]."""
        return torch.stack([self.start, *[self.blank] * (self.slots - 1)]).expand(rows, -1, -1)

    def forward(self, network: Update, z_h: Tensor, z_l: Tensor, x: Tensor, thoughts: int) -> tuple[Tensor, Tensor]:
        """States and x [N, S, D] -> latent state after as many updates as there are thoughts, and x that holds them."""
        for slot in range(1, thoughts + 1):
            z_l = network(z_l, z_h + x)
            x = torch.cat([x[:, :slot], z_l[:, slot - 1 : slot], x[:, slot + 1 :]], dim=1)
        return z_l, x


PLANNERS: dict[str, Callable[[ReasonerConfig], NoPlanner | LatentPaths | ContinuousThought]] = {
    "none": NoPlanner,
    "latent_paths": LatentPaths,
    "continuous_thought": ContinuousThought,
}


def most_thoughts(config: ReasonerConfig) -> int:
    """Return the thoughts of the last stage."""
    schedule = Schedule.parse(config.thoughts)
    return int(max(schedule.start, schedule.end))


def hint_share(config: ReasonerConfig, thoughts: int) -> float:
    """Return the share of asked cells that training shows at the stage with so many thoughts: 0 at the last stage."""
    if config.planner != "continuous_thought":
        return 0.0
    return config.hints * (1 - thoughts / most_thoughts(config))
