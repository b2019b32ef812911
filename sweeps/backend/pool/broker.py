"""The broker between Tune's trials and the workers of the adapter pool: a plain asyncio class that runs as a Ray actor.

Jobs go from the driver through the broker to the workers, and every report comes back the same way. A Tune trial asks
only for the end of its unit. A unit is the jobs of one Tune trial: one in a sweep over tasks, several for a panel of
tasks. A job is in exactly one of three places: the queue, a worker, or the set of finished jobs; a worker that
(re)starts first registers, which puts the jobs of its previous life back at the head of the queue.

`sweeps.backend.pool.queue` is the workers' side. Nothing here knows Tune or Ray.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainables.common.jobs import Job, Report

# Fail a job after this many consecutive worker worker_failures without a report: it is presumed to cause them.
MAX_DEATHS = 3
# Give up after a worker has started this often in a row without a report. The number is greater than MAX_DEATHS + 1, so
# that a worker gets to start once without the job that killed it.
MAX_BARREN_STARTS = 5


@dataclass
class _Live:
    job: Job
    unit: str
    token: int | None = None  # Registration of the worker that has the job, None in the queue.
    worker_failures: int = 0
    cancelled: bool = False
    last: Report | None = None


class PoolBroker:
    """Queue of jobs, mailbox of reports. All methods are coroutines of one event loop, so none needs a lock."""

    def __init__(self) -> None:
        self._sharers = 1  # Number of workers; none gets more than its share of the unfinished jobs.
        self._queue: deque[str] = deque()
        self._live: dict[str, _Live] = {}
        self._units: dict[str, list[str]] = {}  # Trial ids of each unit.
        self._ended: Counter[str] = Counter()  # Number of ended jobs by status.
        self._outbox: deque[tuple[int, Report]] = deque()
        self._sequence = 0
        self._workers: dict[int, int] = {}  # Token of the present registration by rank.
        self._cancels: dict[int, set[str]] = defaultdict(set)  # Jobs to stop by token.
        self._tokens = 0
        self._barren: Counter[int] = Counter()
        self._last_error: str | None = None
        self._gave_up: str | None = None
        self._refusal: str | None = None
        self._draining = False
        self._closed = False
        self._restarts = 0
        self._duplicates = 0
        self._jobs_changed = asyncio.Event()
        self._ends: dict[str, asyncio.Event] = defaultdict(asyncio.Event)  # Events of the units that a trial waits for.

    # the driver's side

    async def submit(self, unit: str, jobs: Sequence[Job]) -> None:
        """Put a unit's jobs into the queue. A unit that is known already is left as it is."""
        if unit in self._units:
            return
        self._units[unit] = [job.trial_id for job in jobs]
        for job in jobs:
            self._live[job.trial_id] = _Live(job, unit)
            self._queue.append(job.trial_id)
        if self._gave_up is not None:
            self._fail_all(self._gave_up)
        elif self._closed or self._draining:
            self._queue.clear()
        self._wake(unit)
        self._jobs_changed.set()

    async def cancel(self, unit: str) -> None:
        """Stop a unit's unfinished jobs: those in the queue at once, those in a worker at its next look."""
        if self._draining or unit not in self._units:
            return
        for trial_id in self._units[unit]:
            live = self._live.get(trial_id)
            if live is None or live.cancelled:
                continue
            live.cancelled = True
            if live.token is None:
                self._queue.remove(trial_id)
                self._end(live, "stopped")
            else:
                self._cancels[live.token].add(trial_id)

    async def fail(self, unit: str, error: str, traceback: str | None = None) -> None:
        """End a unit's unfinished jobs as failed, because its Tune trial cannot go on."""
        self._fail_unit(unit, error, traceback)

    async def collect(self, after: int) -> tuple[int, list[Report], dict[str, int]]:
        """Return the reports since number ``after``, the number of the last one, and `counts`.

        Reports are kept until the next call confirms them by its ``after``, so an answer that gets lost loses nothing.
        """
        while self._outbox and self._outbox[0][0] <= after:
            self._outbox.popleft()
        return self._sequence, [report for _, report in self._outbox], self._counts()

    async def drain(self) -> None:
        """Begin an orderly stop: hand out no more jobs, ask workers to stop theirs, wake every waiting trial.

        A job stopped by this is not finished: its last report goes to the driver as ``running``.
        """
        self._draining = True
        self._queue.clear()
        for trial_id, live in self._live.items():
            if live.token is not None:
                self._cancels[live.token].add(trial_id)
        self._wake_all()

    async def close(self) -> None:
        """Tell the workers that no more jobs will come."""
        self._closed = True
        self._wake_all()

    async def give_up(self, reason: str) -> None:
        """End every job, now and later, as failed: the pool cannot run."""
        if self._gave_up is None and not self._draining and not self._closed:
            self._give_up(reason)

    # the trials' side

    async def end_of(self, unit: str) -> None:
        """Wait until all jobs of a unit have ended, or until none goes on because the sweep stops."""
        if not self._draining and (unit not in self._units or self._is_running(unit)):
            await self._ends[unit].wait()

    # the workers' side

    async def register(self, rank: int, world_size: int) -> int | None:
        """Begin a worker's life; its previous life's jobs go back to the head of the queue.

        So do those of ranks that are no more, because Train restarts all workers at once, and with fewer of them where
        machines are gone.

        Returns:
            The token that its other calls carry, or None when it should end at once.
        """
        self._sharers = world_size
        for gone in [other for other in self._workers if other >= world_size]:
            self._recover(self._workers.pop(gone))
        previous = self._workers.get(rank)
        self._tokens += 1
        token = self._workers[rank] = self._tokens
        if previous is not None:
            self._restarts += 1
            self._recover(previous)
        self._barren[rank] += 1
        if self._barren[rank] >= MAX_BARREN_STARTS and not self._draining and not self._closed:
            reason = f"The pool worker {rank} started {self._barren[rank]} times without a report"
            self._give_up(
                f"{reason}: {self._last_error}" if self._last_error else f"{reason}; it was killed each time."
            )
        return None if self._over else token

    async def take(self, token: int, limit: int, wait_s: float) -> tuple[list[Job], set[str], bool]:
        """Assign at most ``limit`` jobs, no more than the worker's share, waiting at most ``wait_s`` s for the first.

        Returns:
            The jobs, the ids of jobs to stop, and whether more may come.
        """
        deadline = time.monotonic() + wait_s
        while not self._queue and not self._over and token in self._workers.values():
            self._jobs_changed.clear()
            try:
                await asyncio.wait_for(self._jobs_changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                break
        if token not in self._workers.values():
            return [], set(), False
        jobs: list[Job] = []
        held = sum(live.token == token for live in self._live.values())
        # Otherwise the worker that asks first would get all of the last jobs.
        limit = min(limit, math.ceil(len(self._live) / self._sharers) - held)
        while self._queue and len(jobs) < limit:
            live = self._live[self._queue.popleft()]
            live.token = token
            jobs.append(live.job)
        return jobs, self._cancels.pop(token, set()), not self._over

    async def push(self, token: int, reports: Sequence[Report]) -> set[str]:
        """Accept reports; returns the ids of jobs to stop."""
        for report in reports:
            live = self._live.get(report.trial_id)
            if live is None or live.token != token:
                self._duplicates += 1  # The job has ended, or a later registration of the worker has it.
                continue
            rank = next(rank for rank, t in self._workers.items() if t == token)
            self._barren[rank] = 0
            live.worker_failures = 0
            report = replace(report, metrics={**report.metrics, "worker": rank})
            if report.status == "running":
                live.last = replace(report, history=())
                self._send(report)
            elif report.status == "stopped" and not live.cancelled:
                # drain() stopped the job; the next session continues it.
                del self._live[report.trial_id]
                self._send(replace(report, status="running"))
            else:
                self._finish(live, report)
        return self._cancels.pop(token, set())

    async def crashed(self, token: int, traceback: str) -> None:
        """Note why a worker is about to end."""
        self._last_error = traceback

    async def refuse(self, reason: str) -> None:
        """Stop in order, because what a worker was given is wrong and will be: trying again is of no use."""
        self._refusal = self._refusal or reason
        await self.drain()

    async def refusal(self) -> str | None:
        """Return what a worker said was wrong with what it was given, None where nothing is."""
        return self._refusal

    async def is_over(self) -> bool:
        """Whether workers should end because no more jobs will come."""
        return self._over

    # private

    @property
    def _over(self) -> bool:
        return self._closed or self._draining or self._gave_up is not None

    def _counts(self) -> dict[str, int]:
        return {
            "queued": len(self._queue),
            "running": sum(live.token is not None for live in self._live.values()),
            "unfinished": len(self._live),
            "success": self._ended["success"],
            "stopped": self._ended["stopped"],
            "failed": self._ended["failed"],
            "workers": len(self._workers),
            "worker_restarts": self._restarts,
            "duplicates": self._duplicates,
            "gave_up": self._gave_up is not None,
            "refused": self._refusal is not None,
        }

    def _recover(self, token: int) -> None:
        lost = [live for live in self._live.values() if live.token == token]
        self._cancels.pop(token, None)
        again = []
        for live in lost:
            live.token = None
            live.worker_failures += 1
            if live.cancelled:
                self._end(live, "stopped")
            elif live.worker_failures >= MAX_DEATHS:
                self._end(live, "failed", f"Its worker died {live.worker_failures} times in a row while training it.")
            elif not self._draining:
                again.append(live.job.trial_id)
        self._queue.extendleft(reversed(again))
        self._jobs_changed.set()

    def _give_up(self, reason: str) -> None:
        self._gave_up = reason
        self._fail_all(reason)
        self._wake_all()

    def _fail_all(self, reason: str) -> None:
        self._queue.clear()
        for live in list(self._live.values()):
            if live.token is not None:
                self._cancels[live.token].add(live.job.trial_id)
            self._end(live, "failed", reason.strip().splitlines()[-1], self._last_error)

    def _end(self, live: _Live, status: Any, error: str | None = None, traceback: str | None = None) -> None:
        if live.job.trial_id not in self._live:
            return
        last = live.last or Report(live.job.trial_id, "running", 0)
        self._finish(live, replace(last, status=status, error=error, traceback=traceback))

    def _finish(self, live: _Live, report: Report) -> None:
        del self._live[report.trial_id]
        self._ended[report.status] += 1
        self._send(report)
        if report.status == "failed":
            # A panel without one of its tasks cannot be compared with others, so its other jobs are tried again too.
            self._fail_unit(live.unit, f"{report.trial_id} of the same panel failed: {report.error}", None)
        self._wake(live.unit)

    def _wake(self, unit: str) -> None:
        """Let the trial of a unit that has ended go on."""
        if unit in self._ends and not self._is_running(unit):
            self._ends.pop(unit).set()

    def _is_running(self, unit: str) -> bool:
        return any(trial_id in self._live for trial_id in self._units[unit])

    def _fail_unit(self, unit: str, error: str, traceback: str | None) -> None:
        for trial_id in self._units.get(unit, ()):
            live = self._live.get(trial_id)
            if live is None:
                continue
            if live.token is None:
                if trial_id in self._queue:
                    self._queue.remove(trial_id)
            else:
                self._cancels[live.token].add(trial_id)
            self._end(live, "failed", error, traceback)

    def _send(self, report: Report) -> None:
        self._sequence += 1
        self._outbox.append((self._sequence, report))

    def _wake_all(self) -> None:
        self._jobs_changed.set()
        for event in self._ends.values():
            event.set()
