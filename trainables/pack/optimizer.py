"""AdamW over stacked adapters: one step for all of them, each with its own clipping, rate, decay and step counter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class SlotStep:
    """How one slot takes a step.

    Attributes:
        slot: Its index.
        step: The step's number, from 1.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        clip_norm: Largest gradient norm.
    """

    slot: int
    step: int
    lr: float
    weight_decay: float
    clip_norm: float


class StackedAdamW:
    """AdamW (Loshchilov and Hutter, 2019) with the defaults of torch, on rows [S, P] that know nothing of each other.

    Args:
        values: [S, P] parameters, updated in place.

    Attributes:
        first_moment, second_moment: [S, P].
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.first_moment, self.second_moment = torch.zeros_like(values), torch.zeros_like(values)

    @torch.no_grad()
    def step(self, steps: list[SlotStep], grad: Tensor, norm: Tensor) -> None:
        """Clip each slot's gradient by its own norm and update the slots of ``steps``; no others change.

        Args:
            steps: The slots that take a step.
            grad: [S, P] gradients, scaled in place; what lies in other slots is ignored.
            norm: [S] their norms.
        """
        # active, learning rate, decay factor, both bias corrections, clip norm: one copy to the device for all
        neutral = (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)
        table = [list(neutral) for _ in range(len(self.values))]
        for one in steps:
            bias1, bias2 = 1.0 - BETA1**one.step, math.sqrt(1.0 - BETA2**one.step)
            table[one.slot] = [1.0, one.lr, 1.0 - one.lr * one.weight_decay, bias1, bias2, one.clip_norm]
        columns = torch.tensor(table, dtype=self.values.dtype).T.to(self.values.device, non_blocking=True)
        active, lr, decay, bias1_, bias2_, clip = columns[:, :, None]
        grad.mul_((clip / (norm[:, None] + 1e-6)).clamp_max(1.0))
        self.first_moment.lerp_(grad, (1.0 - BETA1) * active)
        self.second_moment.lerp_(grad.square(), (1.0 - BETA2) * active)
        denominator = self.second_moment.sqrt().div_(bias2_).add_(EPSILON)
        self.values.mul_(decay).addcdiv_(self.first_moment * (-lr / bias1_), denominator)

    def reset(self, slot: int) -> None:
        """Forget what a slot's last tenant left."""
        self.first_moment[slot].zero_()
        self.second_moment[slot].zero_()
