"""Tune trials: what all sweeps share, and the runner of ordinary families, whose trials each train one model.

`run_tune` runs trials and tells a `Watcher` what becomes of them; ``sweeps/backend/pool/driver.py`` uses it too.
`run_ordinary` runs trials of a family whose loop is ``train_loop(config, run)``: each trial a Tune function that builds
a `TorchTrainer` (minutes per trial, any number of GPUs), or, with no workers, the loop straight in the Tune trial
(seconds per trial).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import ray
import ray.train
import ray.tune
from ray.tune.search import Searcher

from sweeps.backend.asha import UNIT, Decision, GroupedASHA, InTurn
from sweeps.backend.patience import Patience
from sweeps.backend.ray_private import without_datasets
from sweeps.backend.runs import EARLIER, REPORT, TrainLoop, TrainRun, TuneRun, use_threads
from trainables.common.family import number
from trainables.common.folder import Folder
from trainables.common.jobs import Status

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

T = TypeVar("T")
# seconds between two ticks of a listener
TICK_S = 0.5
# Resources of a trial that only waits: none, so it never blocks the workers it waits for. Tune rejects an empty
# request, hence one byte of memory.
TRIAL_RESOURCES = {"CPU": 0, "memory": 1}
# A trial's Train run gives up after waiting this often, a minute each, for its resources. An autoscaler needs several
# minutes.
STARTS, PATIENT_STARTS = 2, 30


class StopFlag(Protocol):
    """What a sweep asks whether it should stop; `threading.Event` is one."""

    def is_set(self) -> bool: ...


class InOrder(Searcher):
    """Gives Tune configurations in turn, each when it may begin: a grid of all of them is copied for every trial."""

    def __init__(self, configs: Iterable[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self._configs = iter(configs)
        self._seen: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles searchers for Tuner.restore, which this project does not use.
        return InOrder, ()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if trial_id in self._seen:
            # Tune draws trial ids of 32 bits. For a duplicate it asks again with another id.
            return None
        self._seen.add(trial_id)
        config = next(self._configs, None)
        return Searcher.FINISHED if config is None else dict(config)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        # Tune saves searchers for Tuner.restore, which this project does not use.
        pass


@dataclass(frozen=True)
class Search(Generic[T]):
    """Trials that a Tune searcher chooses.

    Attributes:
        searcher: Suggests configurations, each with the name of its trial as ``unit``.
        make: Makes of a suggestion what is to be trained.
        num_samples: Trials to choose.
    """

    searcher: Searcher
    make: Callable[[Mapping[str, Any]], T]
    num_samples: int


class Watcher(Protocol):
    """Who is told what Tune does, on the thread that called `run_tune`."""

    @property
    def stopping(self) -> bool:
        """Whether all trials are to end."""

    def look(self) -> None:
        """Called at each of Tune's steps, many times a second."""

    def began(self, trial: Trial) -> None:
        """A trial has a process, for the first time or again after it died."""

    def reported(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has reported. Tune keeps what is left in the result."""

    def ended(self, trial: Trial, error: str | None) -> None:
        """A trial is over; ``error`` is what Tune wrote down about its failure, the traceback last."""


def run_tune(
    trainable: Any,
    watcher: Watcher,
    search: Search[Any],
    *,
    storage_path: str,
    max_concurrent: int,
    max_failures: int,
    param_space: Mapping[str, Any] | None = None,
    asha: GroupedASHA | None = None,
    metric: str | None = None,
    reuse_actors: bool = False,
) -> None:
    """Run Tune trials until all have ended or ``watcher.stopping`` is true.

    Args:
        trainable: What each trial runs, with its resources.
        watcher: Who is told.
        search: Chooses the trials.
        storage_path: Where Tune keeps its notes.
        max_concurrent: Trials at once.
        max_failures: Times that a trial is tried again.
        param_space: Goes into each trial's configuration, besides what the search chooses.
        asha: Judges the reports; without it every trial runs to its end.
        metric: Reported value that ends the trial where it is not finite.
        reuse_actors: Whether a process may run one trial after another.
    """
    callback = _Callback(watcher)
    ray.tune.Tuner(
        trainable,
        param_space=dict(param_space or {}),
        tune_config=ray.tune.TuneConfig(
            scheduler=asha or InTurn(),
            search_alg=search.searcher,
            num_samples=search.num_samples,
            max_concurrent_trials=max_concurrent,
            reuse_actors=reuse_actors,
            trial_name_creator=lambda trial: str(trial.config[UNIT]),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=storage_path,
            verbose=0,
            stop=_Stopper(watcher, metric),
            failure_config=ray.tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[callback],
        ),
    ).fit()
    callback.tell_ends()


def diverged(metrics: Mapping[str, Any], metric: str) -> str | None:
    """Return that a trial has diverged, where its metric is there and not finite; None otherwise."""
    value = metrics.get(metric)
    if not isinstance(value, float) or math.isfinite(value):
        return None
    return f"{metric} is {value} in epoch {metrics.get('epoch', metrics.get('epochs'))}: the training diverged."


class _Callback(ray.tune.Callback):
    """Hands Tune's events to a watcher; without one it is what is left of a pickled one.

    An error that a callback raises at the end of a trial is logged by Tune and forgotten. So the watcher hears of ends
    at the next step, where an error ends the sweep.
    """

    def __init__(self, watcher: Watcher | None = None) -> None:
        self._watcher: Any = watcher
        self._ends: list[tuple[Trial, str | None]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles callbacks for Tuner.restore, which this project does not use; the caller's store may hold locks.
        return _Callback, ()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.tell_ends()
        self._watcher.look()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._watcher.began(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._watcher.reported(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ends.append((trial, None))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        # Trial.get_error() reads the file from the storage, where it arrives later.
        text = Path(trial.error_file).read_text() if trial.error_file else "Tune gave no reason."
        self._ends.append((trial, re.sub(r"\x1b\[\d+m", "", text).strip()))

    def tell_ends(self) -> None:
        """Tell the watcher of the trials that have ended since the last call."""
        ends, self._ends = self._ends, []
        for trial, error in ends:
            self._watcher.ended(trial, error)


class _Stopper(ray.tune.Stopper):
    """Ends a trial that diverges, and all of them once the watcher is stopping; empty where it was pickled."""

    def __init__(self, watcher: Watcher | None = None, metric: str | None = None) -> None:
        self._watcher, self._metric = watcher, metric

    def __reduce__(self) -> tuple[Any, ...]:
        return _Stopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._metric is not None and diverged(result, self._metric) is not None

    def stop_all(self) -> bool:
        return self._watcher is not None and self._watcher.stopping


# --------------------------------------------------------------------------------------------------- ordinary families


@dataclass(frozen=True)
class TrialEnd:
    """How one ordinary trial ended.

    Attributes:
        trial_id: The caller's id of it.
        status: ``success``, ``stopped`` (by ASHA) or ``failed``.
        metrics: What it reported last.
        decision: What ASHA decided about it last.
        error: One line that says why it failed.
        traceback: The traceback of the failure.
    """

    trial_id: str
    status: Status
    metrics: Mapping[str, Any]
    decision: Decision | None = None
    error: str | None = None
    traceback: str | None = None


class TrialListener(Protocol):
    """Who is told of an ordinary family's trials, on the thread that called `run_ordinary`."""

    def on_report(self, trial_id: str, metrics: dict[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
        """Take the metrics of each report of a trial's rank 0.

        Where it goes on after a restart, ``earlier`` has those of all epochs before, which may have been taken or not.
        """

    def on_trial_end(self, end: TrialEnd) -> None:
        """Take the end of each trial, but for those that a stop interrupted."""

    def on_tick(self) -> None:
        """Called about twice a second, whether or not a trial reports."""


@dataclass(frozen=True)
class Training:
    """How an ordinary family's trials are trained.

    A trial that is run again under the same ``name`` and trial id continues from its last checkpoint; a loop that finds
    its checkpoint complete should report once and return.

    Attributes:
        loop: ``train_loop(config, run)``; must be importable on the workers.
        name: Stable name of the sweep's run.
        storage_path: Where each trial's folder of checkpoints is; every machine of the cluster must reach it.
        workers_per_trial: Ray Train workers for each trial, 0 to train in the Tune trial itself.
        use_gpu: Whether each worker (or trial) gets a GPU.
        threads: CPU threads of each worker, or of each trial without workers.
        max_failures: Restarts of a trial from its last checkpoint after a failure.
        grows: Whether an autoscaler may have to start machines first, which takes it minutes.
    """

    loop: TrainLoop
    name: str
    storage_path: str
    workers_per_trial: int
    use_gpu: bool
    threads: int = 1
    max_failures: int = 2
    grows: bool = False

    @property
    def resources(self) -> dict[str, float]:
        """What each worker reserves."""
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": 1}

    def train(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """Train a trial within its Tune trial."""
        if self.workers_per_trial:
            self._as_train_run(trial_id, config)
        else:
            use_threads(self.threads)
            with closing(TuneRun(self._folder(trial_id), self.use_gpu)) as run:
                self.loop(dict(config), run)

    def _folder(self, trial_id: str) -> Folder:
        return Folder(self.storage_path).sub(trial_id)

    def _as_train_run(self, trial_id: str, config: Mapping[str, Any]) -> None:
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        # Each ray.train.report waits until the controller polls the workers, every 2 s by default.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        trainer = TorchTrainer(
            partial(_train_worker, self.loop, dict(config), self._folder(trial_id), self.threads),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.workers_per_trial, use_gpu=self.use_gpu, resources_per_worker=self.resources
            ),
            run_config=ray.train.RunConfig(
                name=f"{self.name}-{trial_id}",
                storage_path=self._folder(trial_id).location,
                failure_config=ray.train.FailureConfig(
                    max_failures=self.max_failures,
                    # Without a limit on the controller, a run that finds no resources never ends.
                    controller_failure_limit=PATIENT_STARTS if self.grows else STARTS,
                ),
                callbacks=[TuneReportCallback()],
            ),
        )
        without_datasets(trainer).fit()


def run_ordinary(
    work: Sequence[tuple[str, Mapping[str, Any]]] | Search[tuple[str, Mapping[str, Any]]],
    training: Training,
    listener: TrialListener,
    *,
    metric: str,
    asha: GroupedASHA | None = None,
    should_stop: StopFlag | None = None,
    max_concurrent: int = 1,
) -> bool:
    """Run trials of an ordinary family until all are done or a stop is asked for; return False if it was.

    Ray must be connected.

    Args:
        work: Trial ids and complete configurations, or a search that makes them.
        training: How each is trained.
        listener: Who is told.
        metric: Reported value that ASHA compares. A trial that reports one that is not finite has failed.
        asha: Judges the reports; it knows a trial by its id, in a search by the suggested ``unit``.
        should_stop: Once set, all trials end.
        max_concurrent: Trials at once; more than `ClusterInfo.trials_at_once` would wait for room and fail.
    """
    search = work if isinstance(work, Search) else _given(work)
    if not search.num_samples:
        return True
    make = search.make

    def train_trial(tune_config: dict[str, Any]) -> None:
        training.train(*make(tune_config))

    # A Train run reserves its own resources and restarts its own workers.
    alone = not training.workers_per_trial
    scratch = tempfile.mkdtemp(prefix="sweep-")
    watcher = _Ordinary(search, listener, metric, asha, should_stop, training.grows)
    try:
        run_tune(
            ray.tune.with_resources(train_trial, training.resources if alone else TRIAL_RESOURCES),
            watcher,
            search,
            storage_path=scratch,
            max_concurrent=max_concurrent,
            max_failures=training.max_failures if alone else 0,
            asha=asha,
            metric=metric,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return not watcher.stopping


def _given(trials: Sequence[tuple[str, Mapping[str, Any]]]) -> Search[tuple[str, Mapping[str, Any]]]:
    configs = dict(trials)
    search = InOrder([{UNIT: trial_id} for trial_id in configs])
    return Search(search, lambda tune_config: (tune_config[UNIT], configs[tune_config[UNIT]]), len(configs))


def _train_worker(train_loop: TrainLoop, config: dict[str, Any], folder: Folder, threads: int) -> None:
    use_threads(threads)
    with closing(TrainRun(folder)) as run:
        train_loop(config, run)


class _Ordinary:
    """The `Watcher` of an ordinary family's trials."""

    def __init__(
        self,
        search: Search[tuple[str, Mapping[str, Any]]],
        listener: TrialListener,
        metric: str,
        asha: GroupedASHA | None,
        should_stop: StopFlag | None,
        grows: bool,
    ) -> None:
        self._search, self._listener, self._metric, self._asha = search, listener, metric, asha
        self._should_stop = should_stop
        self._last: dict[str, dict[str, Any]] = {}
        self._patience, self._alive = Patience(grows), set[str]()
        self._ticked = time.monotonic()
        # Tune's ids of the trials that reported what ASHA compares
        self._compared: set[str] = set()

    @property
    def stopping(self) -> bool:
        return self._should_stop is not None and self._should_stop.is_set()

    def look(self) -> None:
        self._patience.look(waiting=not self._alive)
        if time.monotonic() - self._ticked >= TICK_S:
            self._ticked = time.monotonic()
            self._listener.on_tick()

    def began(self, trial: Trial) -> None:
        self._alive.add(trial.trial_id)

    def reported(self, trial: Trial, result: dict[str, Any]) -> None:
        # Tune keeps what is left in the result, so each metric would be kept twice.
        metrics, earlier = result.pop(REPORT), result.pop(EARLIER)
        self._last[trial.trial_id] = metrics
        if number(metrics.get(self._metric)) is not None:
            self._compared.add(trial.trial_id)
        self._listener.on_report(self._search.make(trial.config)[0], dict(metrics), earlier)

    def ended(self, trial: Trial, error: str | None) -> None:
        self._alive.discard(trial.trial_id)
        metrics = self._last.pop(trial.trial_id, {})
        decision = self._asha.decision(trial.config[UNIT]) if self._asha else None
        traceback, error = error, error.splitlines()[-1] if error is not None else diverged(metrics, self._metric)
        if error is None and self._asha and trial.trial_id not in self._compared:
            error = f"The trial never reported {self._metric}, by which ASHA compares trials."
        status: Status = "failed" if error is not None else "stopped" if decision and decision.stopped else "success"
        trial_id, _ = self._search.make(trial.config)
        self._listener.on_trial_end(TrialEnd(trial_id, status, metrics, decision, error, traceback))
