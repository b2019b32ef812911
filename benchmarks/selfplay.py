"""How many games of self-play a second many trees in step give, against one tree and one leaf at a time.

    python benchmarks/selfplay.py
    python benchmarks/selfplay.py --game "connect_four(rows=4,columns=5,x_in_row=4)" --simulations 100 --json FILE

The straightforward loop plays one game after another and asks PyTorch's networks about each leaf by itself; it is also
measured with the networks in NumPy, which tells how much the batching gives by itself. All play with the same untrained
networks and as many simulations, without noise at the root. One thread, one process. Prints games a second.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import record
from trainables.reasoning_agents import games
from trainables.reasoning_agents.search import Evaluate, Nets, search
from trainables.reasoning_agents.selfplay import PolicyValue


def plain_search(root: Any, evaluate: Evaluate, actions: int, simulations: int, c: float) -> list[int]:
    """Search one tree, one leaf at a time; return the visits of each move: what `search` must equal."""

    def node(state: Any) -> dict[str, Any]:
        prior, value = evaluate([state])
        moves = [0.0] * actions
        return {
            "state": state,
            "prior": prior[0],
            "value": value[0],
            "visits": [0] * actions,
            "total": moves,
            "next": {},
        }

    def score(at: dict[str, Any], move: int) -> float:
        if at["prior"][move] == 0:
            return -math.inf
        mean = at["total"][move] / max(1, at["visits"][move])
        return float(mean + c * at["prior"][move] * math.sqrt(sum(at["visits"]) + 1) / (1 + at["visits"][move]))

    tree = node(root)
    for _ in range(simulations):
        at, path = tree, []
        while not at["state"].is_terminal():
            move = max(range(actions), key=lambda move, at=at: score(at, move))  # type: ignore[misc]
            path.append((at, move))
            if move not in at["next"]:
                at["next"][move] = node(at["state"].child(move))
                at = at["next"][move]
                break
            at = at["next"][move]
        for parent, move in path:
            parent["visits"][move] += 1
            parent["total"][move] += at["value"] * (1 if parent["state"].current_player() == 0 else -1)
    return list(tree["visits"])


class TorchNets:
    """The networks in PyTorch, asked about states as `Nets` is."""

    def __init__(self, model: PolicyValue, actions: int) -> None:
        self._model, self._actions = model.eval(), actions

    @torch.no_grad()
    def __call__(self, states: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        (state,) = states
        if state.is_terminal():
            return np.zeros((1, self._actions)), np.array([state.player_return(0)])
        seen = torch.from_numpy(games.observation(state))[None]
        legal = state.legal_actions()
        priors = np.zeros((1, self._actions))
        priors[0, legal] = self._model.policy(seen)[0, legal].softmax(0).numpy()
        side = 1 if state.current_player() == 0 else -1
        return priors, np.array([torch.tanh(self._model.value(seen)).item() * side])


def play_plain(game: Any, evaluate: Evaluate, count: int, simulations: int, c: float) -> None:
    """Play games one after another."""
    rng, actions = np.random.default_rng(0), game.num_distinct_actions()
    for _ in range(count):
        state = game.new_initial_state()
        while not state.is_terminal():
            visits = np.array(plain_search(state, evaluate, actions, simulations, c))
            state.apply_action(int(rng.choice(actions, p=visits / visits.sum())))


def play_in_step(game: Any, evaluate: Evaluate, count: int, simulations: int, c: float) -> None:
    """Play all games at the same time."""
    rng, actions = np.random.default_rng(0), game.num_distinct_actions()
    states = [game.new_initial_state() for _ in range(count)]
    while active := [state for state in states if not state.is_terminal()]:
        for state, visits in zip(active, search(active, evaluate, actions, simulations, c), strict=True):
            state.apply_action(int(rng.choice(actions, p=visits / visits.sum())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="tic_tac_toe")
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--games", type=int, default=128, help="games in step; the loops play an eighth of them")
    parser.add_argument("--repeats", type=int, default=3, help="measurements, in turn; the median is taken")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    game = games.load_game(args.game)
    actions = game.num_distinct_actions()
    model = PolicyValue(len(games.observation(game.new_initial_state())), actions)
    nets = Nets(model.arrays(), actions)
    few = max(1, args.games // 8)
    ways: dict[str, tuple[Callable[..., None], Evaluate, int]] = {
        "one leaf at a time, PyTorch": (play_plain, TorchNets(model, actions), few),
        "one leaf at a time, NumPy": (play_plain, nets, few),
        "many trees in step": (play_in_step, nets, args.games),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, (way, evaluate, count) in ways.items():
            # Processor time of this process: other processes on the machine do not count.
            began = time.process_time()
            way(game, evaluate, count, args.simulations, 1.414)
            speeds[name].append(count / (time.process_time() - began))
    slowest = median(next(iter(speeds.values())))
    for name, values in speeds.items():
        print(f"{name:<30}{median(values):>9.2f} games per CPU second {median(values) / slowest:>7.2f} times")
    record(args.json, {"games_per_cpu_second": speeds})


if __name__ == "__main__":
    main()
