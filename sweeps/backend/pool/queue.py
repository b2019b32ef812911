"""The workers' side of the broker: the `JobQueue` that a pool loop takes its jobs from and reports to."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import ray

from trainables.common.jobs import Job, Report


class BrokerQueue:
    """The `JobQueue` of a pool worker. Only taking jobs waits for the broker: on busy cores an answer takes a while.

    One message is under way at a time, so reports arrive in order. What has not been sent when the worker dies is
    trained again from the last checkpoint, as if it had died a moment earlier.

    Args:
        broker: Handle of the `PoolBroker` actor.
        token: What `PoolBroker.register` returned.
        poll_s: Longest time between two messages while the training loop comes by, in seconds.
    """

    def __init__(self, broker: Any, token: int, poll_s: float = 1.0) -> None:
        self._broker = broker
        self._token = token
        self._poll_s = poll_s
        self._unsent: list[Report] = []
        self._answer: Any = None  # to the message under way
        self._cancelled: set[str] = set()
        self._asked = -math.inf  # when the broker was last asked which jobs are cancelled
        self._found_none = -math.inf  # when it last had no job
        self._open = True

    def take(self, limit: int, wait: bool) -> list[Job]:
        if limit <= 0 or (not wait and time.monotonic() - self._found_none < self._poll_s):
            return []
        # the broker shares out jobs by those that it knows to be unfinished
        self.flush()
        jobs: list[Job] = []
        while self._open and not jobs:
            answer = self._broker.take.remote(self._token, limit, 5.0 if wait else 0.0)
            jobs, cancelled, self._open = ray.get(answer)
            self._cancelled |= cancelled
            if not wait:
                break
        if not jobs:
            self._found_none = time.monotonic()
        return jobs

    def cancelled(self) -> set[str]:
        self._exchange()
        taken, self._cancelled = self._cancelled, set()
        return taken

    def report(self, reports: Sequence[Report]) -> None:
        self._unsent += reports
        self._exchange()

    def flush(self) -> None:
        """Wait until the broker has every report."""
        self._hear()
        if self._unsent:
            self._send()
            self._hear()

    def _exchange(self) -> None:
        """Hear what the broker answered, and send what there is, unless an answer is still to come."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._hear()
        if self._answer is None and (self._unsent or time.monotonic() - self._asked > self._poll_s):
            self._send()

    def _send(self) -> None:
        self._answer, self._unsent = self._broker.push.remote(self._token, self._unsent), []
        # what it answers is true now, however late it is heard
        self._asked = time.monotonic()

    def _hear(self) -> None:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            self._cancelled |= ray.get(answer)
