"""Generated problems: gold structure that the checker confirms, and splits that differ as they say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainables.reasoning_agents import problems as made
from trainables.reasoning_agents.pretraining import corrupt, is_right, step_accuracy
from trainables.reasoning_agents.problems import execute, generate, with_context

UNIT = ("zorb crates", 7)


@pytest.mark.parametrize("split", ["train", *made.HELD_OUT])
def test_the_gold_labelling_computes_the_answer(split: made.Split) -> None:
    for problem in generate(split, 50, 0):
        assert execute(problem.read, problem.gold) == problem.answer
        assert len(problem.words) == len(problem.gold.tags) == len(problem.gold.depths)


def test_a_known_text() -> None:
    words = "the red pens are 4 times blue cups . 30 reduced by 2 gives the blue cups how many red pens ?".split()
    tags = (
        made.START,
        *[made.CONTINUE] * 6,
        made.END,
        made.OUTSIDE,
        made.START,
        *[made.CONTINUE] * 6,
        made.END,
        *[0] * 5,
    )
    roles = [made.NO_ROLE] * 22
    roles[19] = made.NAME
    for name, first, second in ((1, 4, 6), (15, 9, 12)):
        roles[name], roles[first], roles[second] = made.NAME, made.FIRST, made.SECOND
    operations = (made.MULTIPLY,) * 9 + (made.SUBTRACT,) * 13
    right = made.Labelling(tags, tuple(roles), operations, (0,) * 22)
    assert execute(words, right) == 4 * (30 - 2)
    # what no step defines is a fact, and there is none
    assert execute([*words[:15], "old", "cups", *words[17:]], right) is None
    # a step that refers to itself
    assert execute([*words[:9], "blue", "cups", *words[11:]], right) is None
    # a question for what no step defines
    assert execute([*words[:19], "old", "pens", "?"], right) is None
    # a step without an end
    assert execute(words, replace(right, tags=(*tags[:16], made.CONTINUE, *tags[17:]))) is None


def test_composition_goes_deeper_and_longer_than_training_and_wordings_are_unseen() -> None:
    train, deep, worded = (generate(split, 60, 0) for split in ("train", "composition", "wording"))
    assert max(problem.steps for problem in train) <= 6 < min(problem.steps for problem in deep)
    assert {depth for problem in train for depth in problem.gold.depths} == {0, 1, 2, 3}
    assert not {problem.text for problem in train} & {problem.text for problem in generate("in_distribution", 60, 0)}
    seen = {word for problem in train for word in problem.words}
    assert {"joining", "leaves", "increased"} & ({word for problem in worded for word in problem.words} - seen)
    assert [problem.text for problem in generate("train", 5, 3)] == [p.text for p in generate("train", 5, 3)]


def test_a_fact_decides_a_problem_and_counts_where_it_was_retrieved() -> None:
    (problem,) = generate("train", 1, 0, [UNIT], 1.0)
    assert execute(problem.read, problem.gold) is None
    other = with_context(problem, "each of the mumb sacks holds 3 pieces".split())
    assert execute(other.read, other.gold) is None
    told = with_context(problem, "notes : each of the zorb crates holds 7 pieces".split())
    assert execute(told.read, told.gold) == problem.answer
    assert with_context(told, ()).gold == problem.gold


def test_corrupted_solutions_are_wrong_and_the_rule_finds_some_steps() -> None:
    import random

    rng, problems = random.Random(0), generate("composition", 60, 1)
    wrong = [corrupt(problem.gold, rng) for problem in problems]
    assert all(a != p.gold for a, p in zip(wrong, problems, strict=True))
    assert sum(is_right(p, a) for a, p in zip(wrong, problems, strict=True)) < 20
    assert step_accuracy(problems, [problem.gold for problem in problems]) == 1.0
    assert 0 < step_accuracy(problems, [made.punctuation_baseline(problem) for problem in problems]) < 0.5
