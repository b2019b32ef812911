"""The runner that every sweep goes through: it opens the store, runs what is missing, writes rows and prints the table.

A restart is a ledger, not a replay: units of work whose row is in the store are not run again, so the same command
after a kill finishes the sweep, and more samples or tasks extend it. Three kinds of sweep share it: `run_pool` (many
adapters on one base, through the adapter pool), `run_panel_search` (the same, judged on a panel of tasks) and
`run_trials` (one model per trial).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeps import cluster, preflight, search
from sweeps.adapter_pool import PoolLoop
from sweeps.metrics import SweepMetrics
from sweeps.pool import run_pool_sweep
from sweeps.progress import Progress
from sweeps.recorder import Recorder
from sweeps.results import ResultsStore, RowWriter
from sweeps.scheduler import GroupedASHA, one_group
from sweeps.summary import print_summary, summarise
from sweeps.sweep import Sweep
from sweeps.trackers import Trackers, sinks_for
from sweeps.train_run import TrainLoop, TrialEnd, run_ordinary
from trainables.folder import Folder
from trainables.jobs import Job, Report

# exit codes: 0 all good, 1 something failed, 130 interrupted (2 is bad input, see sweeps/cli.py)
FAILED, INTERRUPTED = 1, 130

# Tune trials at once, each a process of about 115 MB: a few keep up with a pool that gets its jobs ahead of them; where
# ASHA judges, the jobs of every slot need theirs
TUNE_TRIALS, JUDGED_TRIALS = 4, 16

Grouping = Callable[[Mapping[str, Any]], str]


# ------------------------------------------------------------------------------------------------------------- adapters


@dataclass(frozen=True)
class Pool:
    """What trains a pool sweep's jobs.

    Attributes:
        loop: The family's pool loop, or its name as ``package.module:function``.
        settings: Passed to it, besides ``folder``, ``rank``, ``batch_size`` and ``target_modules``.
        slots: The most adapters in training at once on each worker, for GPUs (True) or CPUs.
        worker_bytes: Memory that a worker on a CPU needs; there are no more workers than fit.
    """

    loop: PoolLoop
    settings: Mapping[str, Any]
    slots: Callable[[bool], int]
    worker_bytes: int


def run_pool(sweep: Sweep, pool: Pool, task_ids: Sequence[str]) -> int:
    """Train an adapter for every task and sampled configuration that the store does not hold yet; return the exit code.

    Args:
        sweep: The sweep. With several samples each task has an ASHA of its own over its configurations.
        pool: What trains the jobs.
        task_ids: Tasks in the order in which they should start.
    """
    space = sweep.space
    store, jobs, missing = _ledger(sweep, task_ids)
    if not missing:
        return _close(sweep, store, False, {job.trial_id for job in jobs})
    scheduler = None
    if sweep.is_judged(jobs):
        scheduler = _asha(sweep, _task_of)
        groups = {job.trial_id: job.task_id for job in jobs}
        _replay(scheduler, store, groups, space.grace_period(sweep.config), space.metric)
    extents = _extents(job.config for job in jobs)
    with _recording(sweep, store, len(jobs), len(jobs) - len(missing)) as (recorder, info, stop):
        recorder.expect(missing)
        slots, workers = pool.slots(info.num_gpus > 0), info.pool_workers(pool.worker_bytes)
        recorder.slots = slots * workers
        outcome = run_pool_sweep(
            [[job] for job in missing],
            pool_loop=pool.loop,
            pool_settings={**pool.settings, **extents, "folder": store.folder.location},
            num_workers=workers,
            elastic=not info.local,
            use_gpu=info.num_gpus > 0,
            on_reports=recorder.on_reports,
            on_counts=recorder.on_counts,
            should_stop=stop,
            scheduler=scheduler,
            max_concurrent=min(JUDGED_TRIALS if scheduler else TUNE_TRIALS, slots * workers),
            # a job that begins before its trial is judged late by ASHA; without it, the more the better
            lookahead=(6 if scheduler is None else 1) * slots * workers,
            storage_path=None if info.local else store.folder.sub("cluster").location,
        )
    return _close(sweep, store, outcome.interrupted, {job.trial_id for job in jobs})


def run_panel_search(sweep: Sweep, pool: Pool, panel: Sequence[str]) -> int:
    """Search configurations with Optuna and one ASHA, each trained on the same panel of tasks; return the exit code.

    A configuration is judged by the mean evaluation loss over the panel.
    """
    args = sweep.args
    search.require_searchable(sweep.domains)
    store = sweep.open_store()
    drawn = search.Drawn(sweep, store, panel)
    total, done = args.num_samples * len(panel), len(drawn.complete) * len(panel)
    with _recording(sweep, store, total, min(total, done)) as (recorder, info, stop):
        slots, workers = pool.slots(info.num_gpus > 0), info.pool_workers(pool.worker_bytes)
        recorder.slots = slots * workers
        extents = _extents(_corners(vars(sweep.config), sweep.domains))
        left = max(0, args.num_samples - len(drawn.complete))
        outcome = run_pool_sweep(
            pool_loop=pool.loop,
            pool_settings={**pool.settings, **extents, "folder": store.folder.location},
            num_workers=workers,
            elastic=not info.local,
            use_gpu=info.num_gpus > 0,
            on_reports=recorder.on_reports,
            on_counts=recorder.on_counts,
            should_stop=stop,
            scheduler=_asha(sweep, one_group, key=None),
            max_concurrent=max(2, slots * workers // len(panel)),
            make_jobs=drawn.jobs if left else None,
            searcher=search.ConfigurationSearch(drawn, lambda suggestion: recorder.expect(drawn.jobs(suggestion))),
            num_samples=left,
            storage_path=None if info.local else store.folder.sub("cluster").location,
        )
    return _close(sweep, store, outcome.interrupted, None)


def _task_of(config: Mapping[str, Any]) -> str:
    return str(config["task_id"])


def _trial_of(config: Mapping[str, Any]) -> str:
    return str(config["trial_id"])


def _asha(sweep: Sweep, group: Grouping, key: Grouping | None = _trial_of) -> GroupedASHA:
    return GroupedASHA(
        group=group,
        key=key,
        metric=sweep.space.metric,
        mode=sweep.space.mode,
        max_t=sweep.space.longest(sweep.config, sweep.domains),
        grace_period=sweep.space.grace_period(sweep.config),
        reduction_factor=sweep.space.reduction_factor,
    )


def _ledger(sweep: Sweep, task_ids: Sequence[str]) -> tuple[ResultsStore, list[Job], list[Job]]:
    """Open the store; return it, all jobs of the sweep, and those that it does not hold as finished."""
    args = sweep.args
    samples = sweep.space.sample(sweep.config, sweep.domains, args.num_samples, args.seed)
    jobs = [
        sweep.job(task_id, values, seed, sample)
        for task_id in task_ids
        for sample, (values, seed) in enumerate(samples)
    ]
    store = sweep.open_store()
    finished, attempts = store.finished(), store.attempts()
    missing = [replace(job, attempt=attempts.get(job.trial_id, 0) + 1) for job in jobs if job.trial_id not in finished]
    return store, jobs, missing


def _replay(scheduler: GroupedASHA, store: ResultsStore, groups: Mapping[str, str], period: int, metric: str) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    history = store.history()
    # a metric that the schema does not declare has a column once a row has it
    columns = ["trial_id", "epoch", metric] if metric in history.schema.names else []
    for row in history.select(columns).to_pylist() if columns else ():
        if row["trial_id"] in groups and row["epoch"] % period == 0 and row[metric] is not None:
            curves.setdefault(row["trial_id"], []).append((row["epoch"], row[metric]))
    for trial_id, values in curves.items():
        scheduler.replay(groups[trial_id], trial_id, sorted(values))


def _extents(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest rank and batch and all layers of any configuration: what the pack must have room for."""
    configs = list(configs)
    return {
        **{name: max(values[name] for values in configs) for name in ("rank", "batch_size")},
        "target_modules": tuple(dict.fromkeys(name for values in configs for name in values["target_modules"])),
    }


