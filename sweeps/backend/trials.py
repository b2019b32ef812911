"""The runner of ordinary families: Tune trials, each of which trains one model.

`run_ordinary` runs trials of a family whose loop is ``train_loop(config, run)``: each trial a Tune function that builds
a `TorchTrainer` (minutes per trial, any number of GPUs), or, with no workers, the loop straight in the Tune trial
(seconds per trial). The pool has a runner of its own, see ``sweeps/backend/pool/driver.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.tune

from sweeps.backend.asha import GroupedASHA
from sweeps.backend.runs import REPORT, TrainLoop, TrainRun, TuneRun, use_threads
from trainables.common.folder import Folder

if TYPE_CHECKING:
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import FIFOScheduler

# of a trial that only waits for others: nothing, so that it can never keep them from starting. Tune wants it to be
# something, though, so it is a byte of memory
TRIAL_RESOURCES = {"CPU": 0, "memory": 1}
# times, a minute each, that a trial's Train run may wait in vain for its resources: an autoscaler needs several
STARTS, PATIENT_STARTS = 2, 30


@dataclass(frozen=True)
class TrialEnd:
    """How one ordinary trial ended.

    Attributes:
        trial_id: The caller's id of it.
        status: ``success``, ``stopped`` (by the scheduler) or ``failed``.
        metrics: What it reported last.
        error: One line that says why it failed.
        traceback: The traceback of the failure.
    """

    trial_id: str
    status: str
    metrics: Mapping[str, Any]
    error: str | None = None
    traceback: str | None = None


def run_ordinary(
    train_loop: TrainLoop,
    trials: Sequence[tuple[str, Mapping[str, Any]]] = (),
    *,
    name: str,
    storage_path: str,
    workers_per_trial: int,
    use_gpu: bool,
    on_report: Callable[[str, dict[str, Any]], None],
    on_trial_end: Callable[[TrialEnd], None] | None = None,
    should_stop: Any = None,
    make_trial: Callable[[Mapping[str, Any]], tuple[str, Mapping[str, Any]]] | None = None,
    param_space: Mapping[str, Any] | None = None,
    searcher: Any = None,
    num_samples: int = 1,
    scheduler: FIFOScheduler | None = None,
    max_concurrent: int = 1,
    threads: int = 1,
    max_failures: int = 2,
    grows: bool = False,
) -> bool:
    """Run trials of an ordinary family until all are done or a stop is asked for; return False if it was.

    Ray must be connected. A trial that is run again under the same ``name`` and trial id continues from its last
    checkpoint; a loop that finds its checkpoint complete should report once and return.

    Args:
        train_loop: ``train_loop(config, run)``; must be importable on the workers.
        trials: Trial ids and complete configurations.
        name: Stable name of the sweep's run.
        storage_path: Where checkpoints go; every machine of the cluster must reach it.
        workers_per_trial: Ray Train workers for each trial, 0 to train in the Tune trial itself.
        use_gpu: Whether each worker (or trial) gets a GPU.
        on_report: Called on this thread with the trial id and the metrics of each report of rank 0.
        on_trial_end: Called on this thread once for each trial that ended, not for those that a stop interrupted.
        should_stop: Object with ``is_set()``, for example `threading.Event`.
        make_trial: In a search, makes trial id and configuration from what ``param_space`` and ``searcher`` chose.
        param_space, searcher, num_samples: As for `run_pool_sweep`.
        scheduler: Tune scheduler over reported metrics; ``trial.config`` has ``trial_id`` for each of ``trials``.
        max_concurrent: Trials at once; more than `ClusterInfo.trials_at_once` would wait for room and fail.
        threads: CPU threads of each worker, or of each trial without workers.
        max_failures: Restarts of a trial from its last checkpoint after a failure.
        grows: Whether an autoscaler may have to start machines first, which takes it minutes.
    """
    space = dict(param_space or {})
    if make_trial is None:
        if not trials:
            return True
        make_trial = partial(_given_trial, {trial_id: dict(config) for trial_id, config in trials})
        space["trial_id"] = ray.tune.grid_search([trial_id for trial_id, _ in trials])
        num_samples = 1
    resources: dict[str, float] = {"CPU": 1, **({"GPU": 1} if use_gpu else {})}

    def train_trial(tune_config: dict[str, Any]) -> None:
        trial_id, config = make_trial(tune_config)
        if not workers_per_trial:
            use_threads(threads)
            train_loop(dict(config), TuneRun(Folder(storage_path).sub(f"{name}-{trial_id}"), use_gpu))
            return
        _train(
            partial(_train_worker, train_loop, dict(config), threads),
            f"{name}-{trial_id}",
            storage_path,
            workers_per_trial,
            use_gpu,
            resources,
            max_failures,
            PATIENT_STARTS if grows else STARTS,
        )

    # an epoch without an evaluation has no metric, which Tune would take for a defect
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    scratch = tempfile.mkdtemp(prefix="sweep-")
    callback = _Callback(make_trial, scheduler, on_report, on_trial_end, should_stop)
    try:
        ray.tune.Tuner(
            # a Train run reserves its own resources
            ray.tune.with_resources(train_trial, TRIAL_RESOURCES if workers_per_trial else resources),
            param_space=space,
            tune_config=ray.tune.TuneConfig(
                scheduler=scheduler,
                search_alg=searcher,
                num_samples=num_samples,
                max_concurrent_trials=max_concurrent,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                stop=AskedToStop(callback),
                # a Train run restarts its workers itself
                failure_config=ray.tune.FailureConfig(max_failures=0 if workers_per_trial else max_failures),
                callbacks=[callback],
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return not callback.stopping


def _given_trial(
    configs: Mapping[str, Mapping[str, Any]], tune_config: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    return tune_config["trial_id"], configs[tune_config["trial_id"]]


def _train(
    worker: Callable[[], None],
    name: str,
    storage_path: str,
    num_workers: int,
    use_gpu: bool,
    resources: Mapping[str, float],
    max_failures: int,
    starts: int,
) -> None:
    """Run one Train run inside a Tune trial."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, RunConfig
    from ray.tune.integration.ray_train import TuneReportCallback

    # each ray.train.report waits for the next look at the workers, every 2 s by default
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    TorchTrainer(
        worker,
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=dict(resources)
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            # without a limit on the controller, a run that finds no resources waits for ever
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=starts),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _train_worker(train_loop: TrainLoop, config: dict[str, Any], threads: int) -> None:
    use_threads(threads)
    train_loop(config, TrainRun())


