"""Sweeps of ordinary families: one model per trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.backend import cluster
from sweeps.backend.asha import GroupedASHA, one_group
from sweeps.backend.runs import TrainLoop
from sweeps.backend.trials import TrialEnd, run_ordinary
from sweeps.core.recorder import Recorder
from sweeps.core.search_ledger import Drawn, require_searchable
from sweeps.core.session import asha, close, ledger, recording, replay
from sweeps.core.sweep import Sweep
from sweeps.store.store import ResultsStore
from trainables.common.folder import Folder
from trainables.common.jobs import Job, Report


def run_trials(sweep: Sweep, loop: TrainLoop, settings: Mapping[str, Any]) -> int:
    """Run one trial for each sampled configuration that the store does not hold yet; return the exit code.

    Args:
        sweep: The sweep. With ``--search optuna`` Optuna chooses the configurations.
        loop: The family's ``train_loop(settings, run)``.
        settings: Passed to it besides ``config``, ``seed`` and ``folder`` (where the trial may leave files).
    """
    if sweep.args.search == "optuna":
        return _search_trials(sweep, loop, settings)
    family = sweep.space.family
    store, jobs, missing = ledger(sweep, [family])
    if not missing:
        return close(sweep, store, False, {job.trial_id for job in jobs})
    scheduler = None
    if sweep.is_judged(jobs):
        scheduler = asha(sweep, one_group)
        _replay_trials(sweep, scheduler, store, [job.trial_id for job in jobs])
    models = store.folder.sub("models")
    trials = [_trial(job, models, settings) for job in missing]
    with recording(sweep, store, len(jobs), len(jobs) - len(missing), noun="trials") as (recorder, info, stop):
        recorder.expect(missing)
        finished = _train_trials(
            sweep, store, loop, recorder, info, len(trials), trials=trials, scheduler=scheduler, should_stop=stop
        )
    return close(sweep, store, not finished, {job.trial_id for job in jobs})


def _search_trials(sweep: Sweep, loop: TrainLoop, settings: Mapping[str, Any]) -> int:
    require_searchable(sweep.domains)
    store, family = sweep.open_store(), sweep.space.family
    drawn, models = Drawn(sweep, store, [family]), store.folder.sub("models")
    left = sweep.args.num_samples - len(drawn.complete)
    if left <= 0:
        return close(sweep, store, False, None)

    def make_trial(suggestion: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return _trial(sweep.suggested_job(family, suggestion), models, settings)

    scheduler = asha(sweep, one_group, key=lambda suggestion: make_trial(suggestion)[0])
    _replay_trials(sweep, scheduler, store, [trial_id for key in drawn.configs for trial_id in drawn.trial_ids(key)])
    with recording(sweep, store, sweep.args.num_samples, len(drawn.complete), noun="trials") as (recorder, info, stop):
        finished = _train_trials(
            sweep, store, loop, recorder, info, left,
            make_trial=make_trial,
            searcher=drawn.searcher(lambda suggestion: recorder.expect(drawn.jobs(suggestion))),
            num_samples=left,
            scheduler=scheduler,
            should_stop=stop,
        )  # fmt: skip
    return close(sweep, store, not finished, None)


def _trial(job: Job, models: Folder, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    folder = models.sub(job.trial_id).location
    return job.trial_id, {**settings, "config": dict(job.config), "seed": job.seed, "folder": folder}


def _replay_trials(sweep: Sweep, scheduler: GroupedASHA, store: ResultsStore, trial_ids: Iterable[str]) -> None:
    period, metric = sweep.space.grace_period(sweep.config), sweep.space.metric
    replay(scheduler, store, dict.fromkeys(trial_ids, "all"), period, metric)


def _train_trials(
    sweep: Sweep,
    store: ResultsStore,
    loop: TrainLoop,
    recorder: Recorder,
    info: cluster.ClusterInfo,
    count: int,
    **options: Any,
) -> bool:
    """Run ``count`` trials and record them; return False where a stop was asked for.

    ``options`` are those of `run_ordinary`.
    """
    workers = sweep.args.workers_per_trial
    recorder.slots, threads = info.trials_at_once(workers, count)

    def on_report(trial_id: str, metrics: dict[str, Any]) -> None:
        row = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        recorder.on_reports([Report(trial_id, "running", metrics["epoch"], metrics, [row])])

    def on_trial_end(end: TrialEnd) -> None:
        epoch = end.metrics.get("epoch", 0)
        metrics = {name: value for name, value in end.metrics.items() if name not in HISTORY_ONLY and "/" not in name}
        metrics |= {"epochs": epoch, "final_loss": end.metrics.get("eval_loss")}
        status: Any = end.status
        if status == "stopped" and epoch >= recorder.jobs[end.trial_id].config[sweep.space.budget_setting]:
            # ASHA's verdict on the last rung of a trial comes when it has nothing left to train.
            status = "success"
        recorder.on_reports([Report(end.trial_id, status, epoch, metrics, (), end.error, end.traceback)])

    return run_ordinary(
        loop,
        name=f"{sweep.name}-{sweep.args.run_id}",
        storage_path=store.folder.sub("checkpoints").location,
        workers_per_trial=workers,
        threads=threads,
        use_gpu=info.num_gpus > 0,
        on_report=on_report,
        on_trial_end=on_trial_end,
        max_concurrent=recorder.slots,
        grows=info.grows,
        **options,
    )


# ``seconds`` of a report are those of an epoch; the trial's row has their sum
HISTORY_ONLY = ("epoch", "step", "lr", "grad_norm", "examples", "tokens", "seconds")
