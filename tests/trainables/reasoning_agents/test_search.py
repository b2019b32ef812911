"""Tree search: many trees in step are what one plain tree is, and it finds what wins."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.selfplay import plain_search
from trainables.reasoning_agents import games
from trainables.reasoning_agents.search import Match, Nets, SelfPlay, match, play, search
from trainables.reasoning_agents.selfplay import PolicyValue

GAME = "tic_tac_toe"


def nets() -> Nets:
    import torch

    torch.manual_seed(0)
    game = games.load_game(GAME)
    model = PolicyValue(len(games.observation(game.new_initial_state())), game.num_distinct_actions())
    return Nets(model.arrays(), game.num_distinct_actions())


def test_many_trees_in_step_equal_plain_trees() -> None:
    game, evaluate = games.load_game(GAME), nets()
    roots = [games.state_at(game, moves) for moves in ((), (4,), (0, 4, 8), (0, 1, 4, 8, 2), (0, 1, 2, 4, 3, 5, 7))]
    visits = search(roots, evaluate, 9, 60, 1.414)
    assert visits.sum(1).tolist() == [60] * 5
    for row, root in zip(visits, roots, strict=True):
        assert row.tolist() == plain_search(root, evaluate, 9, 60, 1.414)


@pytest.mark.parametrize(("moves", "winning"), [((0, 3, 1, 4), 2), ((8, 0, 7, 1, 5), 2)])
def test_it_finds_the_winning_move_of_either_player(moves: tuple[int, ...], winning: int) -> None:
    root = games.state_at(games.load_game(GAME), moves)
    visits = search([root], Nets(None, 9), 9, 100, 1.414)
    assert visits[0].argmax() == winning


def test_self_play_gives_observations_visits_and_outcomes() -> None:
    seen, shares, outcomes = play(SelfPlay(GAME, None, 4, 10, 1.414, 0))
    assert len(seen) == len(shares) == len(outcomes) and seen.shape[1] == 28
    assert np.allclose(shares.sum(1), 1.0) and set(outcomes) <= {-1.0, 0.0, 1.0}
    again = play(SelfPlay(GAME, None, 4, 10, 1.414, 0))
    assert all(np.array_equal(a, b) for a, b in zip((seen, shares, outcomes), again, strict=True))


def test_matches_swap_colours_and_a_search_beats_a_random_player() -> None:
    outcomes = match(Match(SelfPlay("nim(pile_sizes=3;5;7)", None, 16, 100, 1.414, 0), "random"))
    assert len(outcomes) == 16 and set(outcomes) <= {0.0, 0.5, 1.0} and sum(outcomes) > 12
