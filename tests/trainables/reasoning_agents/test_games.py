"""Games: exact values, and what is refused."""

from __future__ import annotations

import functools
import operator

import pytest

from trainables.common.errors import InputError
from trainables.reasoning_agents import games


def test_the_solver_agrees_with_the_closed_form_of_nim() -> None:
    name = "nim(pile_sizes=1;2;4)"
    game, solver = games.load_game(name), games.Solver(name)
    for moves, optimal in games.solved_positions(name, 40, 0):
        state = games.state_at(game, moves)
        assert optimal == solver.optimal(state)

        def xor(state: object) -> int:
            # the piles stand behind the player's number; misere: with no pile above 1 the parity is the other one
            piles = [int(pile) for pile in str(state).split(":")[1].split()]
            total = functools.reduce(operator.xor, piles)
            return total ^ 1 if max(piles) <= 1 else total

        winning = [a for a in state.legal_actions() if not _lost(state.child(a), xor)]
        if winning:
            assert set(optimal) == set(winning)


def _lost(state: object, xor: object) -> bool:
    """Whether the player who has just moved loses."""
    if state.is_terminal():  # type: ignore[attr-defined]
        return state.player_return(1 - state.history_str().count(",") % 2) > 0  # type: ignore[attr-defined]
    return xor(state) != 0  # type: ignore[operator]


def test_every_position_has_a_wrong_move_and_draws_are_known() -> None:
    game = games.load_game("tic_tac_toe")
    for moves, optimal in games.solved_positions("tic_tac_toe", 30, 1):
        legal = games.state_at(game, moves).legal_actions()
        assert set(optimal) < set(legal)
    # a corner is answered in the centre, or lost
    assert games.Solver("tic_tac_toe").optimal(games.state_at(game, (0,))) == [4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chess_with_dice", "which OpenSpiel cannot load"),
        ("backgammon", "only games of two players in turn without chance"),
        ("kuhn_poker", "only games of two players in turn without chance"),
    ],
)
def test_other_games_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        games.load_game(name)


def test_a_game_that_is_too_large_to_solve_is_refused() -> None:
    with pytest.raises(InputError, match="too large to solve .2000 states were not enough.; small ones: nim"):
        games.solved_positions("connect_four", 5, 0, limit=2000)
