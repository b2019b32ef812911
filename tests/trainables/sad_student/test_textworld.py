"""TextWorld's games as environments, played for real where the package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainables.sad_student.environments import problems
from trainables.sad_student.protocol import INVALID, MAX_TURNS
from trainables.sad_student.trajectories import expert_trajectory

pytest.importorskip("textworld")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_SWEEPS_CACHE", str(tmp_path))


def test_the_expert_wins_and_a_game_is_the_same_each_time() -> None:
    found = problems("train", 3, kinds=["textworld"])
    assert [p.difficulty for p in found] == [1, 2, 3] and len({p.seed for p in found}) == 3
    for problem in found:
        first, again = expert_trajectory(problem), expert_trajectory(problem)
        assert first == again and first.success and first.kind == "textworld"
        assert sum(segment.span == "action" for segment in first.segments) == problem.difficulty + 1
        assert not any("\n" in segment.text[:-1] or "-=" in segment.text for segment in first.segments[1:-1:3])


def test_an_action_that_means_nothing_only_takes_a_turn() -> None:
    (problem,) = problems("validation", 1, kinds=["textworld"])
    game = problem.environment()
    game.reset()
    before = game.actions()
    for turn in range(MAX_TURNS):
        observation, over = game.step("dance with the king")
        assert (observation, over) == (INVALID, turn + 1 == MAX_TURNS)
    assert game.invalid == MAX_TURNS and not game.success and game.actions() == before
