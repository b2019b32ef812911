"""The component monitor measures gradients and updates by component and names the dead ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.common.monitor import (
    ComponentMonitor,
    DeadComponentError,
    FrozenScheduleError,
    require_gradients,
    require_movement,
)


@pytest.fixture
def layers() -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    return {"used": nn.Linear(3, 2), "other": nn.Linear(2, 1)}


def _monitor(layers: dict[str, nn.Linear]) -> ComponentMonitor:
    return ComponentMonitor({name: layer.parameters() for name, layer in layers.items()})


def _backward(layers: dict[str, nn.Linear], scale: float) -> None:
    for layer in layers.values():
        layer.zero_grad(set_to_none=True)
    (scale * layers["other"](layers["used"](torch.ones(1, 3)))).sum().backward()


def test_norms_are_means_over_steps_and_distances_from_the_start(layers: dict[str, nn.Linear]) -> None:
    monitor = _monitor(layers)
    expected = []
    for scale in (1.0, 3.0):
        _backward(layers, scale)
        monitor.after_backward()
        expected.append(
            torch.cat([p.grad.flatten() for p in layers["used"].parameters() if p.grad is not None]).norm().item()
        )
    with torch.no_grad():
        layers["used"].weight += 2.0
    columns = monitor.end_epoch()
    assert columns["grad_norm/used"] == pytest.approx(sum(expected) / 2)
    assert columns["update_norm/used"] == pytest.approx(2.0 * 6**0.5)
    assert columns["update_norm/other"] == 0.0
    assert sorted(columns) == ["grad_norm/other", "grad_norm/used", "update_norm/other", "update_norm/used"]


@pytest.mark.parametrize("detached", [True, False], ids=["no gradient", "a gradient of zeros"])
def test_a_component_without_gradient_fails_by_name(layers: dict[str, nn.Linear], detached: bool) -> None:
    monitor = _monitor(layers)
    hidden = layers["used"](torch.ones(1, 3))
    layers["other"](hidden.detach() if detached else 0.0 * hidden).sum().backward()
    monitor.after_backward()
    with pytest.raises(DeadComponentError, match="reached used in"):
        monitor.end_epoch()


def test_a_component_may_rest_after_the_first_epoch(layers: dict[str, nn.Linear]) -> None:
    monitor = _monitor(layers)
    _backward(layers, 1.0)
    monitor.after_backward()
    assert monitor.end_epoch()["grad_norm/used"] > 0
    _backward(layers, 0.0)
    monitor.after_backward()
    assert monitor.end_epoch()["grad_norm/used"] == 0.0


def test_one_step_with_a_gradient_is_enough(layers: dict[str, nn.Linear]) -> None:
    monitor = _monitor(layers)
    for scale in (0.0, 1.0):
        _backward(layers, scale)
        monitor.after_backward()
    assert monitor.end_epoch()["grad_norm/used"] > 0


def test_every_dead_component_is_named_and_nan_is_not_dead() -> None:
    with pytest.raises(DeadComponentError, match="reached a, b in"):
        require_gradients({"b": 0.0, "a": 0.0, "c": 1.0, "d": float("nan")})
    require_gradients({"c": 1e-30, "d": float("nan")})


def test_a_schedule_that_does_not_move_is_named() -> None:
    require_movement({"lr": 1.0, "epsilon": 0.3}, {"lr": 0.5, "epsilon": 0.3}, ["lr"])
    with pytest.raises(FrozenScheduleError, match="The schedule of epsilon did not move in the first epoch"):
        require_movement({"lr": 1.0, "epsilon": 0.3}, {"lr": 0.5, "epsilon": 0.3}, ["lr", "epsilon"])


def test_what_was_noted_travels_with_a_checkpoint() -> None:
    layer = nn.Linear(2, 1)
    monitor, resumed = (ComponentMonitor({"layer": layer.parameters()}) for _ in range(2))
    layer(torch.ones(1, 2)).sum().backward()
    monitor.after_backward()
    resumed.load_state_dict(monitor.state_dict())
    resumed.after_backward()
    assert resumed.end_epoch() == pytest.approx(monitor.end_epoch())
