"""Halting rules: what they decide, what drives exploration, rewards, and that Q-values are learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.evaluation import calibration_error
from trainables.recursive_reasoner.halting import (
    CONTINUE,
    EXPAND,
    HALT,
    BceHalting,
    DqnHalting,
    Exploration,
    FixedHalting,
    Replay,
    Seen,
    Transitions,
    end_reward,
    reward,
)

CONFIG = ReasonerConfig(width=6, max_steps=4, replay=512, replay_batch=64, target_rate=0.05, discount=0.8)
torch.set_num_threads(1)


def _seen(rows: int) -> Seen:
    generator = torch.Generator().manual_seed(0)
    return Seen(
        torch.randn(rows, 6, generator=generator),
        torch.rand(rows, 2, generator=generator),
        torch.rand(rows, generator=generator),
        torch.ones(rows, dtype=torch.long),
    )


def _draws(rows: int) -> Tensor:
    return torch.rand(rows, 2, generator=torch.Generator().manual_seed(5))


def _exploration(epsilon: float = 0.0, temperature: float = 1.0, warm: bool = True) -> Exploration:
    return Exploration(epsilon, temperature, 0.0, warm)


def test_fixed_never_halts_and_has_nothing_to_train() -> None:
    rule = FixedHalting(CONFIG)
    assert (rule.decide(rule.values(_seen(5))) == CONTINUE).all() and not list(rule.parameters())


def test_bce_begins_without_halting_and_learns_to_tell_solved_rows() -> None:
    torch.manual_seed(0)
    rule, seen = BceHalting(CONFIG), _seen(200)
    assert (rule.decide(rule.values(seen)) == CONTINUE).all()
    solved = seen.summary[:, 2] > 0
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        rule.loss(rule.values(seen), solved).backward()
        optimizer.step()
    action = rule.decide(rule.values(seen))
    assert ((action == HALT) == solved).float().mean() > 0.95
    assert (rule.solved(rule.values(seen)) > 0.5).eq(solved).float().mean() > 0.95


@pytest.mark.parametrize(("temperature", "share"), [(10.0, 0.366), (1.0, 0.665), (0.1, 1.0)])
def test_the_temperature_drives_sampling(temperature: float, share: float) -> None:
    rows = 4000
    values = torch.tensor([[0.0, 1.0, -1.0]]).expand(rows, -1)
    action = DqnHalting(CONFIG).explore(values, _draws(rows), _exploration(temperature=temperature))
    assert float((action == HALT).float().mean()) == pytest.approx(share, abs=0.03)
    assert set(action.tolist()) <= {CONTINUE, HALT, EXPAND}


def test_epsilon_is_the_share_of_random_actions() -> None:
    rows, rule = 6000, DqnHalting(CONFIG)
    values = torch.tensor([[0.0, 9.0, 0.0]]).expand(rows, -1)
    for epsilon in (0.0, 0.3, 1.0):
        action = rule.explore(values, _draws(rows), _exploration(epsilon, temperature=0.01))
        assert float((action != HALT).float().mean()) == pytest.approx(epsilon * 2 / 3, abs=0.02)


def test_values_are_not_obeyed_during_the_warm_up() -> None:
    values = torch.tensor([[0.0, 9.0, 0.0]]).expand(50, -1)
    rule = DqnHalting(CONFIG)
    assert (rule.explore(values, _draws(50), _exploration(warm=False)) == CONTINUE).all()
    assert (rule.explore(values, _draws(50), _exploration(temperature=0.1)) == HALT).all()
    assert (rule.decide(values) == HALT).all()


def test_rewards_by_hand() -> None:
    yes, no = torch.tensor([True]), torch.tensor([False])
    gain = torch.tensor([0.25])
    assert reward(gain, no, no, no, 0.01, 0.1).item() == pytest.approx(0.24)
    assert reward(gain, yes, no, no, 0.01, 0.1).item() == pytest.approx(0.14)
    assert reward(gain, no, yes, yes, 0.01, 0.1).item() == pytest.approx(1.24)
    assert reward(-gain, yes, yes, no, 0.01, 0.05).item() == pytest.approx(-0.25 - 0.01 - 0.05 - 0.5)
    assert end_reward(torch.tensor([True, False])).tolist() == [1.0, -0.5]


def test_the_oldest_transitions_are_forgotten() -> None:
    replay = Replay(4, features=2)
    for number in range(6):
        row = torch.full((1, 2), float(number))
        replay.add(Transitions(row, torch.tensor([number % 3]), row[:, 0], row + 1, torch.tensor([number == 5])))
    assert len(replay) == 4
    sampled = replay.sample(torch.tensor([0.0, 0.3, 0.6, 0.99]))
    assert sorted(sampled.reward.tolist()) == [2.0, 3.0, 4.0, 5.0]
    assert torch.equal(sampled.after, sampled.before + 1) and sampled.ended.tolist() == (sampled.reward == 5).tolist()
    other = Replay(4, features=2)
    other.load_state_dict(replay.state_dict())
    assert len(other) == 4 and other.written == 6


def test_of_more_transitions_than_fit_the_last_are_remembered() -> None:
    replay = Replay(4, features=2)
    numbers = torch.arange(11.0)
    rows = numbers[:, None].expand(11, 2)
    replay.add(Transitions(rows, numbers.long(), numbers, rows + 1, numbers == 10))
    assert replay.reward.tolist() == [8.0, 9.0, 10.0, 7.0] and replay.written == 11
    replay.add(Transitions(rows[:1], numbers[:1].long(), numbers[:1], rows[:1] + 1, numbers[:1] == 10))
    assert replay.reward.tolist() == [8.0, 9.0, 10.0, 0.0], "the oldest one makes room"


def _world(rule: DqnHalting, rows: int, generator: torch.Generator) -> None:
    """Rows are solved or not, as feature 0 says; going on solves a row, expanding does the same for a price."""
    before = torch.randn(rows, 10, generator=generator)
    solved = torch.rand(rows, generator=generator) < 0.5
    before[:, 0] = solved.float()
    action = torch.randint(3, (rows,), generator=generator)
    halts = action == HALT
    after = torch.randn(rows, 10, generator=generator)
    after[:, 0] = 1.0
    gain = torch.where(solved, 0.0, 0.5)
    came = reward(gain, action == EXPAND, torch.zeros_like(halts), solved, 0.01, 0.1)
    rule.replay.add(Transitions(before, action, torch.where(halts, end_reward(solved), came), after, halts))


def test_q_values_are_learned_from_the_replay() -> None:
    torch.manual_seed(0)
    rule = DqnHalting(replace(CONFIG, replay=4096))
    generator = torch.Generator().manual_seed(1)
    assert rule.loss(torch.rand(64)).item() == 0.0, "nothing to learn from yet"
    _world(rule, 4096, generator)
    untouched = [p.clone() for p in rule.target.parameters()]
    optimizer = torch.optim.Adam([p for p in rule.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(500):
        optimizer.zero_grad()
        rule.loss(torch.rand(256, generator=generator)).backward()
        optimizer.step()
        rule.follow()
    assert all(p.grad is None for p in rule.target.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(untouched, rule.target.parameters(), strict=True))
    test = torch.randn(200, 10, generator=generator)
    test[:, 0] = (torch.arange(200) % 2).float()
    values = rule.online(test)
    action = rule.decide(values)
    assert (action[test[:, 0] == 1] == HALT).float().mean() > 0.95
    assert (action[test[:, 0] == 0] == CONTINUE).float().mean() > 0.95
    # an unsolved row that goes on: gain and price of a step, then the discounted end
    going_on = values[test[:, 0] == 0][:, CONTINUE].mean().detach()
    assert float(going_on) == pytest.approx(0.5 - 0.01 + 0.8 * 1.0, abs=0.1)
    assert rule.solved(values)[test[:, 0] == 1].mean() > 0.9 > 0.3 > rule.solved(values)[test[:, 0] == 0].mean()


def test_features_carry_no_gradient_into_the_network() -> None:
    seen = _seen(3)
    seen.summary.requires_grad_()
    rule = DqnHalting(replace(CONFIG, max_steps=4))
    assert seen.features(4).shape == (3, 10) and not seen.features(4).requires_grad
    rule.values(seen).sum().backward()
    assert seen.summary.grad is None


def test_calibration_error_of_known_probabilities() -> None:
    right = torch.tensor([True, True, True, False])
    assert calibration_error(torch.full((4,), 0.75), right) == pytest.approx(0.0)
    assert calibration_error(torch.full((4,), 0.95), right) == pytest.approx(0.2)
    assert calibration_error(torch.tensor([1.0, 1.0, 0.0, 0.0]), right) == pytest.approx(0.25)
