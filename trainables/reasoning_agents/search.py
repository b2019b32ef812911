"""Monte Carlo tree search with PUCT, for many trees in step, and games of self-play. No torch: workers start fast.

All trees take a simulation at the same time, so one call evaluates the new leaves of all of them. PUCT is that of
AlphaZero (Silver et al., 2018): the move that maximises Q + c P sqrt(N) / (1 + n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainables.reasoning_agents import games

# states -> priors ``[n, actions]`` (0 where illegal) and values for player 0, ``[n]``; a finished game's is its return
Evaluate = Callable[[Sequence[Any]], tuple[np.ndarray, np.ndarray]]
# AlphaZero's noise at the root of self-play: its share, and the concentration over all legal moves together
NOISE, CONCENTRATION = 0.25, 10.0


class Nets:
    """Policy and value network as arrays, to evaluate states with.

    Args:
        weights: ``policy`` and ``value``, each a list of matrices ``[in, out]`` and vectors in turn; None: a uniform
            policy and the value 0.
        actions: Moves of the game.
    """

    def __init__(self, weights: dict[str, list[np.ndarray]] | None, actions: int) -> None:
        self._weights, self._actions = weights, actions

    def __call__(self, states: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        priors, values = np.zeros((len(states), self._actions)), np.zeros(len(states))
        open_ = [i for i, state in enumerate(states) if not state.is_terminal()]
        for i, state in enumerate(states):
            if state.is_terminal():
                values[i] = state.player_return(0)
        if not open_:
            return priors, values
        legal = np.full((len(open_), self._actions), -np.inf)
        for row, i in enumerate(open_):
            legal[row, states[i].legal_actions()] = 0.0
        if self._weights is None:
            logits = legal
        else:
            seen = np.stack([games.observation(states[i]) for i in open_])
            logits = legal + forward(self._weights["policy"], seen)
            # the value is that of the player to move
            sides = np.asarray([1.0 if states[i].current_player() == 0 else -1.0 for i in open_])
            values[open_] = np.tanh(forward(self._weights["value"], seen)[:, 0]) * sides
        chances = np.exp(logits - logits.max(1, keepdims=True))
        priors[open_] = chances / chances.sum(1, keepdims=True)
        return priors, values


def forward(layers: Sequence[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Return the outputs of an MLP with ReLU: ``layers`` are matrices ``[in, out]`` and vectors in turn."""
    hidden = inputs
    for number in range(0, len(layers), 2):
        hidden = hidden @ layers[number] + layers[number + 1]
        if number + 2 < len(layers):
            hidden = np.maximum(hidden, 0.0)
    return hidden


