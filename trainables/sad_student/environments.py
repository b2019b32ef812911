"""Environments whose success a program decides: generated tasks with tools.

Four kinds of generated tasks, each in three degrees of difficulty: ``lookup`` (one record, more fields), ``hops``
(follow two to four people), ``sums`` (one to three operations with a calculator) and ``rooms`` (find a key in a tree
of rooms that is seen one room at a time). An agent writes ``Thought: ...`` and ``Action: ...``, and the environment
answers ``Observation: ...``. `problems` draws problems of a split; which split a problem belongs to is decided by a
hash of its whole text, so no problem is in two of them. TextWorld's games (`trainables.sad_student.textworld`) are
environments as well.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainables.sad_student.protocol import INVALID, MAX_TURNS, Environment

Split = Literal["train", "validation", "test"]
KINDS = ("lookup", "hops", "sums", "rooms")
TEXTWORLD = "textworld"
DIFFICULTIES = (1, 2, 3)
CALCULATION = re.compile(r"(-?[0-9]{1,4}) ?([+-]) ?([0-9]{1,4})")
# residues of a problem's hash, of ten
SPLITS: dict[Split, tuple[int, ...]] = {"train": tuple(range(8)), "validation": (8,), "test": (9,)}


@dataclass(frozen=True)
class Problem:
    """A generated task: kind, difficulty and the seed that it is made from."""

    kind: str
    difficulty: int
    seed: int

    def environment(self) -> Environment:
        if self.kind == TEXTWORLD:
            # which loads the package
            from trainables.sad_student.textworld import TextWorldGame

            return TextWorldGame(self.name, self.difficulty, self.seed)
        return _TASKS[self.kind](self)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.difficulty}-{self.seed}"


def problems(split: Split, count: int, seed: int = 0, kinds: Iterable[str] = KINDS) -> list[Problem]:
    """Return ``count`` different problems of a split; kinds and difficulties take turns.

    The first of them do not depend on ``count``.
    """
    cells = [(kind, difficulty) for difficulty in DIFFICULTIES for kind in kinds]
    found: list[Problem] = []
    seen: set[str] = set()
    draw = 0
    while len(found) < count:
        problem = Problem(*cells[len(found) % len(cells)], seed * 10_000_000 + draw)
        draw += 1
        text = problem.environment().whole
        if text not in seen and split_of(text) == split:
            seen.add(text)
            found.append(problem)
    return found


def split_of(text: str) -> Split:
    """Return the split that a problem with this whole text belongs to."""
    residue = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10
    return next(split for split, residues in SPLITS.items() if residue in residues)


# ------------------------------------------------------------------------------------------------------ generated tasks

NAMES = (
    "Anna", "Peter", "Maria", "John", "Lucy", "Oscar", "Emma", "Tom", "Alice", "Henry", "Nina", "Paul",
    "Clara", "Max", "Rosa", "Leo", "Julia", "Adam", "Ruth", "Simon",
)  # fmt: skip
VALUES = {
    "city": ("Rome", "Paris", "Oslo", "Lima", "Cairo", "Delhi", "Tokyo", "Berlin", "Madrid", "Dublin"),
    "job": ("cook", "nurse", "pilot", "baker", "farmer", "judge", "clerk", "driver"),
    "pet": ("cat", "dog", "horse", "rabbit", "parrot", "turtle"),
    "drink": ("tea", "milk", "juice", "coffee", "water"),
}
RELATIONS = ("boss", "friend", "neighbor")
ROOMS = ("hall", "kitchen", "garden", "attic", "library", "studio", "bedroom", "office", "garage")


class _Task:
    """What generated tasks have in common: the turn count, wrong actions, and a source of varied thoughts."""

    question: str
    whole: str

    def __init__(self, problem: Problem) -> None:
        self.kind, self.difficulty = problem.kind, problem.difficulty
        self.random = random.Random(f"{problem.kind} {problem.difficulty} {problem.seed}")
        self.success, self.turns, self.invalid = False, 0, 0

    def reset(self) -> str:
        self.success, self.turns, self.invalid = False, 0, 0
        return self.question

    def step(self, action: str) -> tuple[str, bool]:
        self.turns += 1
        verb, _, rest = action.strip().partition(" ")
        observation, over = self.act(verb, rest.strip())
        if observation == INVALID:
            self.invalid += 1
        return observation, over or self.turns >= MAX_TURNS

    def act(self, verb: str, rest: str) -> tuple[str, bool]:
        raise NotImplementedError

    def say(self, *thoughts: str) -> str:
        return self.random.choice(thoughts)

    def answer(self, given: str, right: str) -> tuple[str, bool]:
        self.success = given == right
        return ("Correct." if self.success else "Wrong."), True


class _People(_Task):
    """``lookup`` and ``hops``: records of people, one shown for each ``find NAME``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        draw = self.random
        hops = problem.difficulty if problem.kind == "hops" else 0
        fields = 4 if hops else problem.difficulty + 2
        self.people = draw.sample(NAMES, hops + 4)
        self.records: dict[str, dict[str, str]] = {}
        self.path: list[str] = []
        for place, person in enumerate(self.people):
            others = draw.sample([other for other in self.people if other != person], 2 if hops else 1)
            if place < hops:
                # the next one on the path; the other, if it is not the same one, only distracts
                others = [self.people[place + 1], *(o for o in others if o != self.people[place + 1])][:2]
            relations = draw.sample(RELATIONS, len(others))
            self.path += relations[:1] if place < hops else []
            shown = dict(zip(relations, others, strict=True))
            shown |= {name: draw.choice(VALUES[name]) for name in draw.sample(list(VALUES), fields - len(shown))}
            self.records[person] = {name: shown[name] for name in draw.sample(list(shown), len(shown))}
        self.start, person = self.people[0], self.people[hops]
        self.field = draw.choice([name for name in self.records[person] if name not in RELATIONS])
        self.right = self.records[person][self.field]
        chain = "".join(f"the {relation} of " for relation in reversed(self.path))
        self.question = f"What is the {self.field} of {chain}{self.start}?"
        self.whole = f"{self.question} {self.records}"
        self.found: list[str] = []

    def reset(self) -> str:
        self.found = []
        return super().reset()

    def act(self, verb: str, rest: str) -> tuple[str, bool]:
        if verb == "answer" and rest:
            return self.answer(rest, self.right)
        if verb != "find" or rest not in self.records:
            return INVALID, False
        self.found.append(rest)
        return ", ".join(f"{name} {value}" for name, value in self.records[rest].items()) + ".", False

    def actions(self) -> list[str]:
        seen = {value for person in self.found for value in self.records[person].values()}
        names = sorted({self.start} | (seen & set(self.people)))
        return [f"find {name}" for name in names] + [f"answer {value}" for value in sorted(seen - set(self.people))]

    def expert_action(self) -> tuple[str, str]:
        needed = [*self.path, self.field]
        for person, relation, last in zip(self.people, needed, [None, *needed], strict=False):
            if person in self.found:
                continue
            if last is None:
                thought = self.say(f"I need the {relation} of {person}.", f"Find the {relation} of {person}.")
            else:
                before = self.people[self.people.index(person) - 1]
                thought = self.say(
                    f"The {last} of {before} is {person}. I need the {relation} of {person}.",
                    f"{person} is the {last} of {before}. Find the {relation} of {person}.",
                )
            return thought, f"find {person}"
        person = self.people[len(self.path)]
        return self.say(f"The {self.field} of {person} is {self.right}.", f"It is {self.right}."), (
            f"answer {self.right}"
        )


