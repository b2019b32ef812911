"""When a puzzle's supervision steps end: `FixedHalting`, `BceHalting` (as published), `DqnHalting`.

After every step a rule turns what it sees of each row into an action: go on, halt, or expand, which is to go on after
``h_cycles`` more cycles without an answer; an expansion counts as a step. In training actions explore, in evaluation
they do not.

The reward of `DqnHalting` is the gain in cell accuracy, less ``step_penalty`` for every step and the scheduled penalty
for an expansion, and at the end +1 for a solved puzzle or -0.5. Its values do not train the network: they are learned
from a replay of what was seen, as in "Human-level control through deep reinforcement learning" (Mnih et al., 2015).

Letters in shape comments: N rows, D width, F = D + 4 features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.recursive_reasoner.config import ReasonerConfig

CONTINUE, HALT, EXPAND = range(3)
SOLVED, UNSOLVED = 1.0, -0.5


@dataclass(frozen=True)
class Exploration:
    """The scheduled values at a step of training.

    Attributes:
        epsilon: Share of exploration.
        temperature: Of sampling.
        expansion_penalty: What an expansion costs.
        warm: Whether learned values are obeyed yet.
    """

    epsilon: float
    temperature: float
    expansion_penalty: float
    warm: bool


@dataclass
class Seen:
    """What is known of each row after a supervision step.

    Attributes:
        summary: [N, D] with gradient, see `model.Output`.
        confidence: [N, 2] mean and least probability of the answer's tokens.
        changed: [N] share of cells whose answer differs from the step before.
        steps: [N] steps so far, this one included.
    """

    summary: Tensor
    confidence: Tensor
    changed: Tensor
    steps: Tensor

    def features(self, max_steps: int) -> Tensor:
        """Return [N, F], detached."""
        last = torch.stack([self.changed, self.steps / max_steps], dim=1)
        return torch.cat([self.summary, self.confidence, last], dim=1).detach()


class Halting(Protocol):
    """A halting rule: an `nn.Module` whose parameters are all trained by `loss`."""

    def values(self, seen: Seen) -> Tensor:
        """Return what the rule makes of each row, [N, ...]."""

    def explore(self, values: Tensor, draws: Tensor, exploration: Exploration) -> Tensor:
        """Return training's actions [N]; ``draws`` [N, 2] are uniform in [0, 1)."""

    def decide(self, values: Tensor) -> Tensor:
        """Return evaluation's actions [N]."""

    def solved(self, values: Tensor) -> Tensor | None:
        """Return the probability that the rule gives to each answer of being right, [N], where it has one."""


class FixedHalting(nn.Module):
    """Every row takes ``max_steps``."""

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()

    def values(self, seen: Seen) -> Tensor:
        return seen.changed

    def explore(self, values: Tensor, draws: Tensor, exploration: Exploration) -> Tensor:
        return self.decide(values)

    def decide(self, values: Tensor) -> Tensor:
        return torch.full(values.shape[:1], CONTINUE, device=values.device)

    def solved(self, values: Tensor) -> None:
        return None


