"""What an environment is, whatever its tasks are."""

from __future__ import annotations

from typing import Protocol

# turns after which an episode ends without success; the expert never needs more than 8
MAX_TURNS = 10
INVALID = "Invalid action."


class Environment(Protocol):
    """One episode of a task.

    Attributes:
        kind: Kind of task, a group of which success is reported on its own.
        difficulty: From 1.
        success: Whether the task is done.
        invalid: Actions so far that meant nothing; they change nothing but take a turn.
        whole: What tells its problem apart from all others.
    """

    kind: str
    difficulty: int
    success: bool
    invalid: int
    whole: str

    def reset(self) -> str:
        """Start the episode and return the task as text."""

    def step(self, action: str) -> tuple[str, bool]:
        """Do an action; return the observation as text, and whether the episode is over."""

    def actions(self) -> list[str]:
        """Return actions that mean something now, of which a random agent chooses."""

    def expert_action(self) -> tuple[str, str]:
        """Return a thought and an action of an agent that knows how to do the task."""
