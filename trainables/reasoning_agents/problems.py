"""Generated problems with gold structure: text, steps as spans of words, their depths, a program and its answer.

A problem asks for a quantity. Each step defines one quantity from two others, which are numbers or quantities of other
steps, so the steps form a tree; they stand in the text in any order, between sentences that define nothing. The depth
of a step is its distance from the quantity that is asked for. Some problems need a fact that is in the corpus alone
(`trainables.reasoning_agents.corpus`), how many pieces a unit holds.

A `Labelling` is a solution, right or wrong: what each word is. `execute` turns it into an answer, which is right if it
equals the answer of the gold program.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

OUTSIDE, START, CONTINUE, END = range(4)
NO_ROLE, NAME, FIRST, SECOND, FACT = range(5)
ADD, SUBTRACT, MULTIPLY = range(3)
# steps this deep or deeper share a class: problems of the composition split go deeper than any class in training
DEEPEST = 3

Split = Literal["train", "in_distribution", "composition", "wording"]
HELD_OUT: tuple[Split, ...] = ("in_distribution", "composition", "wording")

COLOURS = ("red", "blue", "green", "white", "black", "large", "small", "round", "old", "new")
NOUNS = ("beads", "coins", "pens", "cups", "stones", "tiles", "cards", "shells", "nails", "buttons")
# {n} is the quantity that a step defines, {a} and {b} what it is made of
WORDINGS = {
    ADD: (
        "the {n} are {a} plus {b}",
        "add {a} to {b} for the {n}",
        "the {n} come to {a} and {b} together",
        "there are as many {n} as {a} and {b} make",
        "putting {a} beside {b} gives the {n}",
        "{a} together with {b} are the {n}",
        "the {n} consist of {a} and of {b}",
        "summing {a} and {b} yields the {n}",
    ),
    SUBTRACT: (
        "the {n} are {a} less {b}",
        "take {b} from {a} for the {n}",
        "the {n} are what remains of {a} without {b}",
        "{a} reduced by {b} gives the {n}",
        "after {b} are lost , {a} leave the {n}",
        "the {n} are {b} fewer than {a}",
        "subtracting {b} from {a} yields the {n}",
        "of {a} all but {b} are the {n}",
    ),
    MULTIPLY: (
        "the {n} are {a} times {b}",
        "multiply {a} by {b} for the {n}",
        "the {n} come in {a} rows of {b}",
        "{a} bags that hold {b} each contain the {n}",
        "the {n} are the product of {a} and {b}",
        "repeating {b} for {a} rounds yields the {n}",
    ),
}
UNSEEN_WORDINGS = {
    ADD: ("joining {a} with {b} makes the {n}", "the {n} count {a} increased by {b}"),
    SUBTRACT: ("the {n} fall short of {a} by {b}", "removing {b} out of {a} leaves the {n}"),
    MULTIPLY: ("{a} groups with {b} in each form the {n}", "the {n} number {b} taken {a} times over"),
}
FACT_WORDINGS = ("the {n} fill {a} of the {b}", "{a} {b} hold the {n}")
UNSEEN_FACT_WORDINGS = ("the {n} are packed in {a} full {b}",)
CONNECTORS = (".", ".", ";", ", and", ", while", "and")
DISTRACTORS = (
    "it was raining that day",
    "{m} of the {d} were sold last year",
    "nobody counted the {d}",
    "the shop opens at {m}",
    "a box of {m} {d} costs more than a box of {d}",
)
MARKS = (".", ";", ",")


@dataclass(frozen=True)
class Labelling:
    """What each word is: a candidate solution.

    Attributes:
        tags: ``OUTSIDE``, ``START``, ``CONTINUE`` or ``END`` of a step.
        roles: Whether a mention begins here: the step's ``NAME``, its ``FIRST`` or ``SECOND`` part, the ``FACT``. A
            ``NAME`` outside of steps is what is asked for.
        operations, depths: Of the step that begins here; they mean nothing at other words.
    """

    tags: tuple[int, ...]
    roles: tuple[int, ...]
    operations: tuple[int, ...]
    depths: tuple[int, ...]

    def spans(self) -> list[tuple[int, int]]:
        """Return first and last word of each step that begins and ends."""
        found, start = [], None
        for place, tag in enumerate(self.tags):
            if tag == START:
                start = place
            elif tag == END and start is not None:
                found.append((start, place))
                start = None
            elif tag == OUTSIDE:
                start = None
        return found


@dataclass(frozen=True)
class Problem:
    """A problem; ``context`` are the words of retrieved text that stand before its own.

    Attributes:
        words: Of the problem's own text.
        gold: The right labelling of ``context + words``.
        answer: A program checked it. For a game: None.
        fact: The unit whose size decides the problem, and the size; None where the text is enough.
        position: For a game: the moves so far.
        optimal: For a game: the moves that keep its value.
    """

    words: tuple[str, ...]
    gold: Labelling
    answer: int | None
    fact: tuple[str, int] | None = None
    context: tuple[str, ...] = ()
    position: tuple[int, ...] | None = None
    optimal: frozenset[int] = frozenset()

    @property
    def read(self) -> tuple[str, ...]:
        """The words that an agent reads."""
        return self.context + self.words

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def steps(self) -> int:
        return len(self.gold.spans())


@dataclass
class _Step:
    name: str
    operation: int
    parts: list[int | str]
    depth: int
    unit: bool = False
    words: list[str] = field(default_factory=list)


def generate(
    split: Split, count: int, seed: int, units: Sequence[tuple[str, int]] = (), facts: float = 0.0
) -> list[Problem]:
    """Return different problems of a split.

    Args:
        split: ``train`` and ``in_distribution`` have 2 to 6 steps of depth 0 to 3; ``composition`` 7 to 9 steps, at
            least one of them of depth 4 or more; ``wording`` is as long as ``train``, with unseen forms alone.
        count: Number of problems.
        seed: Problems of different splits differ in any case.
        units: Names and sizes of units, of which ``facts`` draws.
        facts: Share of problems that a fact decides.
    """
    rng, found = random.Random(f"problems {split} {seed}"), dict[str, Problem]()
    while len(found) < count:
        unit = rng.choice(list(units)) if units and rng.random() < facts else None
        problem = _problem(rng, split, unit)
        found.setdefault(problem.text, problem)
    return list(found.values())


def execute(words: Sequence[str], labelling: Labelling) -> int | None:
    """Return what a labelling computes, or None where it is no program: the checker of every answer.

    A part that no step defines is the number marked as ``FACT``.
    """
    steps: dict[str, tuple[int, str, str]] = {}
    asked = [
        i for i, (t, r) in enumerate(zip(labelling.tags, labelling.roles, strict=True)) if (t, r) == (OUTSIDE, NAME)
    ]
    for start, end in labelling.spans():
        mentions = {labelling.roles[place]: _mention(words, place) for place in range(end, start - 1, -1)}
        if not {NAME, FIRST, SECOND} <= mentions.keys():
            return None
        name = mentions[NAME]
        steps[name] = (labelling.operations[start], mentions[FIRST], mentions[SECOND])
    fact = next((words[place] for place, role in enumerate(labelling.roles) if role == FACT), "")
    goal = _mention(words, asked[0]) if asked else ""
    return _value(goal, steps, fact, len(steps)) if goal in steps else None


def with_context(problem: Problem, context: Sequence[str]) -> Problem:
    """Return the problem with retrieved words before it; the size of its unit is marked where it is among them."""
    roles = [NO_ROLE] * len(context)
    if problem.fact:
        unit, size = problem.fact
        places = [i for i in range(len(context) - 1) if f"{context[i]} {context[i + 1]}" == unit]
        for place in places[:1]:
            number = next((i for i in range(place, min(place + 6, len(context))) if context[i] == str(size)), None)
            if number is not None:
                roles[number] = FACT
    own, none = problem.gold, (0,) * len(context)
    old = len(problem.context)
    gold = Labelling(
        none + own.tags[old:], tuple(roles) + own.roles[old:], none + own.operations[old:], none + own.depths[old:]
    )
    return replace(problem, context=tuple(context), gold=gold)


def of_game(name: str, shown: str, position: Sequence[int], optimal: Sequence[int]) -> Problem:
    """Return a position of a game as a problem: the answer is an optimal move."""
    words = tuple(f"which move is best in {name.split('(')[0]} here ? {' '.join(shown.split())}".split())
    none = (0,) * len(words)
    empty = Labelling(none, none, none, none)
    return Problem(words, empty, None, position=tuple(position), optimal=frozenset(optimal))


def punctuation_baseline(problem: Problem) -> Labelling:
    """Return the steps that a rule finds: whatever stands between marks, as deep as most steps of long problems."""
    tags = [OUTSIDE] * len(problem.read)
    place = len(problem.context)
    while place < len(tags):
        end = next(
            (i for i in range(place, len(tags)) if problem.read[i] in MARKS or problem.read[i] == "?"), len(tags)
        )
        if end - place > 1 and (end == len(tags) or problem.read[end] != "?"):
            tags[place], tags[end - 1] = START, END
            tags[place + 1 : end - 1] = [CONTINUE] * (end - place - 2)
        place = end + 1
    none = (0,) * len(tags)
    return Labelling(tuple(tags), none, none, (DEEPEST,) * len(tags))


def _problem(rng: random.Random, split: Split, unit: tuple[str, int] | None) -> Problem:
    long = split == "composition"
    while True:
        steps = _tree(rng, rng.randint(7, 9) if long else rng.randint(2, 6), long, unit)
        depth = max(step.depth for step in steps)
        answer = _answer(steps, unit)
        if (depth > DEEPEST) == long and abs(answer) < 100_000:
            break
    unseen = split == "wording"
    shown = list(steps)
    rng.shuffle(shown)
    names = [step.name for step in steps]
    question = f"how many {steps[0].name} are there ?".split()
    words: list[str] = []
    labels: list[tuple[int, int, int, int]] = []

    def outside(more: Sequence[str]) -> None:
        words.extend(more)
        labels.extend([(OUTSIDE, NO_ROLE, ADD, 0)] * len(more))

    def ask() -> None:
        outside(question)
        labels[-5] = (OUTSIDE, NAME, ADD, 0)

    first = rng.random() < 0.5
    if first:
        ask()
    for step in shown:
        if rng.random() < 0.3:
            outside([*_distractor(rng, names), "."])
        said, roles = _worded(rng, step, unseen)
        tags = [START, *[CONTINUE] * (len(said) - 2), END]
        words.extend(said)
        labels.extend((t, r, step.operation, min(step.depth, DEEPEST)) for t, r in zip(tags, roles, strict=True))
        outside("." if step is shown[-1] else rng.choice(CONNECTORS).split())
    if not first:
        ask()
    return Problem(tuple(words), Labelling(*(tuple(column) for column in zip(*labels, strict=True))), answer, unit)


def _tree(rng: random.Random, count: int, chain: bool, unit: tuple[str, int] | None) -> list[_Step]:
    names = [f"{colour} {noun}" for colour in COLOURS for noun in NOUNS]
    chosen = rng.sample(names, count)
    steps = [_Step(chosen[0], rng.randrange(3), [], 0)]
    for name in chosen[1:]:
        # a random tree is rarely deep: long problems lean to chains, and others do so less
        open_ = [step for step in steps if len(step.parts) < 2]
        parent = open_[-1] if rng.random() < (0.7 if chain else 0.4) else rng.choice(open_)
        parent.parts.append(name)
        steps.append(_Step(name, rng.randrange(3), [], parent.depth + 1))
    for step in steps:
        while len(step.parts) < 2:
            step.parts.append(rng.randint(2, 9) if step.operation == MULTIPLY else rng.randint(2, 30))
        rng.shuffle(step.parts)
    if unit:
        leaf = rng.choice([step for step in steps if all(isinstance(part, int) for part in step.parts)])
        leaf.operation, leaf.parts, leaf.unit = MULTIPLY, [rng.randint(2, 9), unit[0]], True
    return steps


def _worded(rng: random.Random, step: _Step, unseen: bool) -> tuple[list[str], list[int]]:
    forms = (UNSEEN_FACT_WORDINGS if unseen else FACT_WORDINGS) if step.unit else None
    form = rng.choice(forms or (UNSEEN_WORDINGS if unseen else WORDINGS)[step.operation])
    words: list[str] = []
    roles: list[int] = []
    for word in form.split():
        slot = {"{n}": (step.name, NAME), "{a}": (step.parts[0], FIRST), "{b}": (step.parts[1], SECOND)}.get(word)
        said = str(slot[0]).split() if slot else [word]
        words += said
        roles += [slot[1] if slot else NO_ROLE, *[NO_ROLE] * (len(said) - 1)]
    return words, roles


def _distractor(rng: random.Random, names: Sequence[str]) -> list[str]:
    return rng.choice(DISTRACTORS).replace("{d}", rng.choice(names)).replace("{m}", str(rng.randint(2, 30))).split()


def _answer(steps: Sequence[_Step], unit: tuple[str, int] | None) -> int:
    table = {step.name: (step.operation, str(step.parts[0]), str(step.parts[1])) for step in steps}
    answer = _value(steps[0].name, table, str(unit[1]) if unit else "", len(steps))
    assert answer is not None
    return answer


def _value(name: str, steps: dict[str, tuple[int, str, str]], fact: str, left: int) -> int | None:
    if name.isdigit():
        return int(name)
    if name not in steps:
        return int(fact) if fact.isdigit() else None
    if left == 0:
        # the steps go round in a circle
        return None
    operation, *parts = steps[name]
    values = [_value(part, steps, fact, left - 1) for part in parts]
    a, b = values
    if a is None or b is None:
        return None
    return a + b if operation == ADD else a - b if operation == SUBTRACT else a * b


def _mention(words: Sequence[str], place: int) -> str:
    return words[place] if words[place].isdigit() else " ".join(words[place : place + 2])
