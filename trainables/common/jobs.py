"""What a packed trainer is given and what it says: jobs, reports, and the queue between it and whoever runs it.

The engine sees only a `JobQueue`. `ListQueue` feeds it from a plain list (benchmarks, tests, accelerator machines
without Ray); the adapter pool feeds it from Ray Tune. This module imports neither Ray nor torch, because the Tune
trials that use it must start in a fraction of a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Status = Literal["running", "success", "stopped", "failed"]


@dataclass(frozen=True)
class Job:
    """One unit of work: train one adapter on one task with one configuration and one seed.

    Attributes:
        trial_id: Unique within a run; also names the checkpoint.
        task_id: The task that the adapter is for.
        seed: Seed of the adapter's initial weights and of its data order.
        config: The family's complete, resolved configuration.
        attempt: 1 for the first try, one more for each retry after a failure.
        sample: Index of the configuration among those tried on this task.
    """

    trial_id: str
    task_id: str
    seed: int
    config: Mapping[str, Any]
    attempt: int = 1
    sample: int = 0


@dataclass(frozen=True)
class Report:
    """What a trainer says about one job at a rung (``running``) or at its end (any other status).

    Attributes:
        trial_id: The job's.
        status: ``running`` at a rung; ``success``, ``stopped`` (cancelled by the scheduler) or ``failed`` at the end.
        epoch: Absolute number of epochs trained, restarts included.
        metrics: Values for the job's row in the trials table, as far as they are known.
        history: One mapping per epoch since the last report; a job continued from a checkpoint sends all of them again.
        predictions: One mapping per held-out example, with the answers before and after training; at the end only.
        error: One line that says why the job failed.
        traceback: The traceback of the failure.
    """

    trial_id: str
    status: Status
    epoch: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    error: str | None = None
    traceback: str | None = None
    predictions: Sequence[Mapping[str, Any]] = ()


class JobQueue(Protocol):
    """A source of jobs and a sink of reports."""

    def take(self, limit: int, wait: bool) -> list[Job]:
        """Return at most ``limit`` new jobs; with ``wait``, block until there is one.

        ``[]`` after a wait means that no more will come.
        """

    def cancelled(self) -> set[str]:
        """Return the trial ids to be stopped that were not returned before."""

    def report(self, reports: Sequence[Report]) -> None:
        """Hand over reports, in order."""


class ListQueue:
    """A `JobQueue` over a list of jobs that keeps every report in ``reports``."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._waiting = deque(jobs)
        self._cancelled: set[str] = set()
        self.reports: list[Report] = []

    def take(self, limit: int, wait: bool) -> list[Job]:
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def cancel(self, trial_id: str) -> None:
        """Ask for one job to be stopped at the next opportunity; one that nobody took yet is over at once."""
        untaken = [job for job in self._waiting if job.trial_id == trial_id]
        for job in untaken:
            self._waiting.remove(job)
            self.report([Report(trial_id, "stopped", 0)])
        if not untaken:
            self._cancelled.add(trial_id)

    def cancelled(self) -> set[str]:
        taken, self._cancelled = self._cancelled, set()
        return taken

    def report(self, reports: Sequence[Report]) -> None:
        self.reports.extend(reports)
