"""Run jobs as Tune trials through the adapter pool: thin trials, one broker, one long-lived Ray Train run.

`PoolTrial` is what Tune sees of a unit of work: it waits for the unit's end and never imports torch. `run_pool_sweep`
puts trials, broker and pool together. Every report comes to the driver once, on the caller's thread: ASHA judges it
there, a trial that ASHA stops is cancelled in the broker, and the report goes to the caller. What is stored, and what
is left to do when a run is repeated, is the caller's business.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.backend.asha import UNIT, GroupedASHA, Panel, Unit
from sweeps.backend.patience import Patience
from sweeps.backend.pool.broker import PoolBroker
from sweeps.backend.pool.workers import AdapterPool, PoolError
from sweeps.backend.trials import TRIAL_RESOURCES, InOrder, Search, StopFlag, diverged, run_tune
from trainables.common.errors import InputError
from trainables.common.jobs import Report

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

logger = logging.getLogger(__name__)

# Seconds between two fetches of reports from the broker.
COLLECT_S = 0.5
# Seconds that workers get to notice a stop that the user asked for; they look once an epoch.
DRAIN_S = 8.0
# Seconds that the Train run gets to end when all is done, and when somebody waits for the end.
CLOSE_S, STOP_S = 10.0, 2.0


class Listener(Protocol):
    """Who is told of a sweep while it runs, on the thread that called `run_pool_sweep`."""

    def on_reports(self, reports: Sequence[Report]) -> None:
        """Take every report exactly once, those of one job in order; called with nothing where nothing is new.

        The last report of a job that ASHA judged carries ``rung`` and ``asha_cutoff`` in its metrics.
        """

    def on_counts(self, counts: Mapping[str, int]) -> None:
        """Take the broker's counts of jobs and workers; called before each `on_reports`."""


@dataclass(frozen=True)
class PoolOutcome:
    """How a pool sweep ended.

    Attributes:
        interrupted: Whether it was asked to stop before everything was done.
        counts: Jobs by status, ``worker_restarts``, and what else the broker counts.
        seconds: Wall time, the start of the pool included.
    """

    interrupted: bool
    counts: Mapping[str, int]
    seconds: float


class PoolTrial(ray.tune.Trainable):
    """A Tune trial that waits for the end of its unit. The driver submits and cancels; this only looks on."""

    def setup(self, config: dict[str, Any]) -> None:
        self._broker = ray.get_actor(config["broker"][0], namespace=config["broker"][1])
        self._unit = config[UNIT]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._unit = new_config[UNIT]
        return True

    def step(self) -> dict[str, Any]:
        ray.get(self._broker.end_of.remote(self._unit))
        return {"done": True}


