"""The component monitor: what is declared trainable must get a gradient and what is scheduled must move, or the trial
fails by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


class DeadComponentError(RuntimeError):
    """A component was declared trainable and got no gradient through the whole first epoch."""


class FrozenScheduleError(RuntimeError):
    """A schedule that goes from one value to another had the same value through the whole first epoch."""


def require_movement(first: Mapping[str, float], last: Mapping[str, float], moving: Iterable[str]) -> None:
    """Raise `FrozenScheduleError` naming every schedule that should move and did not.

    Args:
        first: Scheduled values at the first step, by name.
        last: The same at the last step of the first epoch.
        moving: Names of the schedules whose start and end differ.
    """
    frozen = sorted(name for name in moving if first[name] == last[name])
    if frozen:
        raise FrozenScheduleError(
            f"The schedule of {', '.join(frozen)} did not move in the first epoch: it does not see the global step."
        )


def require_gradients(norms: Mapping[str, float]) -> None:
    """Raise `DeadComponentError` naming every component whose gradient norm over the first epoch is zero.

    Args:
        norms: Mean gradient norm over the epoch's steps, by component. A NaN is a divergence, not a dead component.
    """
    dead = sorted(name for name, norm in norms.items() if norm == 0.0)
    if dead:
        raise DeadComponentError(
            f"No gradient reached {', '.join(dead)} in the first epoch, though declared trainable: "
            "the component does not take part in the loss."
        )


class ComponentMonitor:
    """Gradient norm and parameter change of each component of a model, by name.

    Args:
        components: Parameters by component name; every one of them is declared trainable.
    """

    def __init__(self, components: Mapping[str, Iterable[nn.Parameter]]) -> None:
        self._parameters = {name: list(parameters) for name, parameters in components.items()}
        self._start = {name: [p.detach().clone() for p in ps] for name, ps in self._parameters.items()}
        self._sums: dict[str, torch.Tensor | float] = dict.fromkeys(self._parameters, 0.0)
        self._steps = 0
        self._first_epoch = True

    def after_backward(self) -> None:
        """Take note of the gradients of one step, before they are clipped."""
        self._steps += 1
        for name, parameters in self._parameters.items():
            norm = _norm([p.grad for p in parameters if p.grad is not None])
            if norm is not None:
                # kept on the device: one synchronisation an epoch, not one a step
                self._sums[name] = self._sums[name] + norm

    def end_epoch(self) -> dict[str, float]:
        """Return ``grad_norm/<name>`` (mean over the steps) and ``update_norm/<name>`` (distance from the start).

        Raises:
            DeadComponentError: After the first epoch, if a component got no gradient.
        """
        norms = {name: float(total) / max(1, self._steps) for name, total in self._sums.items()}
        if self._first_epoch:
            require_gradients(norms)
        columns = {f"grad_norm/{name}": norm for name, norm in norms.items()}
        for name, parameters in self._parameters.items():
            change = _norm([p.detach() - start for p, start in zip(parameters, self._start[name], strict=True)])
            columns[f"update_norm/{name}"] = float(change) if change is not None else 0.0
        self._sums, self._steps, self._first_epoch = dict.fromkeys(self._parameters, 0.0), 0, False
        return columns

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted since the last epoch; the start is that of the model as it was given."""
        return {"sums": self._sums, "steps": self._steps, "first_epoch": self._first_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._sums, self._steps, self._first_epoch = dict(state["sums"]), state["steps"], state["first_epoch"]


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))) if tensors else None
