"""Trajectories of agents: text in segments, each of which is a span of one sort.

A trajectory is kept as ReAct text: ``Task: ...``, then ``Thought: ...``, ``Action: ...`` and ``Observation: ...`` by
turns, each a segment that ends with a newline. Files of users, chat messages with tool calls or ReAct text, are read by
`trainables.sad_student.files`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainables.sad_student.environments import Problem
from trainables.sad_student.protocol import Environment

Span = Literal["reasoning", "action", "observation", "other"]
SPANS: tuple[Span, ...] = ("reasoning", "action", "observation", "other")
# what an agent writes itself
WRITTEN: tuple[Span, ...] = ("reasoning", "action")


@dataclass(frozen=True)
class Segment:
    """A part of a trajectory that is one span."""

    span: Span
    text: str


@dataclass(frozen=True)
class Trajectory:
    """What an agent was given, thought, did and saw, in order.

    Attributes:
        name: Names it in messages.
        segments: The parts of its text.
        kind: Kind of task.
        difficulty: Of the task, from 1.
        success: Whether the task was done, None where nobody knows.
    """

    name: str
    segments: tuple[Segment, ...]
    kind: str = ""
    difficulty: int = 1
    success: bool | None = None

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def task(self) -> str:
        """What is said before the agent's first thought or action."""
        segments = itertools.takewhile(lambda segment: segment.span not in WRITTEN, self.segments)
        return "".join(segment.text for segment in segments)

    @property
    def spans(self) -> list[tuple[int, int, Span]]:
        """First character, the one after the last, and the span of each segment; together they cover the text."""
        found, start = [], 0
        for segment in self.segments:
            found.append((start, start + len(segment.text), segment.span))
            start += len(segment.text)
        return found


def task_text(task: str) -> str:
    return f"Task: {task}\n"


def observation_text(observation: str) -> str:
    return f"Observation: {observation}\n"


def turn_segments(thought: str, action: str) -> tuple[Segment, Segment]:
    """Return what an agent writes in a turn."""
    return Segment("reasoning", f"Thought: {thought}\n"), Segment("action", f"Action: {action}\n")


def expert_trajectory(problem: Problem) -> Trajectory:
    """Return what the expert does with a problem. Raises RuntimeError if it does not succeed."""
    environment = problem.environment()
    segments, over = [Segment("other", task_text(environment.reset()))], False
    while not over:
        thought, action = environment.expert_action()
        observation, over = environment.step(action)
        segments += [*turn_segments(thought, action), Segment("observation", observation_text(observation))]
    if not environment.success:
        raise RuntimeError(f"The expert does not solve {problem.name}.")
    return trajectory_of(problem.name, environment, segments)


def trajectory_of(name: str, environment: Environment, segments: Iterable[Segment]) -> Trajectory:
    """Return the trajectory of an episode that is over."""
    return Trajectory(name, tuple(segments), environment.kind, environment.difficulty, environment.success)
