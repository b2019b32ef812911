"""Around every sweep: which work is left, who is told of it while it runs, and how it ends.

A restart is a ledger, not a replay: units of work whose row is in the store are not run again, so the same command
after a kill finishes the sweep, and more samples or tasks extend it. `sweeps.core.ordinary` and `sweeps.core.pooled`
carry the work out.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.backend import cluster
from sweeps.backend.asha import GroupedASHA
from sweeps.core import checks
from sweeps.core.recorder import Recorder
from sweeps.core.sweep import Sweep
from sweeps.monitoring.metrics import SweepMetrics
from sweeps.monitoring.progress import Progress
from sweeps.monitoring.trackers import Trackers, sinks_for
from sweeps.store.store import ResultsStore, RowWriter
from sweeps.store.summary import print_summary, summarise
from trainables.common.jobs import Job

# exit codes: 0 all good, 1 something failed, 130 interrupted (2 is bad input, see sweeps/core/cli.py)
FAILED, INTERRUPTED = 1, 130

Grouping = Callable[[Mapping[str, Any]], str]


def trial_of(config: Mapping[str, Any]) -> str:
    """Return the trial that a Tune trial's configuration names."""
    return str(config["trial_id"])


def asha(sweep: Sweep, group: Grouping, key: Grouping | None = trial_of) -> GroupedASHA:
    """Return the scheduler of a sweep, with an ASHA for each ``group`` of trials."""
    return GroupedASHA(
        group=group,
        key=key,
        metric=sweep.space.metric,
        mode=sweep.space.mode,
        max_t=sweep.space.longest(sweep.config, sweep.domains),
        grace_period=sweep.space.grace_period(sweep.config),
        reduction_factor=sweep.space.reduction_factor,
    )


def ledger(sweep: Sweep, task_ids: Sequence[str]) -> tuple[ResultsStore, list[Job], list[Job]]:
    """Open the store; return it, all jobs of the sweep, and those that it does not hold as finished."""
    args = sweep.args
    samples = sweep.space.sample(sweep.config, sweep.domains, args.num_samples, args.seed)
    jobs = [
        sweep.job(task_id, values, seed, sample)
        for task_id in task_ids
        for sample, (values, seed) in enumerate(samples)
    ]
    store = sweep.open_store()
    jobs = _numbered(jobs, len(samples), store)
    finished, attempts = store.finished(), store.attempts()
    missing = [replace(job, attempt=attempts.get(job.trial_id, 0) + 1) for job in jobs if job.trial_id not in finished]
    return store, jobs, missing


def _numbered(jobs: Sequence[Job], count: int, store: ResultsStore) -> list[Job]:
    """Return the jobs with samples that no other trial of their task has, in this sweep or another one of the run.

    A trial that has a row keeps its sample. Another one keeps the number that it was drawn with, unless an earlier
    sweep of the same run has used it.
    """
    rows = store.latest_trials().select(["trial_id", "task_id", "sample"]).to_pylist()
    stored = {row["trial_id"]: row["sample"] for row in rows}
    taken = {(row["task_id"], row["sample"]) for row in rows}
    numbered = []
    for job in jobs:
        sample = stored.get(job.trial_id, job.sample)
        if job.trial_id not in stored and (job.task_id, sample) in taken:
            sample = next(number for number in itertools.count(count) if (job.task_id, number) not in taken)
        taken.add((job.task_id, sample))
        numbered.append(replace(job, sample=sample))
    return numbered


def replay(scheduler: GroupedASHA, store: ResultsStore, groups: Mapping[str, str], period: int, metric: str) -> None:
    """Tell a scheduler every ``period`` epochs of the trials of ``groups`` that the store holds."""
    curves: dict[str, list[tuple[int, float]]] = {}
    history = store.history()
    # a metric that the schema does not declare has a column once a row has it
    columns = ["trial_id", "epoch", metric] if metric in history.schema.names else []
    for row in history.select(columns).to_pylist() if columns else ():
        if row["trial_id"] in groups and row["epoch"] % period == 0 and row[metric] is not None:
            curves.setdefault(row["trial_id"], []).append((row["epoch"], row[metric]))
    for trial_id, values in curves.items():
        scheduler.replay(groups[trial_id], trial_id, sorted(values))


@contextmanager
def recording(
    sweep: Sweep, store: ResultsStore, total: int, done: int, noun: str = "adapters"
) -> Iterator[tuple[Recorder, cluster.ClusterInfo, Any]]:
    """Connect to Ray and open all that listens to the sweep, for the length of a ``with`` block."""
    log = Path(store.folder.root, "progress.log") if store.folder.is_local else None
    args = sweep.args
    with (
        # outermost: what trackers still have to do keeps no machine waiting
        Trackers(sinks_for(store, args.wandb, args.wandb_per_trial, args.tensorboard, _report)) as trackers,
        cluster.connect(args.address, args.num_gpus) as info,
        cluster.stop_on_signals() as stop,
    ):
        if info.num_gpus or info.nodes > 1:
            checks.require(*checks.machines(info, args.results_dir, sweep.settings.get("base")))
        if getattr(args, "workers_per_trial", 0):
            checks.require(checks.state_api(info))
        with RowWriter(store) as writer, Progress(total, done, log, noun=noun) as progress:
            metrics = SweepMetrics(sweep.name, sweep.space.family, total, done)
            yield Recorder(sweep, writer, progress, metrics, trackers), info, stop


def close(sweep: Sweep, store: ResultsStore, interrupted: bool, trial_ids: set[str] | None) -> int:
    """Print the closing table and return the exit code; ``trial_ids`` are this sweep\'s, None for all of the run."""
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


def _report(store: ResultsStore) -> str:
    # plotly is loaded where somebody asks for the page
    from dashboards import report

    return report.render(store)