def trial_error(trial: Trial) -> str:
    """Return what Tune wrote down about the failure of a trial, its traceback last."""
    # Trial.get_error() looks in the storage, where the file comes later
    text = Path(trial.error_file).read_text() if trial.error_file else "Tune gave no reason."
    return re.sub(r"\x1b\[\d+m", "", text).strip()


class _Callback(ray.tune.Callback):
    """Hands Tune's events to the caller; without arguments it is what is left of a pickled one."""

    def __init__(
        self,
        make_trial: Any = None,
        scheduler: FIFOScheduler | None = None,
        on_report: Any = None,
        on_trial_end: Callable[[TrialEnd], None] | None = None,
        should_stop: Any = None,
    ) -> None:
        self._make_trial = make_trial
        self._asha = scheduler if isinstance(scheduler, GroupedASHA) else None
        self._on_report = on_report
        self._on_trial_end = on_trial_end
        self._should_stop = should_stop
        self._last: dict[str, dict[str, Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles callbacks for Tuner.restore, which is not used; the caller's store may hold locks
        return _Callback, ()

    @property
    def stopping(self) -> bool:
        return self._should_stop is not None and self._should_stop.is_set()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        # the callback may change the result: without this Tune keeps every metric twice
        metrics = result.pop(REPORT)
        self._last[trial.trial_id] = metrics
        self._on_report(self._make_trial(trial.config)[0], dict(metrics))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        decision = self._asha.decision(self._asha.key_of(trial)) if self._asha else None
        self._end(trial, "stopped" if decision and decision.stopped else "success")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        text = trial_error(trial)
        self._end(trial, "failed", text.splitlines()[-1], text)

    def _end(self, trial: Trial, status: str, error: str | None = None, traceback: str | None = None) -> None:
        if self._on_trial_end:
            trial_id = self._make_trial(trial.config)[0]
            self._on_trial_end(TrialEnd(trial_id, status, self._last.get(trial.trial_id, {}), error, traceback))


class AskedToStop(ray.tune.Stopper):
    """Ends all trials once ``source.stopping`` is true; without a source it is what is left of a pickled one."""

    def __init__(self, source: Any = None) -> None:
        self._source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return AskedToStop, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._source is not None and self._source.stopping
