"""Run jobs as Tune trials through the adapter pool: thin trials, one broker, one long-lived Ray Train run.

`PoolTrial` is what Tune sees of a unit of work: it waits for rungs and never imports torch. `run_pool_sweep` puts
trials, broker and pool together and hands every report to the caller, on the caller's thread. What is stored, and what
is left to do when a run is repeated, is the caller's business.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.backend.asha import Decision, GroupedASHA, InTurn
from sweeps.backend.pool.broker import PoolBroker
from sweeps.backend.pool.workers import AdapterPool, PoolError, PoolLoop
from sweeps.backend.trials import TRIAL_RESOURCES, AskedToStop, trial_error
from trainables.common.jobs import Job, Report

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

logger = logging.getLogger(__name__)

# how often reports are fetched from the broker, in seconds
COLLECT_S = 0.5
# time for the workers to notice a stop that Tune decided (they look once an epoch), and one that the user asked for
CANCEL_S, DRAIN_S = 120.0, 8.0
# Tune gives a trial that waits for its new process to a process that just became free, ends the new one and starts
# another for the next trial: with short trials that goes on for ever, seconds of CPU each time. So the first trials are
# answered when all their processes are there, or after this time
GATE_S = 180.0
# of a trial's results: what schedulers, searchers and Tune itself look at
KEPT = {"epoch", "eval_loss", "done", "training_iteration", "trial_id", "pid", "node_ip"}


class StopFlag(Protocol):
    """What `run_pool_sweep` asks whether it should stop; `threading.Event` is one."""

    def is_set(self) -> bool: ...


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
    """A Tune trial that waits for its unit's rungs, or its end. The driver submits and cancels; this only looks on."""

    def setup(self, config: dict[str, Any]) -> None:
        self._broker = ray.get_actor(config["broker"][0], namespace=config["broker"][1])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        answer: dict[str, Any] = ray.get(self._broker.next_rung.remote(self.trial_id))
        return answer


class UnitSearch(Searcher):
    """Gives Tune the units in turn, each when it may begin: a grid of all of them is copied for every trial.

    Args:
        first_jobs: The first job of each unit.
    """

    def __init__(self, first_jobs: Sequence[Job]) -> None:
        super().__init__()
        self._units = enumerate(first_jobs)
        self._seen: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles searchers for Tuner.restore, which is not used
        return UnitSearch, ([],)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if trial_id in self._seen:
            # Tune draws 32 bits; it asks again with others
            return None
        self._seen.add(trial_id)
        unit, job = next(self._units, (None, None))
        return Searcher.FINISHED if job is None else {"unit": unit, "task_id": job.task_id, "trial_id": job.trial_id}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        # for Tuner.restore as well
        pass