class BceHalting(nn.Module):
    """Halts where a logit, trained to tell solved from unsolved answers, is above 0."""

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.logit = nn.Linear(config.width, 1)
        # as published: no row halts before the logit has learned something
        nn.init.zeros_(self.logit.weight)
        nn.init.constant_(self.logit.bias, -5.0)

    def values(self, seen: Seen) -> Tensor:
        return self.logit(seen.summary).squeeze(-1)

    def loss(self, values: Tensor, solved: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of logits [N] against whether rows are solved [N]."""
        return F.binary_cross_entropy_with_logits(values, solved.float())

    def explore(self, values: Tensor, draws: Tensor, exploration: Exploration) -> Tensor:
        return self.decide(values)

    def decide(self, values: Tensor) -> Tensor:
        return torch.where(values > 0, HALT, CONTINUE)

    def solved(self, values: Tensor) -> Tensor:
        return values.sigmoid()


class DqnHalting(nn.Module):
    """Halts or expands where the Q value of that action is the highest; trained on replayed transitions.

    Attributes:
        online: Q values [N, 3] of features [N, F].
        target: The network that follows it slowly and values what comes next.
        replay: The transitions, see `Replay`.
    """

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.config = config
        features = config.width + 4
        self.online, self.target = _q_network(features), _q_network(features)
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.replay = Replay(config.replay, features)

    def values(self, seen: Seen) -> Tensor:
        return self.online(seen.features(self.config.max_steps))

    def explore(self, values: Tensor, draws: Tensor, exploration: Exploration) -> Tensor:
        """Sample from softmax(Q / temperature), but for a share ``epsilon`` of random actions.

        Before the values are warm, rows go on instead of sampling.
        """
        sampled = _sample(torch.softmax(values.detach() / exploration.temperature, dim=1), draws[:, 1])
        chosen = sampled if exploration.warm else torch.full_like(sampled, CONTINUE)
        anything = (draws[:, 1] * 3).long()
        return torch.where(draws[:, 0] < exploration.epsilon, anything, chosen)

    def decide(self, values: Tensor) -> Tensor:
        return values.argmax(dim=1)

    def solved(self, values: Tensor) -> Tensor:
        # the value of halting is what the end pays on average
        return ((values[:, HALT] - UNSOLVED) / (SOLVED - UNSOLVED)).clamp(0, 1)

    def loss(self, draws: Tensor) -> Tensor:
        """Return the temporal-difference loss of a replayed batch, chosen by uniform draws [B]; 0 at first."""
        if len(self.replay) < len(draws):
            return next(self.online.parameters()).new_zeros(())
        batch = self.replay.sample(draws)
        with torch.no_grad():
            after = self.target(batch.after).max(dim=1).values
            wanted = batch.reward + self.config.discount * torch.where(batch.ended, 0.0, after)
        chosen = self.online(batch.before).gather(1, batch.action[:, None]).squeeze(1)
        return F.smooth_l1_loss(chosen, wanted)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the target network towards the online one by ``target_rate``."""
        for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
            target.lerp_(online, self.config.target_rate)


@dataclass
class Transitions:
    """M transitions: features before and after [M, F], action [M], reward [M], whether the row ended [M]."""

    before: Tensor
    action: Tensor
    reward: Tensor
    after: Tensor
    ended: Tensor


class Replay(nn.Module):
    """The last ``capacity`` transitions, in buffers that travel with the model and its checkpoints."""

    before: Tensor
    after: Tensor
    action: Tensor
    reward: Tensor
    ended: Tensor

    def __init__(self, capacity: int, features: int) -> None:
        super().__init__()
        self.register_buffer("before", torch.zeros(capacity, features))
        self.register_buffer("after", torch.zeros(capacity, features))
        self.register_buffer("action", torch.zeros(capacity, dtype=torch.long))
        self.register_buffer("reward", torch.zeros(capacity))
        self.register_buffer("ended", torch.zeros(capacity, dtype=torch.bool))
        self.written = 0

    def __len__(self) -> int:
        return min(self.written, len(self.reward))

    def add(self, new: Transitions) -> None:
        """Remember transitions in place of the oldest ones; of more than ``capacity`` the last ones are kept."""
        count, capacity = len(new.reward), len(self.reward)
        # An index that occurs twice in an assignment has an undefined value on GPUs.
        first = max(0, count - capacity)
        places = (self.written + torch.arange(first, count)) % capacity
        for name in ("before", "action", "reward", "after", "ended"):
            getattr(self, name)[places] = getattr(new, name)[first:]
        self.written += count

    def sample(self, draws: Tensor) -> Transitions:
        """Return the transitions at uniform draws [B] in [0, 1)."""
        places = (draws * len(self)).long().to(self.reward.device)
        return Transitions(*(getattr(self, n)[places] for n in ("before", "action", "reward", "after", "ended")))

    def get_extra_state(self) -> Any:
        return self.written

    def set_extra_state(self, state: Any) -> None:
        self.written = state


def reward(
    gain: Tensor, expanded: Tensor, ended: Tensor, solved: Tensor, step_penalty: float, expansion_penalty: float
) -> Tensor:
    """Return the reward [N] of a step that was taken.

    Args:
        gain: [N] gain in cell accuracy.
        expanded: [N] whether the step was an expansion.
        ended: [N] whether it was the row's last.
        solved: [N] whether the answer is right.
        step_penalty: Price of a step.
        expansion_penalty: Price of an expansion.
    """
    return gain - step_penalty - expansion_penalty * expanded.float() + torch.where(ended, end_reward(solved), 0.0)


def end_reward(solved: Tensor) -> Tensor:
    """Return what the end of a row pays [N]."""
    return torch.where(solved, SOLVED, UNSOLVED)


HALTING: dict[str, type[FixedHalting] | type[BceHalting] | type[DqnHalting]] = {
    "fixed": FixedHalting,
    "bce": BceHalting,
    "dqn": DqnHalting,
}


def _q_network(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 3))


def _sample(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return an index for each row of probabilities [N, K], by uniform draws [N]."""
    below = probabilities.cumsum(dim=1) <= draws[:, None]
    return below.sum(dim=1).clamp(max=probabilities.shape[1] - 1)
