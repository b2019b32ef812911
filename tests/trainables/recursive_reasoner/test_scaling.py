"""Which answer is taken of several trajectories, on trajectories that are written down; votes over symmetries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import load_dataset
from trainables.recursive_reasoner.halting import HALTING
from trainables.recursive_reasoner.model import Reasoner
from trainables.recursive_reasoner.scaling import (
    Traced,
    Trained,
    after,
    best_score,
    first_to_halt,
    halted,
    noisy,
    symmetric,
    votes,
)

TINY = ReasonerConfig(
    width=16, heads=2, layers=1, prefix=1, h_cycles=2, l_cycles=1, max_steps=2, train_puzzles=16, held_out_puzzles=6
)
torch.set_num_threads(1)

# three trajectories of three steps of two puzzles of one cell
TRACED = Traced(
    answers=np.array([[[1, 5], [2, 5], [3, 5]], [[4, 6], [4, 6], [4, 7]], [[4, 8], [3, 8], [3, 8]]])[..., None],
    scores=np.array([[[0.1, 0.2], [0.2, 0.2], [0.3, 0.9]], [[0.8, 0.1], [0.9, 0.1], [0.4, 0.1]],
                     [[0.7, 0.3], [0.1, 0.3], [0.5, 0.3]]]),
    halts=np.array([[[0, 0], [1, 0], [1, 0]], [[0, 0], [1, 0], [1, 0]], [[0, 0], [0, 0], [1, 0]]], dtype=bool),
    seconds=0.5,
)  # fmt: skip


def test_the_first_trajectory_after_some_steps_or_where_its_rule_ends_it() -> None:
    assert after(TRACED, 2).answers[:, 0].tolist() == [2, 5] and after(TRACED, 2).steps.tolist() == [2, 2]
    ended = halted(TRACED, 3)
    assert ended.answers[:, 0].tolist() == [2, 5] and ended.steps.tolist() == [2, 3]
    assert halted(TRACED, 1).steps.tolist() == [1, 1]


def test_the_best_score_is_that_after_the_last_step_and_all_trajectories_are_paid_for() -> None:
    assert best_score(TRACED, 1).answers[:, 0].tolist() == [4, 8]
    last = best_score(TRACED, 3)
    assert last.answers[:, 0].tolist() == [3, 5] and last.steps.tolist() == [9, 9]


def test_the_first_to_halt_wins_and_of_two_the_better_score() -> None:
    first = first_to_halt(TRACED, 3)
    # the first puzzle ends in two trajectories at once, the second in none
    assert first.answers[:, 0].tolist() == [4, 5] and first.steps.tolist() == [6, 9]


def test_most_votes_win_and_of_two_the_better_score() -> None:
    assert votes(TRACED, 3).answers[:, 0].tolist() == [3, 5]
    assert votes(TRACED, 1).answers[:, 0].tolist() == [4, 8] and votes(TRACED, 3).steps.tolist() == [9, 9]


@pytest.fixture(scope="module")
def untrained() -> Trained:
    torch.manual_seed(0)
    dataset = load_dataset("sudoku4", TINY)
    return Trained(Reasoner(TINY, dataset.vocabulary, dataset.cells), HALTING["bce"](TINY), TINY, 0, {})


def test_the_first_trajectory_has_no_noise_and_the_others_have_their_own(untrained: Trained) -> None:
    dataset = load_dataset("sudoku4", TINY)
    quiet, loud = (noisy(untrained, dataset.kind, dataset.held_out, "cpu", 3, 3, noise, 0) for noise in (1e-9, 3.0))
    assert (loud.answers[0] == quiet.answers[0]).all() and (quiet.answers[1] == quiet.answers[0]).all()
    assert (loud.answers[1] != loud.answers[0]).any() and (loud.answers[1] != loud.answers[2]).any()


def test_views_of_a_puzzle_are_solved_apart_and_turned_back(untrained: Trained) -> None:
    dataset = load_dataset("sudoku4", replace(TINY, held_out_puzzles=6))

    class Copies(Reasoner):
        """Answers what it is shown."""

        def forward(self, state, inputs, thoughts=0, puzzle_ids=None):  # type: ignore[no-untyped-def]
            output = super().forward(state, inputs, thoughts, puzzle_ids)
            return output._replace(logits=torch.nn.functional.one_hot(inputs, dataset.vocabulary).float())

    torch.manual_seed(0)
    copies = replace(untrained, model=Copies(TINY, dataset.vocabulary, dataset.cells))
    traced = symmetric(copies, dataset.kind, dataset.held_out, "cpu", 2, 3, 0)
    assert (traced.answers == dataset.held_out.inputs).all() and traced.answers.shape == (3, 2, 6, 16)
    others = symmetric(untrained, dataset.kind, dataset.held_out, "cpu", 2, 3, 0)
    assert (others.answers[0] != others.answers[1]).any(), "an untrained reasoner sees another puzzle in each view"