def run_pool_sweep(
    work: Sequence[Unit] | Search[Unit],
    pool: AdapterPool,
    listener: Listener,
    *,
    metric: str,
    asha: GroupedASHA | None = None,
    should_stop: StopFlag | None = None,
    max_concurrent: int = 1,
    backlog: int = 1,
    storage_path: str | None = None,
    grows: bool = False,
) -> PoolOutcome:
    """Run units of jobs as Tune trials through an adapter pool, until all are done or a stop is asked for.

    Ray must be connected. A job whose ``metric`` is not finite has failed, whatever its worker says.

    Args:
        work: The units, or a search that makes them.
        pool: What trains the jobs.
        listener: Who is told of every report.
        metric: Name of the value in the reports that ASHA compares.
        asha: Judges the units at their rungs; None trains each to its end. What it knows of earlier sessions must have
            been replayed.
        should_stop: Once set, no job is begun, running jobs are stopped, their reports are handed over, and the call
            returns within about 15 s.
        max_concurrent: Tune trials at once, each of them a process of about 115 MB. One will do for a list of units,
            whose jobs the pool gets ahead of their trials. A unit of a search is drawn when its trial begins, so a
            search needs one for each unit that is to be in training.
        backlog: Jobs of a list of units that the pool has at once, those in training too. Where it is more than the
            slots of all workers, none waits for the driver.
        storage_path: A folder that all machines of the cluster reach, for notes that are of no use afterwards; None
            takes a temporary one, which is right on one machine.
        grows: Whether an autoscaler may have to start machines first.

    Raises:
        InputError: If a worker raised one. What was reported until then has been handed over.
        PoolError: If the broker died. What was reported until then has been handed over.
    """
    started = time.monotonic()
    scratch = tempfile.mkdtemp(prefix="sweep-")
    storage = storage_path or scratch
    name = f"broker-{uuid.uuid4().hex}"
    context = ray.get_runtime_context()
    here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
    options = {"name": name, "num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    broker = ray.remote(PoolBroker).options(**options).remote()
    driver = _Driver(broker, work, listener, metric, asha, should_stop, backlog, grows)
    pool.start(broker, storage)
    try:
        if driver.search.num_samples:
            driver.wait_for_pool()
        if driver.search.num_samples and not driver.stopping:
            run_tune(
                ray.tune.with_resources(PoolTrial, TRIAL_RESOURCES),
                driver,
                driver.search,
                storage_path=storage,
                max_concurrent=max_concurrent,
                max_failures=3,
                param_space={"broker": (name, context.namespace)},
                asha=asha,
                reuse_actors=True,
            )
        driver.finish()
        driver.require_accepted()
    finally:
        try:
            pool.close(STOP_S if driver.stopping else CLOSE_S)
        except ray.exceptions.RayError as error:
            logger.warning("The adapter pool did not close: %s", str(error).partition("\n")[0])
        shutil.rmtree(scratch, ignore_errors=True)
    return PoolOutcome(driver.stopping, driver.counts, time.monotonic() - started)


class _Driver:
    """The driver's end of a sweep: submits units, some ahead of their trials, has reports judged, and hands them over.

    It is the `Watcher` of the sweep's Tune trials.
    """

    def __init__(
        self,
        broker: Any,
        work: Sequence[Unit] | Search[Unit],
        listener: Listener,
        metric: str,
        asha: GroupedASHA | None,
        should_stop: StopFlag | None,
        backlog: int,
        grows: bool,
    ) -> None:
        self._broker, self._listener, self._metric, self._asha = broker, listener, metric, asha
        self._should_stop, self._backlog = should_stop, backlog
        self._list: Sequence[Unit] = () if isinstance(work, Search) else work
        self.search = work if isinstance(work, Search) else _in_turn(work)
        self.stopping = False
        self.counts: Mapping[str, int] = {"unfinished": 0, "running": 0, "workers": 0, "gave_up": 0}
        self._patience = Patience(grows)
        self._submitted: set[str] = set()
        self._next = 0  # Index of the first unit of the list that may not have been submitted.
        self._unfinished = 0  # Number of jobs that the pool has.
        self._unit_of: dict[str, Unit] = {}  # Units by trial id.
        self._panels: dict[str, Panel] = {}  # Panels of the units that ASHA may still judge.
        self._collected = 0
        self._asked = -math.inf
        self._answer: Any = None
        self._submit_ahead()

    def wait_for_pool(self) -> None:
        """Wait until a worker is there or the pool has failed. On few cores, trials that start beside it delay both."""
        while not (self.stopping or self.counts["workers"] or self.counts["gave_up"]):
            time.sleep(0.05)
            self.look()

    def finish(self) -> None:
        """Hand over the last reports; after a stop, those of jobs that are still being stopped."""
        deadline = time.monotonic() + DRAIN_S
        self._collect()
        while self.stopping and self.counts["running"] and time.monotonic() < deadline:
            time.sleep(0.1)
            self._collect()

    def require_accepted(self) -> None:
        """Raise InputError where a worker said that what it was given is wrong."""
        if self.counts.get("refused"):
            raise InputError(self._get(self._broker.refusal.remote()))

    # events from Tune, on the thread that called run_pool_sweep

    def look(self) -> None:
        """Fetch reports, without waiting for them, and see whether to stop, or to wait no longer for a worker."""
        self._patience.look(waiting=not (self.counts["workers"] or self.counts["gave_up"] or self.stopping))
        if not self.stopping and self._should_stop is not None and self._should_stop.is_set():
            self.stopping = True
            self._get(self._broker.drain.remote())
        if self._answer is None and time.monotonic() - self._asked >= COLLECT_S:
            self._asked = time.monotonic()
            self._answer = self._broker.collect.remote(self._collected)
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._hand_over()

    def began(self, trial: Trial) -> None:
        """A trial's process is there (for the first time, or again after it died)."""
        self._submit(self.search.make(trial.config))

    def reported(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has seen its unit end. Of every number in a result Tune would keep a history for each trial."""
        for name in result.keys() - {"done", "training_iteration", "trial_id"}:
            del result[name]

    def ended(self, trial: Trial, error: str | None) -> None:
        """A trial is over, or broken."""
        if error is not None:
            reason = f"Its Tune trial failed: {error.splitlines()[-1]}"
            self._broker.fail.remote(trial.config[UNIT], reason, error)
        if not self._list:
            # The searcher must know the outcome of this unit before its next suggestion.
            self._collect()

    # private

    def _submit(self, unit: Unit) -> None:
        if unit.name in self._submitted:
            return  # The unit was submitted ahead of its trial, or its trial began again.
        self._submitted.add(unit.name)
        for job in unit.jobs:
            if self._unit_of.setdefault(job.trial_id, unit) is not unit:
                raise ValueError(f"The trial id {job.trial_id!r} is in two units; give each unit its own trial ids.")
        if self._asha:
            self._panels[unit.name], _ = unit.panel(self._asha.rungs)
        self._unfinished += len(unit.jobs)
        submitted = self._broker.submit.remote(unit.name, list(unit.jobs))
        if unit.stopped_at is not None:
            # The broker may execute the second of two calls first.
            self._get(submitted)
            self._broker.cancel.remote(unit.name)

    def _submit_ahead(self) -> None:
        while self._next < len(self._list) and self._unfinished < self._backlog and not self.stopping:
            self._submit(self._list[self._next])
            self._next += 1

    def _collect(self) -> None:
        if self._answer is None:
            self._answer = self._broker.collect.remote(self._collected)
        self._hand_over()
        # That answer may be old, so fetch again.
        self._answer = self._broker.collect.remote(self._collected)
        self._hand_over()

    def _hand_over(self) -> None:
        answer, self._answer = self._answer, None
        self._collected, reports, self.counts = self._get(answer)
        # a refusal stops the sweep as a user does
        self.stopping = self.stopping or bool(self.counts.get("refused"))
        self._listener.on_counts(self.counts)
        self._listener.on_reports([self._hear(report) for report in reports])
        self._unfinished -= sum(report.status != "running" for report in reports)
        self._submit_ahead()

    def _hear(self, report: Report) -> Report:
        """Judge a report; return it with the status and the columns that follow from that."""
        unit = self._unit_of[report.trial_id]
        panel = self._panels.get(unit.name)
        error = self._fault(report, panel) if report.status in ("running", "success") else None
        if error is not None:
            self._broker.fail.remote(unit.name, error)
            if report.status == "success":
                report = replace(report, status="failed", error=error)
        if panel is not None:
            self._judge(unit, panel, report)
        decision = self._asha.decision(unit.name) if self._asha else None
        if report.status == "running" or decision is None:
            return report
        return replace(report, metrics={**report.metrics, **decision.columns()})

    def _fault(self, report: Report, panel: Panel | None) -> str | None:
        """Return why a report is not one of a job that learns and can be compared, None where it is."""
        if panel is not None and report.status == "success" and self._metric not in report.metrics:
            if not panel.has_value(report.trial_id):
                return f"None of its reports has {self._metric}, by which ASHA compares trials."
        return diverged(report.metrics, self._metric)

    def _judge(self, unit: Unit, panel: Panel, report: Report) -> None:
        assert self._asha is not None
        if report.status in ("failed", "stopped"):
            del self._panels[unit.name]
            return
        value = report.metrics.get(self._metric)
        for rung, mean in panel.hear(report.trial_id, report.epoch, value, report.status == "success"):
            decision = self._asha.judge(unit.group, unit.name, rung, mean, may_stop=not panel.ended)
            if decision and decision.stopped:
                self._broker.cancel.remote(unit.name)
        if panel.ended:
            del self._panels[unit.name]

    def _get(self, answer: Any) -> Any:
        try:
            return ray.get(answer, timeout=60)
        except ray.exceptions.RayError as error:
            said = str(error).partition("\n")[0]
            raise PoolError(f"The broker of the adapter pool does not answer any more ({said}).") from error


def _in_turn(units: Sequence[Unit]) -> Search[Unit]:
    by_name = {unit.name: unit for unit in units}
    searcher = InOrder({UNIT: unit.name} for unit in units)
    return Search(searcher, lambda config: by_name[config[UNIT]], len(units))