def run_pool_sweep(
    units: Sequence[Sequence[Job]] = (),
    *,
    pool_loop: PoolLoop,
    pool_settings: dict[str, Any],
    num_workers: int,
    use_gpu: bool,
    on_reports: Callable[[list[Report]], None],
    on_counts: Callable[[Mapping[str, int]], None] | None = None,
    on_trial_done: Callable[[list[str], str, Decision | None], None] | None = None,
    should_stop: StopFlag | None = None,
    scheduler: FIFOScheduler | None = None,
    max_concurrent: int = 16,
    lookahead: int = 0,
    make_jobs: Callable[[Mapping[str, Any]], Sequence[Job]] | None = None,
    param_space: Mapping[str, Any] | None = None,
    searcher: Any = None,
    num_samples: int = 1,
    storage_path: str | None = None,
    threads: int | None = None,
    elastic: bool = False,
) -> PoolOutcome:
    """Run units of jobs as Tune trials through an adapter pool, until all are done or a stop is asked for.

    Ray must be connected. Each unit is one Tune trial; its ``trial.config`` has ``unit`` (an index), ``task_id`` and
    ``trial_id`` of its first job, which is what the ``group`` and ``key`` of a `GroupedASHA` see. In a search
    (``make_jobs``) the trials come from ``param_space`` and ``searcher`` instead.

    Args:
        units: The jobs of each trial.
        pool_loop, pool_settings, num_workers, use_gpu, threads, elastic: See `AdapterPool`.
        on_reports: Gets every report exactly once, those of one job in order; called on this thread a few times a
            second, with nothing where nothing is new. The last report of a job that ASHA saw carries ``rung`` and
            ``asha_cutoff`` in its metrics, and ``stop_reason="asha"`` where ASHA stopped it.
        on_counts: Gets the broker's counts of jobs and workers before each of these calls.
        on_trial_done: Called with the trial ids of a unit, ``done`` or ``error``, and ASHA's last decision, when its
            Tune trial is over; the last reports of its jobs may still be on their way.
        should_stop: Once set, no job is begun, running jobs are stopped, their reports are handed over, and the call
            returns within about 15 s.
        scheduler: Tune scheduler, for example a `GroupedASHA`; None lets every trial run to its end,
            of which alone Tune, and a searcher, then hear.
        max_concurrent: Tune trials at once, each of them a process of about 115 MB.
        lookahead: Units submitted to the pool before their trial begins, so that slots need not wait for Tune, and a
            pool may have more slots than there are trials; a scheduler judges such a job when its trial begins.
        make_jobs: Makes a unit from a configuration of the search; called on this thread.
        param_space: Search space in Tune's terms.
        searcher: A Tune searcher, see `sweeps.backend.optuna_search`; None samples at random.
        num_samples: Configurations to try in a search.
        storage_path: A folder that all machines of the cluster reach, for notes that are of no use afterwards; None
            takes a temporary one, which is right on one machine.

    Raises:
        PoolError: If the broker died. What was reported until then has been handed over.
    """
    started = time.monotonic()
    scratch = tempfile.mkdtemp(prefix="sweep-")
    storage = storage_path or scratch
    node = ray.get_runtime_context().get_node_id()
    name = f"broker-{uuid.uuid4().hex}"
    broker = (
        ray.remote(PoolBroker)
        .options(
            name=name,
            num_cpus=0,
            max_concurrency=10_000,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(every_rung=scheduler is not None)
    )
    space = dict(param_space or {})
    space["broker"] = (name, ray.get_runtime_context().namespace)
    if make_jobs is None:
        searcher, num_samples = UnitSearch([unit[0] for unit in units]), len(units)
    first_trials = min(max_concurrent, num_samples)
    driver = _Driver(
        broker, units, make_jobs, scheduler, on_reports, on_counts, on_trial_done, should_stop, lookahead, first_trials
    )
    pool = AdapterPool(
        broker,
        pool_loop,
        pool_settings,
        num_workers=num_workers,
        elastic=elastic,
        use_gpu=use_gpu,
        storage_path=storage,
        threads=threads,
    )
    pool.start()
    try:
        if units or make_jobs is not None:
            driver.wait_for_pool()
        if (units or make_jobs is not None) and not driver.stopping:
            _tuner(space, scheduler, searcher, num_samples, max_concurrent, storage, driver).fit()
        driver.finish()
    finally:
        try:
            pool.close(10.0)
        except ray.exceptions.RayError as error:
            logger.warning("The adapter pool did not close: %s", error)
        shutil.rmtree(scratch, ignore_errors=True)
    return PoolOutcome(driver.stopping, driver.counts, time.monotonic() - started)


def _tuner(
    space: dict[str, Any],
    scheduler: FIFOScheduler | None,
    searcher: Any,
    num_samples: int,
    max_concurrent: int,
    storage: str,
    driver: _Driver,
) -> ray.tune.Tuner:
    return ray.tune.Tuner(
        ray.tune.with_resources(PoolTrial, TRIAL_RESOURCES),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            scheduler=scheduler or InTurn(),
            search_alg=searcher,
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.config.get("trial_id", trial.trial_id)),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=storage,
            verbose=0,
            stop=AskedToStop(driver),
            failure_config=ray.tune.FailureConfig(max_failures=3),
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Callback(driver)],
        ),
    )


