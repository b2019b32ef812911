"""Games from OpenSpiel: loading, exact values, positions with their optimal moves, and opponents. No torch.

A position is the sequence of moves that leads to it, because OpenSpiel's states do not travel between processes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainables.common.errors import InputError

# games that were solved from their measured positions within the limit below, smallest first
SMALL = (
    "nim(pile_sizes=3;5;7)",
    "tic_tac_toe",
    "breakthrough(rows=4,columns=4)",
    "hex(board_size=4)",
    "connect_four(rows=4,columns=5,x_in_row=4)",
)
# states that the solver looks at, which take about a minute and 0.5 GB
MOST_STATES = 1_500_000
# positions are those of random games after this share of their moves at least: the fewer, the dearer they are to solve
OPENING = 0.5


def load_game(name: str) -> Any:
    """Return OpenSpiel's game of a name.

    Raises:
        InputError: If OpenSpiel is not installed or has no such game, or it is not one of two players who move in turn,
            know everything, and win what the other one loses.
    """
    try:
        import pyspiel
    except ImportError as error:
        raise InputError(
            "Games need OpenSpiel, which is not installed; run 'pip install open_spiel==2.0.2'."
        ) from error
    try:
        game = pyspiel.load_game(name)
    except pyspiel.SpielError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"game is {name!r}, which OpenSpiel cannot load ({reason}); small ones: {', '.join(SMALL)}."
        ) from error
    kind = game.get_type()
    fits = (
        game.num_players() == 2
        and kind.dynamics == kind.Dynamics.SEQUENTIAL
        and kind.information == kind.Information.PERFECT_INFORMATION
        and kind.chance_mode == kind.ChanceMode.DETERMINISTIC
        and kind.utility == kind.Utility.ZERO_SUM
    )
    if not fits:
        raise InputError(
            f"game is {name!r}, but only games of two players in turn without chance and secrets are played."
        )
    return game


class Solver:
    """Exact values by minimax with a table of all states seen.

    Args:
        name: Of the game, for messages.
        limit: Most states to look at (default: `MOST_STATES`).
    """

    def __init__(self, name: str, limit: int | None = None) -> None:
        self._name, self._limit = name, limit or MOST_STATES
        self._values: dict[str, float] = {}

    def optimal(self, state: Any) -> list[int]:
        """Return the moves that keep the value of a state.

        Raises:
            InputError: If that takes more states than the limit.
        """
        player = state.current_player()
        values = {
            action: self._value(state.child(action)) * (1 if player == 0 else -1) for action in state.legal_actions()
        }
        best = max(values.values())
        return [action for action, value in values.items() if value == best]

    def _value(self, state: Any) -> float:
        """Return the value for player 0 (a lost, drawn or won game is -1, 0 or 1)."""
        if state.is_terminal():
            return float(state.player_return(0))
        key = f"{state.current_player()}{state}"
        known = self._values.get(key)
        if known is not None:
            return known
        if len(self._values) >= self._limit:
            raise InputError(
                f"game is {self._name!r}, which is too large to solve ({self._limit} states were not enough); "
                f"small ones: {', '.join(SMALL)}."
            )
        # a placeholder counts the state, and is overwritten: these games never come back to a position
        first = state.current_player() == 0
        best = -1.0 if first else 1.0
        for action in state.legal_actions():
            value = self._value(state.child(action))
            best = max(best, value) if first else min(best, value)
            if best == (1.0 if first else -1.0):
                break
        self._values[key] = best
        return best


def solved_positions(
    name: str, count: int, seed: int, limit: int | None = None
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Return positions, each with its optimal moves; every position has a move that is not optimal.

    Args:
        name: Of the game.
        count: Most positions; small games have fewer different ones.
        seed: Of the random moves that lead to them.
        limit: Most states that the solver may look at (default: `MOST_STATES`).

    Raises:
        InputError: If the game is too large to solve, or hardly any position has a move that matters.
    """
    game, solver, rng = load_game(name), Solver(name, limit), random.Random(f"positions {seed}")
    found: dict[str, tuple[tuple[int, ...], list[int]]] = {}
    for _ in range(50 * count):
        whole = game.new_initial_state()
        while not whole.is_terminal():
            whole.apply_action(rng.choice(whole.legal_actions()))
        moves = whole.history()
        state = state_at(game, moves[: rng.randint(math.ceil(OPENING * len(moves)), len(moves) - 1)])
        if str(state) in found:
            continue
        optimal = solver.optimal(state)
        if len(optimal) < len(state.legal_actions()):
            found[str(state)] = (tuple(state.history()), optimal)
        if len(found) == count:
            break
    if not found:
        raise InputError(f"game is {name!r}, but no position in it has a move that matters; choose another one.")
    return list(found.values())


def state_at(game: Any, moves: Sequence[int]) -> Any:
    """Return the state that a sequence of moves leads to."""
    state = game.new_initial_state()
    for move in moves:
        state.apply_action(move)
    return state


def mcts_bot(game: Any, simulations: int, c: float, seed: int) -> Any:
    """Return OpenSpiel's own MCTS: UCT with one random roll-out, which backs up solved positions as such."""
    import pyspiel

    # its seeds have 31 bits
    seed &= 0x7FFFFFFF
    evaluator = pyspiel.RandomRolloutEvaluator(n_rollouts=1, seed=seed)
    return pyspiel.MCTSBot(
        game, evaluator, uct_c=c, max_simulations=simulations, max_memory_mb=1000, solve=True, seed=seed, verbose=False
    )


def observation(state: Any) -> np.ndarray:
    """Return what the networks see of a state: its tensor for the player to move, flat, and who that is."""
    player = state.current_player()
    return np.asarray([*state.observation_tensor(player), float(player)], dtype=np.float32)
