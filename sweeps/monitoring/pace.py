"""How fast the trials of a sweep end, and how long the rest will take.

Work is counted by its cost, not by trials: the largest tasks train first and side by side, so none ends for minutes,
and those that have ended say little about the small ones that wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a trial costs, in any unit that all trials of a sweep share.

    Attributes:
        epoch: Cost of one epoch of training.
        epochs: Most epochs that it trains.
        end: Cost of what follows its last epoch, such as an evaluation.
        trained: Epochs that earlier sessions have trained.
    """

    epoch: float = 1.0
    epochs: int = 1
    end: float = 0.0
    trained: int = 0

    def until(self, epoch: int) -> float:
        """Return what this session spends on the trial until the end of an epoch."""
        return self.epoch * max(0, min(epoch, self.epochs) - self.trained)

    @property
    def total(self) -> float:
        """What this session spends on the whole trial."""
        return self.until(self.epochs) + self.end


class Pace:
    """The pace of one session. Time counts from the start of training, because the start of Ray says nothing about it.

    Args:
        trials: Trials that this session has to do.
        clock: Returns seconds.
    """

    def __init__(self, trials: int, clock: Callable[[], float]) -> None:
        self._trials, self._clock = trials, clock
        self._costs: dict[str, Cost] = {}
        self._done: dict[str, float] = {}
        # Sums over the two are kept, because a sweep may have tens of thousands of trials.
        self._cost = self._spent = 0.0
        self._ended: set[str] = set()
        self._began: float | None = None
        self._reported: float | None = None

    def expect(self, costs: Mapping[str, Cost]) -> None:
        """Take note of what trials cost. Trials that nobody announced are assumed to cost the mean of the others."""
        for trial_id, cost in costs.items():
            self._cost += cost.total - (self._costs[trial_id].total if trial_id in self._costs else 0.0)
            self._costs[trial_id] = cost

    def begin(self, seconds_ago: float = 0.0) -> None:
        """Note that training has begun; later calls change nothing."""
        if self._began is None:
            self._began = self._clock() - seconds_ago

    def reach(self, trial_id: str, epoch: int) -> None:
        """Note that a trial has trained ``epoch`` epochs, those of earlier sessions included."""
        self._note(trial_id, self._cost_of(trial_id).until(epoch))

    def end(self, trial_id: str) -> None:
        """Note the end of a trial. One that ended early counts in full, because others will end early as well."""
        self._ended.add(trial_id)
        self._note(trial_id, self._cost_of(trial_id).total)

    @property
    def waiting_for(self) -> str:
        """What has to happen before the time that is left can be estimated; empty once it has happened."""
        if self._began is None:
            return "the workers to start"
        return "" if self._spent else "the first report"

    @property
    def per_hour(self) -> float:
        """Trials that ended per hour of training; 0 before the first has ended."""
        elapsed = 0.0 if self._began is None else self._clock() - self._began
        return len(self._ended) / elapsed * 3600 if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until all trials have ended; NaN while there is something to wait for."""
        if len(self._ended) >= self._trials:
            return 0.0
        if self.waiting_for or self._reported is None or self._began is None:
            return math.nan
        left = self._cost * self._trials / len(self._costs) - self._spent
        # Reports come in bursts, so the rate is that at the last one, and the time since then has gone by.
        seconds = left * (self._reported - self._began) / self._spent
        return max(0.0, seconds - (self._clock() - self._reported))

    def _cost_of(self, trial_id: str) -> Cost:
        if trial_id not in self._costs:
            self.expect({trial_id: Cost()})
        return self._costs[trial_id]

    def _note(self, trial_id: str, done: float) -> None:
        self._spent += done - self._done.get(trial_id, 0.0)
        self._done[trial_id] = done
        self._reported = self._clock()
