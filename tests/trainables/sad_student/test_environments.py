"""The generated tasks: the expert solves all, splits share none, and actions that mean nothing change nothing."""

from __future__ import annotations

import random

import pytest

from trainables.sad_student.environments import (
    DIFFICULTIES,
    KINDS,
    Problem,
    problems,
    split_of,
)
from trainables.sad_student.protocol import INVALID, MAX_TURNS
from trainables.sad_student.trajectories import expert_trajectory


def test_the_expert_solves_every_kind_and_difficulty_within_the_turns() -> None:
    found = problems("train", 240)
    assert {(p.kind, p.difficulty) for p in found} == {(kind, d) for kind in KINDS for d in DIFFICULTIES}
    for problem in found:
        trajectory = expert_trajectory(problem)
        actions = [segment for segment in trajectory.segments if segment.span == "action"]
        assert trajectory.success and 2 <= len(actions) < MAX_TURNS


def test_splits_are_disjoint_and_a_longer_list_begins_with_the_shorter() -> None:
    texts = {}
    for split in ("train", "validation", "test"):
        found = problems(split, 150, seed=3)
        assert problems(split, 20, seed=3) == found[:20]
        texts[split] = {problem.environment().whole for problem in found}  # type: ignore[attr-defined]
        assert len(texts[split]) == 150 and {split_of(text) for text in texts[split]} == {split}
    assert not texts["train"] & (texts["validation"] | texts["test"]) and not texts["validation"] & texts["test"]
    assert problems("train", 5, seed=1) != problems("train", 5, seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_random_meaningful_actions_are_valid_and_rarely_succeed(kind: str) -> None:
    draw, solved = random.Random(0), 0
    for problem in problems("train", 90, kinds=[kind]):
        environment, over = problem.environment(), False
        environment.reset()
        while not over:
            observation, over = environment.step(draw.choice(environment.actions()))
            assert observation != INVALID
        solved += environment.success
    assert solved < 45


@pytest.mark.parametrize(
    "action", ["", "find", "find Nobody", "go nowhere", "calc 1*2", "calc x+1", "take lamp", "answer"]
)
def test_an_action_that_means_nothing_only_takes_a_turn(action: str) -> None:
    for kind in KINDS:
        environment = Problem(kind, 2, 0).environment()
        environment.reset()
        before = environment.actions()
        assert environment.step(action) == (INVALID, False)
        assert environment.invalid == 1 and environment.actions() == before and not environment.success


def test_a_wrong_answer_and_the_last_turn_end_an_episode() -> None:
    environment = Problem("sums", 3, 1).environment()
    environment.reset()
    assert environment.step("answer 1") == ("Wrong.", True) and not environment.success
    environment.reset()
    ends = [environment.step("calc 2+3")[1] for _ in range(MAX_TURNS)]
    assert ends == [False] * (MAX_TURNS - 1) + [True]
    # the same environment again: everything is as at the start
    environment.reset()
    assert environment.invalid == 0 and not environment.success
    for _ in range(4):
        _, over = environment.step(environment.expert_action()[1])
    assert over and environment.success
