"""Phase 3: policy and value networks by self-play with tree search, on a game that is small enough to solve.

Games are played by `trainables.reasoning_agents.search` in shares that a cluster spreads over its machines. After each
round moves are judged: against the solver, a random player, and OpenSpiel's MCTS with as many simulations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trainables.common.intervals import half_width
from trainables.common.monitor import ComponentMonitor
from trainables.reasoning_agents import games
from trainables.reasoning_agents.phase import Work, save
from trainables.reasoning_agents.search import Match, Nets, SelfPlay, match, play, search

# tasks that a round's games are shared out to
SHARES = 2
NET_BATCH = 128


def run_phase(work: Work) -> dict[str, Any]:
    """Train by self-play, measuring after each round; compare with the same search without trained networks."""
    config = work.config
    positions = games.solved_positions(config.game, config.positions, work.seed)
    trainer = SelfPlayTrainer(work, positions)
    untrained = trainer.judge(None)
    work.rounds("selfplay", trainer)
    save(work.folder, "nets.pt", trainer.nets.state_dict())
    last = work.history[-1]
    measured = {name: last[name] for name in MEASURED}
    before = {f"untrained_{name}": untrained[name] for name in COMPARED}
    return work.finish(
        {**measured, **before, "position_count": len(positions), "selfplay_curve": curve(work, untrained)}
    )


# what is measured of the same search without trained networks as well
COMPARED = (
    "mcts_win_rate", "mcts_win_rate_half", "bot_win_rate", "bot_win_rate_half", "optimal_moves", "optimal_moves_half",
    "policy_optimal_moves",
)  # fmt: skip
# what is taken over from the last round
MEASURED = (*COMPARED, "optimal_random", "games_per_second")


def curve(work: Work, untrained: dict[str, Any]) -> list[dict[str, float]]:
    """Return the measurements along training as JSON can hold them, before the first round included."""
    names = ("mcts_win_rate", "bot_win_rate", "optimal_moves", "policy_optimal_moves")
    return [{name: entry[name] for name in names} for entry in (untrained, *work.history)]


class PolicyValue(nn.Module):
    """Policy and value network, each an MLP with 128 and 64 hidden units."""

    def __init__(self, seen: int, actions: int) -> None:
        super().__init__()
        self.policy, self.value = _mlp(seen, actions), _mlp(seen, 1)

    def arrays(self) -> dict[str, list[np.ndarray]]:
        """Return the weights as `Nets` takes them."""
        return {
            name: [
                a
                for layer in part
                if isinstance(layer, nn.Linear)
                for a in (_array(layer.weight.T), _array(layer.bias))
            ]
            for name, part in (("policy", self.policy), ("value", self.value))
        }


class SelfPlayTrainer:
    """Plays games and trains the networks on them.

    Args:
        work: The phase.
        positions: Solved positions to judge moves on.
    """

    def __init__(self, work: Work, positions: Sequence[tuple[tuple[int, ...], list[int]]]) -> None:
        self._work, self._config, self._positions = work, work.config, positions
        self._game = games.load_game(work.config.game)
        self._actions = self._game.num_distinct_actions()
        torch.manual_seed(work.seed)
        seen = len(games.observation(self._game.new_initial_state()))
        self.nets = PolicyValue(seen, self._actions)
        self._monitor = ComponentMonitor(
            {"policy": self.nets.policy.parameters(), "value": self.nets.value.parameters()}
        )
        self._optimizer = torch.optim.AdamW(self.nets.parameters(), lr=work.config.net_lr, weight_decay=1e-4)
        self._buffer = [np.zeros((0, width), dtype=np.float32) for width in (seen, self._actions, 1)]

    def train_round(self, number: int) -> tuple[float, dict[str, Any]]:
        """Play a round's games, train on the buffer, and judge."""
        config, began = self._config, time.monotonic()
        shares = min(SHARES, config.selfplay_games)
        plans = [
            SelfPlay(config.game, self.nets.arrays(), size, config.simulations, config.c,
                     self._work.seed * 1_000_003 + number * 1009 + share)
            for share, size in enumerate(_shares(config.selfplay_games, shares))
        ]  # fmt: skip
        for played in self._work.map(play, plans):
            parts = (played[0], played[1], played[2][:, None])
            self._buffer = [np.concatenate([a, b])[-config.buffer :] for a, b in zip(self._buffer, parts, strict=True)]
        speed = config.selfplay_games / (time.monotonic() - began)
        rng, losses = np.random.default_rng([self._work.seed, number]), []
        for _ in range(config.net_steps):
            losses.append(self._step(rng.integers(len(self._buffer[0]), size=NET_BATCH)))
        policy_loss, value_loss = (statistics.fmean(column) for column in zip(*losses, strict=True))
        metrics = self.judge(self.nets.arrays())
        metrics |= {
            "games_per_second": speed,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "lr": config.net_lr,
        }
        return metrics["optimal_moves"], {**metrics, **self._monitor.end_epoch()}

    def judge(self, weights: dict[str, list[np.ndarray]] | None) -> dict[str, Any]:
        """Return win rates and the share of optimal moves of a search with networks, or with none."""
        config = self._config
        plan = SelfPlay(config.game, weights, config.match_games, config.simulations, config.c, self._work.seed)
        outcomes = {
            opponent: [o for part in self._work.map(match, [
                Match(replace(plan, games=size, seed=self._work.seed * 7919 + share), opponent)
                for share, size in enumerate(_shares(config.match_games, min(SHARES, config.match_games)))
            ]) for o in part]
            for opponent in ("random", "mcts")
        }  # fmt: skip
        states = [games.state_at(self._game, moves) for moves, _ in self._positions]
        nets = Nets(weights, self._actions)
        visits = search(states, nets, self._actions, config.simulations, config.c)
        optimal = [int(row.argmax()) in best for row, (_, best) in zip(visits, self._positions, strict=True)]
        policy = [int(row.argmax()) in best for row, (_, best) in zip(nets(states)[0], self._positions, strict=True)]
        chance = [len(best) / len(s.legal_actions()) for s, (_, best) in zip(states, self._positions, strict=True)]
        return {
            "mcts_win_rate": statistics.fmean(outcomes["random"]),
            "mcts_win_rate_half": half_width(outcomes["random"]),
            "bot_win_rate": statistics.fmean(outcomes["mcts"]),
            "bot_win_rate_half": half_width(outcomes["mcts"]),
            "optimal_moves": statistics.fmean(optimal),
            "optimal_moves_half": half_width(optimal),
            "policy_optimal_moves": statistics.fmean(policy),
            "optimal_random": statistics.fmean(chance),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "nets": self.nets.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "monitor": self._monitor.state_dict(),
            "buffer": [torch.from_numpy(part) for part in self._buffer],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.nets.load_state_dict(state["nets"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._monitor.load_state_dict(state["monitor"])
        self._buffer = [part.numpy() for part in state["buffer"]]

    def _step(self, rows: np.ndarray) -> tuple[float, float]:
        seen, shares, outcomes = (torch.from_numpy(part[rows]) for part in self._buffer)
        policy_loss = functional.cross_entropy(self.nets.policy(seen), shares)
        value_loss = functional.mse_loss(torch.tanh(self.nets.value(seen)), outcomes)
        self._optimizer.zero_grad()
        (policy_loss + value_loss).backward()
        self._monitor.after_backward()
        self._optimizer.step()
        return policy_loss.item(), value_loss.item()


def _shares(count: int, parts: int) -> list[int]:
    # even numbers: half of a match's games have each colour
    whole = [2 * (count // 2 // parts)] * parts
    whole[0] += count - sum(whole)
    return [size for size in whole if size]


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, outputs))


def _array(parameter: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(parameter.detach().cpu().numpy())
