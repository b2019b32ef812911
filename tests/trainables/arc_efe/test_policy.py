"""The policy: its gradient is REINFORCE's, its reward moves, and it finds the change that pays."""

from __future__ import annotations

import pytest
import torch

from trainables.arc_efe.policy import HIGHEST_SCORE, Policy, policy_loss, predicted_size, score, within
from trainables.arc_efe.prompts import CHANGES


def test_the_gradient_is_that_of_reinforce_with_a_baseline() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, len(CHANGES), requires_grad=True)
    expected, reward = torch.randn(5, requires_grad=True), torch.randn(5)
    action = torch.tensor([0, 1, 2, 3, 4])
    policy_loss(logits, expected, action, reward, 0.0).backward()
    chosen = torch.nn.functional.one_hot(action, len(CHANGES)).float()
    advantage = (reward - expected).detach()
    assert torch.allclose(logits.grad, -(advantage[:, None] * (chosen - logits.softmax(1))) / 5, atol=1e-6)
    # the baseline moves to the reward, and the reward itself is no constant without gradient
    assert torch.allclose(expected.grad, -advantage / 5, atol=1e-6)


def test_entropy_is_rewarded() -> None:
    logits = torch.zeros(3, len(CHANGES))
    sharp = torch.zeros(3, len(CHANGES))
    sharp[:, 0] = 9.0
    zero = torch.zeros(3)
    action = torch.zeros(3, dtype=torch.long)
    assert policy_loss(logits, zero, action, zero, 0.01) < policy_loss(sharp, zero, action, zero, 0.01)


def test_the_policy_finds_the_change_that_pays() -> None:
    torch.manual_seed(0)
    policy = Policy(4)
    state = torch.randn(32, 4 + 13)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(150):
        logits, expected = policy(state)
        action = torch.multinomial(logits.detach().softmax(1), 1).squeeze(1)
        loss = policy_loss(logits, expected, action, (action == 3).float(), 0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (policy(state)[0].argmax(1) == 3).float().mean() > 0.9


def test_a_score_has_four_parts() -> None:
    targets = torch.tensor([[[1, 2, 10], [3, 4, 10], [10, 10, 10]]])
    inputs = torch.tensor([[[1, 1, 10], [10, 10, 10], [10, 10, 10]]])
    sizes = torch.full((1, 2, 30), -9.0)
    sizes[0, :, 1] = 9.0
    perfect = 9.0 * torch.nn.functional.one_hot(targets.clamp_max(9), 10).float()
    back = 9.0 * torch.nn.functional.one_hot(inputs.clamp_max(9), 10).float()
    found = score(perfect, sizes, back, targets, torch.tensor([[2, 2]]), inputs)
    assert float(found.total) == HIGHEST_SCORE
    sizes[0, 0, 0] = 99.0
    found = score(perfect, sizes, back, targets, torch.tensor([[2, 2]]), inputs)
    assert (float(found.accuracy), float(found.size), float(found.reverse)) == (0.5, 0.0, 1.0)
    assert float(found.colour) == pytest.approx(0.5)


def test_sizes_never_leave_the_canvas() -> None:
    sizes = torch.zeros(1, 2, 30)
    sizes[0, :, 29] = 9.0
    assert predicted_size(sizes, 5).max() <= 5
    assert within(torch.tensor([[2, 3]]), 4).sum() == 6