def _corners(values: Mapping[str, Any], domains: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    from search_spaces.space import extremes

    yield {**values}
    for name in ("rank", "batch_size", "target_modules"):
        for extreme in extremes(domains[name]) if name in domains else ():
            yield {**values, name: extreme}


# --------------------------------------------------------------------------------------------------------------- trials


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
    store, jobs, missing = _ledger(sweep, [family])
    if not missing:
        return _close(sweep, store, False, {job.trial_id for job in jobs})
    scheduler = None
    if sweep.is_judged(jobs):
        scheduler = _asha(sweep, one_group)
        _replay_trials(sweep, scheduler, store, [job.trial_id for job in jobs])
    models = store.folder.sub("models")
    trials = [_trial(job, models, settings) for job in missing]
    with _recording(sweep, store, len(jobs), len(jobs) - len(missing), noun="trials") as (recorder, info, stop):
        recorder.expect(missing)
        finished = _train_trials(
            sweep, store, loop, recorder, info, trials=trials, scheduler=scheduler, should_stop=stop
        )
    return _close(sweep, store, not finished, {job.trial_id for job in jobs})


def _search_trials(sweep: Sweep, loop: TrainLoop, settings: Mapping[str, Any]) -> int:
    search.require_searchable(sweep.domains)
    store, family = sweep.open_store(), sweep.space.family
    drawn, models = search.Drawn(sweep, store, [family]), store.folder.sub("models")
    left = sweep.args.num_samples - len(drawn.complete)
    if left <= 0:
        return _close(sweep, store, False, None)

    def make_trial(suggestion: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return _trial(sweep.suggested_job(family, suggestion), models, settings)

    scheduler = _asha(sweep, one_group, key=lambda suggestion: make_trial(suggestion)[0])
    _replay_trials(sweep, scheduler, store, [trial_id for key in drawn.configs for trial_id in drawn.trial_ids(key)])
    with _recording(sweep, store, sweep.args.num_samples, len(drawn.complete), noun="trials") as (recorder, info, stop):
        finished = _train_trials(
            sweep, store, loop, recorder, info,
            make_trial=make_trial,
            searcher=search.ConfigurationSearch(drawn, lambda suggestion: recorder.expect(drawn.jobs(suggestion))),
            num_samples=left,
            scheduler=scheduler,
            should_stop=stop,
        )  # fmt: skip
    return _close(sweep, store, not finished, None)


def _trial(job: Job, models: Folder, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    folder = models.sub(job.trial_id).location
    return job.trial_id, {**settings, "config": dict(job.config), "seed": job.seed, "folder": folder}


def _replay_trials(sweep: Sweep, scheduler: GroupedASHA, store: ResultsStore, trial_ids: Iterable[str]) -> None:
    period, metric = sweep.space.grace_period(sweep.config), sweep.space.metric
    _replay(scheduler, store, dict.fromkeys(trial_ids, "all"), period, metric)


def _train_trials(
    sweep: Sweep, store: ResultsStore, loop: TrainLoop, recorder: Recorder, info: cluster.ClusterInfo, **options: Any
) -> bool:
    """Run trials and record them; ``options`` are those of `run_ordinary`. Return False where a stop was asked for."""
    recorder.slots = max(1, info.num_gpus)
    # an epoch's row has its own seconds, a trial's those of all, earlier sessions' too
    seconds: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for row in store.history().select(["trial_id", "attempt", "epoch", "seconds"]).to_pylist():
        seconds[row["trial_id"], row["attempt"]][row["epoch"]] = row["seconds"] or 0.0

    def on_report(trial_id: str, metrics: dict[str, Any]) -> None:
        job = recorder.jobs[trial_id]
        row = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        seconds[trial_id, job.attempt][metrics["epoch"]] = metrics.get("seconds", 0.0)
        recorder.on_reports([Report(job.trial_id, "running", metrics["epoch"], metrics, [row])])

    def on_trial_end(end: TrialEnd) -> None:
        epoch = end.metrics.get("epoch", 0)
        metrics = {name: value for name, value in end.metrics.items() if name not in HISTORY_ONLY and "/" not in name}
        spent = sum(seconds[end.trial_id, recorder.jobs[end.trial_id].attempt].values())
        metrics |= {"epochs": epoch, "final_loss": end.metrics.get("eval_loss"), "seconds": spent}
        status: Any = end.status
        recorder.on_reports([Report(end.trial_id, status, epoch, metrics, (), end.error, end.traceback)])

    return run_ordinary(
        loop,
        name=f"{sweep.name}-{sweep.args.run_id}",
        storage_path=store.folder.sub("checkpoints").location,
        workers_per_trial=sweep.args.workers_per_trial,
        use_gpu=info.num_gpus > 0,
        on_report=on_report,
        on_trial_end=on_trial_end,
        max_concurrent=recorder.slots,
        grows=info.grows,
        **options,
    )


HISTORY_ONLY = ("epoch", "step", "lr", "grad_norm", "examples", "tokens")


# ---------------------------------------------------------------------------------------------------- around each sweep


@contextmanager
def _recording(
    sweep: Sweep, store: ResultsStore, total: int, done: int, noun: str = "adapters"
) -> Iterator[tuple[Recorder, cluster.ClusterInfo, Any]]:
    log = Path(store.folder.root, "progress.log") if store.folder.is_local else None
    args = sweep.args
    with (
        # outermost: what trackers still have to do keeps no machine waiting
        Trackers(sinks_for(store, args.wandb, args.wandb_per_trial, args.tensorboard)) as trackers,
        cluster.connect(args.address, args.num_gpus) as info,
        cluster.stop_on_signals() as stop,
    ):
        if info.num_gpus or info.nodes > 1:
            preflight.require(*preflight.machines(info, args.results_dir, sweep.settings.get("base")))
        if getattr(args, "workers_per_trial", 0):
            preflight.require(preflight.state_api(info))
        with RowWriter(store) as writer, Progress(total, done, log, noun=noun) as progress:
            metrics = SweepMetrics(sweep.name, sweep.space.family, total, done)
            yield Recorder(sweep, writer, progress, metrics, trackers), info, stop


def _close(sweep: Sweep, store: ResultsStore, interrupted: bool, trial_ids: set[str] | None) -> int:
    summary = summarise(store)
    print_summary(summary)
    if interrupted:
        print(f"Interrupted: run the same command with --run-id {sweep.args.run_id} to finish.", file=sys.stderr)
        return INTERRUPTED
    rows = store.latest_trials().select(["trial_id", "status"]).to_pylist()
    failed = [
        row["trial_id"]
        for row in rows
        if row["status"] == "failed" and (trial_ids is None or row["trial_id"] in trial_ids)
    ]
    return FAILED if failed else 0
