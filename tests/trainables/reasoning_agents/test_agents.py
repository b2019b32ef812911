"""The search over labels: what it decides, and that it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainables.reasoning_agents import problems as made
from trainables.reasoning_agents.agents import DECISIONS, LabelState
from trainables.reasoning_agents.search import search
from trainables.reasoning_agents.tagger import KINDS


def test_the_least_certain_labels_are_decided_and_the_best_labelling_is_found() -> None:
    (problem,) = made.generate("train", 1, 0)
    (start, end), *_ = problem.gold.spans()
    # sure of everything but the first step's operation and its last word
    sizes, chances = KINDS, {}
    for kind, size in sizes.items():
        chances[kind] = np.full((len(problem.words), size), 0.01)
        chances[kind][np.arange(len(problem.words)), list(getattr(problem.gold, kind))] = 0.97
    other = (problem.gold.operations[start] + 1) % 3
    chances["operations"][start] = 0.05
    chances["operations"][start, [other, problem.gold.operations[start]]] = 0.5, 0.45
    chances["tags"][end] = [0.0, 0.05, 0.55, 0.4]
    operations, tags = list(problem.gold.operations), list(problem.gold.tags)
    operations[start], tags[end] = other, made.CONTINUE
    said = replace(problem.gold, operations=tuple(operations), tags=tuple(tags))
    root = LabelState.root(0, said, chances)
    assert {(kind, word) for kind, word, *_ in root.open[:2]} == {("operations", start), ("tags", end)}
    assert len(root.open) == DECISIONS and not any(kind == "depths" for kind, *_ in root.open)
    assert root.child(0).labelling == said and made.execute(problem.words, said) != problem.answer
    seen = set()

    def evaluate(states: Sequence[LabelState]) -> tuple[np.ndarray, np.ndarray]:
        seen.update(state.labelling for state in states)
        right = [made.execute(problem.words, state.labelling) == problem.answer for state in states]
        return np.stack([state.prior for state in states]), np.array([1.0 if r else -1.0 for r in right])

    search([root], evaluate, 2, 40, 1.414)
    assert any(made.execute(problem.words, labelling) == problem.answer for labelling in seen)
    state = root
    while not state.is_terminal():
        state = state.child(1)
    assert (
        state.prior.tolist() == [0.0, 0.0]
        and made.execute(problem.words, root.child(1).child(1).labelling) == problem.answer
    )


def test_a_position_is_a_problem_whose_answer_is_a_move() -> None:
    problem = made.of_game("tic_tac_toe", "x..\n.o.\n...", (0, 4), (2, 6))
    assert problem.words[:8] == ("which", "move", "is", "best", "in", "tic_tac_toe", "here", "?")
    assert problem.optimal == {2, 6} and made.execute(problem.read, problem.gold) is None
