"""ASHA as a Tune scheduler that judges every report when the driver receives it, each group of trials by itself.

This is the stopping variant of asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", 2020) with one bracket for each group. A loss of 0.1 on one task says nothing about a loss of
1.0 on another, so one bracket over many tasks would stop the hard tasks and keep the easy ones.

A trial of an ordinary family reports through Tune, which calls `GroupedASHA.on_trial_result`. The reports of a pool
reach the driver without Tune; the driver calls `GroupedASHA.judge` for each of them, whether or not Tune has started
the trial, and `GroupedASHA.on_trial_result` tells Tune afterwards what was decided. `Panel` turns the reports of the
jobs of one trial into one value for each rung.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler

from trainables.common.family import Mode
from trainables.common.jobs import Job

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

# A Tune trial's configuration holds its name, the same in every session.
UNIT = "unit"
ONE_GROUP = "all"


@dataclass(frozen=True)
class Decision:
    """What ASHA decided the last time that a trial reached a rung.

    Attributes:
        rung: Epoch of the rung.
        value: The trial's metric there.
        cutoff: The metric that had to be reached; None for the first trial at the rung, and for a rung that the trial
            reached in an earlier session.
        stopped: Whether the trial was stopped.
    """

    rung: int
    value: float
    cutoff: float | None
    stopped: bool

    def columns(self) -> dict[str, Any]:
        """Return the decision as columns of the trials table."""
        return {"rung": self.rung, "asha_cutoff": self.cutoff}


class InTurn(FIFOScheduler):
    """Trials start in their order, and nothing stops them.

    Tune starts pending trials by itself; its own scheduler looks for one among all trials, ended ones too, at every
    step, which in a sweep of tens of thousands is most of the driver's time.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        return None


class GroupedASHA(InTurn):
    """Stops a trial at a rung where its metric is worse than that of the best ``1 / reduction_factor`` before it.

    A Tune trial is known by its configuration: ``trial.config["unit"]`` is its name, the same in every session.

    Args:
        metric: Reported value to compare.
        mode: ``min`` or ``max``.
        max_t: Epochs of a complete trial. A trial that gets there is never stopped: it only has its evaluation to do.
        grace_period: Epoch of the first rung; it is ``max_t`` where that is less.
        reduction_factor: One trial in so many passes a rung; also the ratio of one rung to the one before.

    Attributes:
        rungs: Epochs of the rungs, ascending.
    """

    def __init__(self, *, metric: str, mode: Mode, max_t: int, grace_period: int, reduction_factor: int = 3) -> None:
        super().__init__()
        self.rungs: list[int] = [min(grace_period, max_t)]
        while self.rungs[-1] * reduction_factor <= max_t:
            self.rungs.append(self.rungs[-1] * reduction_factor)
        self._reported = metric
        self._max_t = max_t
        self._sign = 1.0 if mode == "max" else -1.0
        self._percentile = 100.0 * (1.0 - 1.0 / reduction_factor)
        # Scores of each group's trials at each rung; a greater score is better.
        self._scores: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        self._decisions: dict[str, Decision] = {}
        self._groups: dict[str, str] = {}

    def judge(
        self, group: str, unit: str, epoch: int, value: float | None, *, may_stop: bool = True
    ) -> Decision | None:
        """Judge a report at the highest rung that its epoch has reached.

        Args:
            group: Trials that the trial is compared with.
            unit: The trial.
            epoch: Absolute epoch of the report.
            value: The metric; None where the report has none.
            may_stop: Whether the trial can still be stopped. One that cannot enters its value for the others.

        Returns:
            The decision; None below the first rung, where the trial was judged at the rung before or is stopped
            already, and for a value that is missing or not finite, which would pass every cutoff or spoil the
            percentile.
        """
        rung = max((rung for rung in self.rungs if rung <= epoch), default=None)
        last = self._decisions.get(unit)
        if rung is None or value is None or not math.isfinite(value) or (last and (last.stopped or last.rung >= rung)):
            return None
        scores, score = self._scores[group, rung], self._sign * value
        # numpy interpolates between two trials, as Tune's ASHA does.
        cutoff = float(np.percentile(list(scores.values()), self._percentile)) if scores else None
        scores[unit] = score
        stopped = may_stop and epoch < self._max_t and cutoff is not None and score < cutoff
        decision = Decision(rung, value, None if cutoff is None else self._sign * cutoff, stopped)
        self._decisions[unit] = decision
        return decision

    def replay(self, unit: Unit) -> None:
        """Take note of a unit's group, and enter what it came to in earlier sessions into the rungs of that group.

        Call it before the sweep for every unit that has reported, ended or not, or whose group is not the one of all.
        No decision is taken again: a unit that was stopped stays so, and one that goes on is judged at its next rung.
        """
        self._groups[unit.name] = unit.group
        _, reached = unit.panel(self.rungs)
        for rung, value in reached:
            self._scores[unit.group, rung][unit.name] = self._sign * value
            self._decisions[unit.name] = Decision(rung, value, None, rung == unit.stopped_at)

    def decision(self, unit: str) -> Decision | None:
        """Return the last decision about a trial, None before its first rung."""
        return self._decisions.get(unit)

    # events from Tune

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        unit = trial.config[UNIT]
        if self._reported in result:
            self.judge(self._groups.get(unit, ONE_GROUP), unit, result["epoch"], result[self._reported])
        decision = self.decision(unit)
        return self.STOP if decision and decision.stopped else self.CONTINUE


