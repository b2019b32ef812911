"""Routing: what can be learned is, what cannot is not, and the comparisons are those that they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainables.reasoning_agents.agents import AGENTS, Outcome
from trainables.reasoning_agents.problems import generate
from trainables.reasoning_agents.router import KINDS, best_single, fit, hull_at, judge, surface, utility


def outcomes(seen: np.ndarray) -> list[dict[str, Outcome]]:
    """The cheap agent answers where the first feature is low, the dear one everywhere but where the second is high."""
    return [
        {"hrm": Outcome(bool(a < 0), 1.0), "trm": Outcome(bool(b < 1), 4.0), "mcts": Outcome(bool(b >= 1), 10.0)}
        for a, b in seen[:, :2]
    ]


def data(seed: int, count: int = 300) -> tuple[np.ndarray, list[dict[str, Outcome]]]:
    seen = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    return seen, outcomes(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_learns_outcomes_and_learns_nothing_of_shuffled_ones(kind: str) -> None:
    seen, measured = data(0)
    test, test_measured = data(1)
    utilities, test_utilities = utility(measured, 0.01), utility(test_measured, 0.01)
    single = judge(np.full(len(test), best_single(utilities)), np.ones(len(test)), test_measured, test_utilities)
    own = judge(*fit(kind, seen, utilities, 0).choose(test), test_measured, test_utilities)
    assert own["regret"] < 0.6 * single["regret"] and own["accuracy"] > 0.75 and own["over_hull"] > 0.03
    assert own["calibration_error"] < 0.2
    order = np.random.default_rng(0).permutation(len(utilities))
    shuffled = judge(*fit(kind, seen, utilities[order], 0).choose(test), test_measured, test_utilities)
    assert shuffled["regret"] > single["regret"] - 0.03


def test_the_utility_is_success_less_cost_and_the_best_single_agent_has_most_of_it() -> None:
    measured = [{"hrm": Outcome(True, 1.0), "trm": Outcome(True, 3.0), "mcts": Outcome(False, 9.0)}]
    assert utility(measured, 0.1).tolist() == [pytest.approx([0.9, 0.7, -0.9])]
    assert AGENTS[best_single(utility(measured, 0.1))] == "hrm"
    found = judge(np.array([1]), np.array([0.5]), measured, utility(measured, 0.1))
    assert found["regret"] == pytest.approx(0.2) and found["accuracy"] == 0.0 and found["cost"] == 3.0


def test_the_hull_mixes_agents() -> None:
    agents = [(1.0, 0.4), (3.0, 0.8), (4.0, 0.5)]
    assert [hull_at(agents, cost) for cost in (0.0, 0.5, 1.0, 2.0, 3.0, 9.0)] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 0.8]
    )


def test_what_the_router_reads_does_not_depend_on_the_answer() -> None:
    for problem in generate("composition", 5, 0):
        other = replace(problem, answer=0, gold=replace(problem.gold, depths=(3,) * len(problem.words)))
        assert surface(problem.words) == surface(other.words) and len(surface(problem.words)) == 14