def search(
    roots: Sequence[Any],
    evaluate: Evaluate,
    actions: int,
    simulations: int,
    c: float,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Search from each of G roots; return the visits of their moves, ``[G, actions]``.

    Args:
        roots: States that are not finished: OpenSpiel's, or others with the same methods.
        evaluate: See `Evaluate`.
        actions: Number of moves.
        simulations: Of each tree, the root's own evaluation not counted.
        c: Exploration constant.
        rng: For noise at the roots; None: no noise.
    """
    count, nodes = len(roots), simulations + 1
    visits = np.zeros((count, nodes, actions))
    totals = np.zeros((count, nodes, actions))
    priors = np.zeros((count, nodes, actions))
    children = np.full((count, nodes, actions), -1, dtype=np.int64)
    sides, ended = np.ones((count, nodes)), np.zeros((count, nodes), dtype=bool)
    values = np.zeros((count, nodes))
    states: list[list[Any]] = [[root] for root in roots]
    priors[:, 0], values[:, 0] = evaluate(roots)
    sides[:, 0] = [1.0 if root.current_player() == 0 else -1.0 for root in roots]
    if rng is not None:
        _add_noise(priors[:, 0], rng)
    for _ in range(simulations):
        tree, node, path = np.arange(count), np.zeros(count, dtype=np.int64), []
        leaves = np.zeros(count, dtype=np.int64)
        fresh: list[tuple[int, Any]] = []
        while len(tree):
            seen, prior = visits[tree, node], priors[tree, node]
            mean = totals[tree, node] / np.maximum(seen, 1.0)
            score = mean + c * prior * np.sqrt(seen.sum(1, keepdims=True) + 1.0) / (1.0 + seen)
            move = np.where(prior > 0, score, -np.inf).argmax(1)
            path.append((tree, node, move))
            child = children[tree, node, move]
            for place in np.flatnonzero(child < 0):
                g = int(tree[place])
                state = states[g][node[place]].child(int(move[place]))
                children[g, node[place], move[place]] = leaves[g] = len(states[g])
                states[g].append(state)
                fresh.append((g, state))
            known = child >= 0
            stops = known & ended[tree, np.maximum(child, 0)]
            leaves[tree[stops]] = child[stops]
            go = known & ~stops
            tree, node = tree[go], child[go]
        if fresh:
            prior, value = evaluate([state for _, state in fresh])
            for row, (g, state) in enumerate(fresh):
                at = int(leaves[g])
                priors[g, at], values[g, at], ended[g, at] = prior[row], value[row], state.is_terminal()
                sides[g, at] = -1.0 if not state.is_terminal() and state.current_player() == 1 else 1.0
        gained = values[np.arange(count), leaves]
        for tree, node, move in path:
            visits[tree, node, move] += 1
            totals[tree, node, move] += gained[tree] * sides[tree, node]
    return visits[:, 0]


@dataclass(frozen=True)
class SelfPlay:
    """Games to play; it travels to a worker.

    Attributes:
        game: Name of the game.
        weights: Of the networks (see `Nets`).
        games: Number of games, all at once.
        simulations, c: Of the search.
        seed: Of noise and moves.
    """

    game: str
    weights: dict[str, list[np.ndarray]] | None
    games: int
    simulations: int
    c: float
    seed: int


def play(plan: SelfPlay) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Play games against oneself; return observations ``[n, seen]``, shares of visits ``[n, actions]`` and outcomes
    ``[n]`` for the player to move.

    The first moves of a game, a third of the longest one, are drawn by visits; later ones are the most visited.
    """
    game = games.load_game(plan.game)
    actions, rng = game.num_distinct_actions(), np.random.default_rng(plan.seed)
    nets = Nets(plan.weights, actions)
    states = [game.new_initial_state() for _ in range(plan.games)]
    records: list[list[tuple[np.ndarray, np.ndarray, int]]] = [[] for _ in states]
    drawn = game.max_game_length() // 3
    while active := [i for i, state in enumerate(states) if not state.is_terminal()]:
        visits = search([states[i] for i in active], nets, actions, plan.simulations, plan.c, rng)
        for i, row in zip(active, visits, strict=True):
            share = row / row.sum()
            records[i].append((games.observation(states[i]), share, states[i].current_player()))
            move = rng.choice(actions, p=share) if len(records[i]) <= drawn else row.argmax()
            states[i].apply_action(int(move))
    rows = [
        (seen, share, states[i].player_return(player))
        for i, record in enumerate(records)
        for seen, share, player in record
    ]
    seen, shares, outcomes = zip(*rows, strict=True)
    return np.stack(seen), np.stack(shares).astype(np.float32), np.asarray(outcomes, dtype=np.float32)


@dataclass(frozen=True)
class Match:
    """Games of a search with networks against an opponent, half of them with each colour; it travels to a worker.

    Attributes:
        plan: The player: its ``games`` are those of the match, its ``seed`` that of the opponent.
        opponent: ``random``, or ``mcts``: OpenSpiel's at as many simulations.
    """

    plan: SelfPlay
    opponent: str


def match(task: Match) -> list[float]:
    """Return the outcome of each game for the player: 1 won, 0.5 drawn, 0 lost."""
    plan = task.plan
    game = games.load_game(plan.game)
    actions, nets = game.num_distinct_actions(), Nets(plan.weights, game.num_distinct_actions())
    rng, seeds = np.random.default_rng(plan.seed), np.random.SeedSequence(plan.seed).generate_state(plan.games)
    bots = [
        games.mcts_bot(game, plan.simulations, plan.c, int(seed)) if task.opponent == "mcts" else None for seed in seeds
    ]
    states = [game.new_initial_state() for _ in range(plan.games)]
    while active := [i for i, state in enumerate(states) if not state.is_terminal()]:
        mine = [i for i in active if states[i].current_player() == i % 2]
        if mine:
            visits = search([states[i] for i in mine], nets, actions, plan.simulations, plan.c)
            # One of the most visited moves at random, so that games from the same start differ.
            for i, row in zip(mine, visits, strict=True):
                states[i].apply_action(int(rng.choice(np.flatnonzero(row == row.max()))))
        for i in set(active) - set(mine):
            bot = bots[i]
            move = bot.step(states[i]) if bot else int(rng.choice(states[i].legal_actions()))
            states[i].apply_action(move)
    return [(state.player_return(i % 2) + 1) / 2 for i, state in enumerate(states)]


def _add_noise(priors: np.ndarray, rng: np.random.Generator) -> None:
    for row in priors:
        legal = np.flatnonzero(row)
        row[legal] = (1 - NOISE) * row[legal] + NOISE * rng.dirichlet([CONCENTRATION / len(legal)] * len(legal))