class Panel:
    """The jobs of one trial, and what the trial comes to at each rung: the mean over its jobs.

    A panel is at a rung when each of its jobs is there or has ended; a job that ended before counts with its last
    value. A job's value at a rung is that of its first report from there on and before the next rung.

    Args:
        jobs: Names of all jobs of the panel, those that ended in earlier sessions too.
        rungs: Epochs of the rungs, ascending.
    """

    def __init__(self, jobs: Iterable[str], rungs: Sequence[int]) -> None:
        self._curves: dict[str, list[tuple[int, float]]] = {job: [] for job in jobs}
        self._spans: list[tuple[int, float]] = list(zip(rungs, [*rungs[1:], math.inf], strict=True))
        self._ended: set[str] = set()
        self._judged = 0

    @property
    def ended(self) -> bool:
        """Whether all jobs have ended."""
        return len(self._ended) == len(self._curves)

    def has_value(self, job: str) -> bool:
        """Whether any report of a job had a value."""
        return bool(self._curves[job])

    def hear(self, job: str, epoch: int, value: float | None, ended: bool = False) -> list[tuple[int, float]]:
        """Take note of a report; return the rungs that the panel is now at, and what it comes to there.

        Args:
            job: The job that reports.
            epoch: Its absolute epoch.
            value: The metric; None where the report has none.
            ended: Whether this is the job's last report.
        """
        if value is not None and math.isfinite(value):
            self._curves[job].append((epoch, value))
        if ended:
            self._ended.add(job)
        means = [(rung, self._mean(rung, following)) for rung, following in self._spans if rung > self._judged]
        reached = [(rung, mean) for rung, mean in means if mean is not None]
        self._judged = max((rung for rung, _ in reached), default=self._judged)
        return reached

    def _mean(self, rung: int, following: float) -> float | None:
        values, reached = [], False
        for job, curve in self._curves.items():
            there = next((value for epoch, value in curve if rung <= epoch < following), None)
            if there is None and (job not in self._ended or not curve):
                return None
            reached = reached or there is not None
            values.append(curve[-1][1] if there is None else there)
        return sum(values) / len(values) if reached else None


@dataclass(frozen=True)
class Unit:
    """What one Tune trial stands for: a job, or the jobs of a panel of tasks that are judged together.

    Attributes:
        name: What ASHA and Tune call it, the same in every session.
        jobs: The jobs to train.
        group: The units that ASHA compares it with have the same.
        earlier: What its jobs came to in earlier sessions, ``(epoch, metric)`` ascending by trial id. Those that are
            not in ``jobs`` have ended.
        stopped_at: Rung at which ASHA stopped it in an earlier session; what is left of it is not trained.
    """

    name: str
    jobs: Sequence[Job]
    group: str = ONE_GROUP
    earlier: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    stopped_at: int | None = None

    def panel(self, rungs: Sequence[int]) -> tuple[Panel, list[tuple[int, float]]]:
        """Return how far the unit is, and the rungs that it reached in earlier sessions with its values there."""
        waiting = [job.trial_id for job in self.jobs]
        panel = Panel(dict.fromkeys([*self.earlier, *waiting]), rungs)
        reached = []
        for trial_id, curve in self.earlier.items():
            for number, (epoch, value) in enumerate(curve, 1):
                reached += panel.hear(trial_id, epoch, value, trial_id not in waiting and number == len(curve))
        return panel, [(rung, value) for rung, value in reached if self.stopped_at is None or rung <= self.stopped_at]