class _Driver:
    """The driver's end of a sweep: submits units, some ahead of their trials, and hands reports to the caller."""

    def __init__(
        self,
        broker: Any,
        units: Sequence[Sequence[Job]],
        make_jobs: Callable[[Mapping[str, Any]], Sequence[Job]] | None,
        scheduler: FIFOScheduler | None,
        on_reports: Callable[[list[Report]], None],
        on_counts: Callable[[Mapping[str, int]], None] | None,
        on_trial_done: Callable[[list[str], str, Decision | None], None] | None,
        should_stop: StopFlag | None,
        lookahead: int,
        first_trials: int,
    ) -> None:
        self._first_trials = first_trials
        self._broker = broker
        self._units = units
        self._make_jobs = make_jobs
        self._asha = scheduler if isinstance(scheduler, GroupedASHA) else None
        self._on_reports, self._on_counts = on_reports, on_counts
        self._on_trial_done = on_trial_done
        self._should_stop = should_stop
        self._lookahead = lookahead
        self.stopping = False
        self.counts: Mapping[str, int] = {"unfinished": 0, "running": 0, "workers": 0, "gave_up": 0}
        self._trials: dict[str, tuple[str, list[str]]] = {}  # Tune trial -> its unit and the unit's jobs
        self._unit_of: dict[str, str] = {}  # job -> unit
        self._keys: dict[str, str] = {}  # job -> what the scheduler knows its trial by
        self._gate_at: float | None = None  # when trials are answered at the latest
        self._ahead = 0  # units up to this index have been submitted
        self._collected = 0
        self._asked = -math.inf
        self._answer: Any = None
        self._submit_ahead()

    def wait_for_pool(self) -> None:
        """Wait until a worker is there or the pool has failed. On few cores, trials that start beside it delay both."""
        while not (self.stopping or self.counts["workers"] or self.counts["gave_up"]):
            time.sleep(0.05)
            self.look()
        self._gate_at = time.monotonic() + GATE_S

    # events from Tune, on the thread that called run_pool_sweep

    def begin(self, trial: Trial) -> None:
        """A trial's process is there (for the first time, or again after it died)."""
        if self._make_jobs is None:
            unit = trial.config["unit"]
            jobs = self._units[unit]
            key = str(unit)
        else:
            jobs = self._make_jobs({name: value for name, value in trial.config.items() if name != "broker"})
            key = jobs[0].trial_id
        self._submit(key, jobs)
        self._broker.begin.remote(trial.trial_id, key)
        self._trials[trial.trial_id] = key, [job.trial_id for job in jobs]
        if self._asha:
            self._keys.update((job.trial_id, self._asha.key_of(trial)) for job in jobs)
        self._submit_ahead()

    def end(self, trial: Trial, status: str, error: str | None = None) -> None:
        """A trial is over: complete, stopped by the scheduler, or broken."""
        if trial.trial_id not in self._trials:
            return
        key, trial_ids = self._trials[trial.trial_id]
        if error is None:
            self._broker.cancel.remote(key)
        else:
            self._broker.fail.remote(key, f"Its Tune trial failed: {error.splitlines()[-1]}", error)
        if self._on_trial_done:
            decision = self._asha.decision(self._asha.key_of(trial)) if self._asha else None
            self._on_trial_done(trial_ids, status, decision)

    def look(self) -> None:
        """Fetch reports, without waiting for them, and see whether to stop."""
        if not self.stopping and self._should_stop is not None and self._should_stop.is_set():
            self.stopping = True
            self._get(self._broker.drain.remote())
        if self._gate_at and (len(self._trials) >= self._first_trials or time.monotonic() > self._gate_at):
            self._gate_at = None
            self._broker.open_gate.remote()
        if self._answer is None and time.monotonic() - self._asked >= COLLECT_S:
            self._asked = time.monotonic()
            self._answer = self._broker.collect.remote(self._collected)
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._hand_over()

    # after Tune

    def finish(self) -> None:
        """Wait for the last reports of jobs that were stopped."""
        was_stopping, deadline = self.stopping, time.monotonic() + (DRAIN_S if self.stopping else CANCEL_S)
        while True:
            self._collect()
            if not self.counts["running" if self.stopping else "unfinished"]:
                break
            if self.stopping and not was_stopping:
                was_stopping, deadline = True, time.monotonic() + DRAIN_S
            if time.monotonic() > deadline:
                if not self.stopping:
                    self._get(self._broker.end_cancelled.remote())
                break
            time.sleep(0.1)
            self.look()
        self._collect()

    # private

    def _submit(self, unit: str, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if self._unit_of.setdefault(job.trial_id, unit) != unit:
                raise ValueError(f"The trial id {job.trial_id!r} is in two units; give each unit its own trial ids.")
        self._broker.submit.remote(unit, list(jobs))

    def _submit_ahead(self) -> None:
        until = min(len(self._units), len(self._trials) + self._lookahead)
        for unit in range(self._ahead, until):
            self._submit(str(unit), self._units[unit])
        self._ahead = max(self._ahead, until)

    def _collect(self) -> None:
        if self._answer is None:
            self._answer = self._broker.collect.remote(self._collected)
        self._hand_over()
        # the answer may have been under way for a while
        self._answer = self._broker.collect.remote(self._collected)
        self._hand_over()

    def _hand_over(self) -> None:
        answer, self._answer = self._answer, None
        self._collected, reports, self.counts = self._get(answer)
        if self._on_counts:
            self._on_counts(self.counts)
        self._on_reports([self._with_decision(report) for report in reports])

    def _with_decision(self, report: Report) -> Report:
        key = self._keys.get(report.trial_id)
        decision = self._asha.decision(key) if self._asha and key is not None else None
        if report.status == "running" or decision is None:
            return report
        known: dict[str, Any] = {"rung": decision.rung, "asha_cutoff": decision.cutoff}
        if decision.stopped and report.status == "stopped":
            known["stop_reason"] = "asha"
        return replace(report, metrics={**report.metrics, **known})

    def _get(self, answer: Any) -> Any:
        try:
            return ray.get(answer, timeout=60)
        except ray.exceptions.RayError as error:
            raise PoolError(f"The broker of the pool does not answer: {error}") from error


class _Callback(ray.tune.Callback):
    def __init__(self, driver: Any = None) -> None:
        self._driver = driver

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles callbacks for Tuner.restore, which is not used; the caller's store may hold locks
        return _Callback, ()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._driver.look()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._driver.begin(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        # the callback may change the result: of every number that is left Tune keeps a history for each trial
        for name in result.keys() - KEPT:
            del result[name]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._driver.end(trial, "done")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._driver.end(trial, "error", trial_error(trial))