class _Sums(_Task):
    """``sums``: a story of gains and losses, and a calculator for two numbers."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        draw = self.random
        name, thing = draw.choice(NAMES), draw.choice(("coins", "books", "stones", "apples"))
        self.first = total = draw.randint(20, 99)
        self.changes: list[int] = []
        for _ in range(problem.difficulty):
            change = draw.randint(2, 60)
            if draw.random() < 0.5 and change < total:
                change = -change
            self.changes.append(change)
            total += change
        self.right = str(total)
        story = [f"gets {change}" if change > 0 else f"loses {-change}" for change in self.changes]
        joined = ", ".join(story[:-1]) + (" and " if len(story) > 1 else "") + story[-1]
        self.question = f"{name} has {self.first} {thing}, {joined}. How many {thing} now?"
        self.whole = self.question
        self.known: list[str] = []

    def reset(self) -> str:
        self.known = [str(self.first)]
        return super().reset()

    def act(self, verb: str, rest: str) -> tuple[str, bool]:
        if verb == "answer" and rest:
            return self.answer(rest, self.right)
        found = CALCULATION.fullmatch(rest)
        if verb == "calc" and found:
            left, right = int(found[1]), int(found[3])
            self.known.append(str(left + right if found[2] == "+" else left - right))
            return self.known[-1], False
        return INVALID, False

    def actions(self) -> list[str]:
        terms = [f"{change:+d}" for change in self.changes]
        return [f"calc {self.known[-1]}{term}" for term in terms] + [f"answer {n}" for n in dict.fromkeys(self.known)]

    def expert_action(self) -> tuple[str, str]:
        totals = [self.first]
        for change in self.changes:
            totals.append(totals[-1] + change)
        for done, change in enumerate(self.changes):
            if str(totals[done + 1]) not in self.known[done + 1 :]:
                verb = "gets" if change > 0 else "loses"
                thought = self.say(
                    f"Start with {totals[done]}, then {verb} {abs(change)}.",
                    f"There are {totals[done]}. Next {verb} {abs(change)}.",
                )
                return thought, f"calc {totals[done]}{change:+d}"
        return self.say(f"The total is {self.right}.", f"Nothing is left, {self.right} now."), f"answer {self.right}"


class _Rooms(_Task):
    """``rooms``: a tree of rooms of which the current one's exits are shown; the key lies in one that is named."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        draw = self.random
        rooms = draw.sample(ROOMS, problem.difficulty + 2)
        self.exits: dict[str, list[str]] = {room: [] for room in rooms}
        for place, room in enumerate(rooms[1:], start=1):
            other = draw.choice(rooms[:place])
            self.exits[room].append(other)
            self.exits[other].append(room)
        for room in rooms:
            draw.shuffle(self.exits[room])
        self.start, self.goal = rooms[0], draw.choice(rooms[1:])
        self.question = f"You are in the {self.start}. Take the key in the {self.goal}."
        self.whole = f"{self.question} {self.exits}"
        self.trail: list[str] = []

    def reset(self) -> str:
        self.trail = [self.start]
        exits = ", ".join(self.exits[self.start])
        return f"{super().reset()} Exits: {exits}."

    def act(self, verb: str, rest: str) -> tuple[str, bool]:
        here = self.trail[-1]
        if verb == "take" and rest == "key":
            self.success = here == self.goal
            return ("You have the key." if self.success else "There is no key."), True
        if verb != "go" or rest not in self.exits[here]:
            return INVALID, False
        self.trail.append(rest)
        return f"{rest}. Exits: {', '.join(self.exits[rest])}.", False

    def actions(self) -> list[str]:
        return [f"go {room}" for room in self.exits[self.trail[-1]]] + ["take key"]

    def expert_action(self) -> tuple[str, str]:
        here = self.trail[-1]
        if here == self.goal:
            return self.say(f"This is the {here}.", f"I am in the {here}."), "take key"
        if self.goal in self.exits[here]:
            return self.say(f"The {self.goal} is next.", f"I see the {self.goal}."), f"go {self.goal}"
        fresh = [room for room in self.exits[here] if room not in self.trail]
        if fresh:
            return self.say(f"The {fresh[0]} is new.", f"I try the {fresh[0]}."), f"go {fresh[0]}"
        # the room from which this one was entered first
        back = self.trail[self.trail.index(here) - 1]
        return self.say(f"Nothing new here. Back to the {back}.", f"I go back to the {back}."), f"go {back}"


_TASKS: dict[str, type] = {"lookup": _People, "hops": _People, "sums": _Sums, "rooms": _Rooms}
