"""Around every sweep: which work is left, who is told of it while it runs, and how it ends.

A restart is a ledger, not a replay: units of work whose row is in the store are not run again, so the same command
after a kill finishes the sweep, and more samples or tasks extend it. `sweeps.core.ordinary` and `sweeps.core.pooled`
carry the work out.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.backend import cluster
from sweeps.backend.asha import ONE_GROUP, GroupedASHA, Unit
from sweeps.backend.trials import StopFlag
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


def asha(sweep: Sweep) -> GroupedASHA:
    """Return the scheduler of a sweep."""
    return GroupedASHA(
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


class Past:
    """What the trials of a run came to in earlier sessions.

    Args:
        store: The run's results.
        metric: Name of the value that trials are compared by.
    """

    def __init__(self, store: ResultsStore, metric: str) -> None:
        self._finished = store.finished()
        history = store.history()
        curves: dict[str, dict[int, float]] = {}
        # A metric that the common schema does not declare gets its column with the first row that has it.
        columns = ["trial_id", "attempt", "epoch", metric]
        rows = history.select(columns).to_pylist() if metric in history.schema.names else []
        for row in sorted(rows, key=lambda row: (row["attempt"], row["epoch"])):
            if row[metric] is not None:
                curves.setdefault(row["trial_id"], {})[row["epoch"]] = row[metric]
        self._curves = {trial_id: sorted(curve.items()) for trial_id, curve in curves.items()}

    def unit(self, name: str, trial_ids: Sequence[str], jobs: Sequence[Job] = (), group: str = ONE_GROUP) -> Unit:
        """Return a unit that goes on where it was.

        Args:
            name: Of the unit.
            trial_ids: All its trials.
            jobs: Those of them that are left to train.
            group: The units that it is compared with.
        """
        finished = {trial_id: self._finished[trial_id] for trial_id in trial_ids if trial_id in self._finished}
        known = [trial_id for trial_id in trial_ids if trial_id in finished or trial_id in self._curves]
        rungs = [row["rung"] for row in finished.values() if row["status"] == "stopped" and row["rung"] is not None]
        earlier = {trial_id: self._curves.get(trial_id, []) for trial_id in known}
        return Unit(name, jobs, group, earlier, min(rungs, default=None))


@dataclass(frozen=True)
class Session:
    """What a sweep has while it runs.

    Attributes:
        recorder: Takes its reports.
        info: The cluster that it runs on.
        stop: Tells whether it should stop.
    """

    recorder: Recorder
    info: cluster.ClusterInfo
    stop: StopFlag


@contextmanager
def recording(sweep: Sweep, store: ResultsStore, total: int, done: int) -> Iterator[Session]:
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
            checks.require(*checks.machines(info, args.results_dir, sweep.places))
        if getattr(args, "workers_per_trial", 0):
            checks.require(checks.state_api(info))
        family = sweep.space.family
        with RowWriter(store) as writer, Progress(total, done, log, family=family) as progress:
            metrics = SweepMetrics(sweep.name, family, total, done)
            yield Session(Recorder(sweep, writer, progress, metrics, trackers), info, stop)


def close(sweep: Sweep, store: ResultsStore, interrupted: bool = False, jobs: Iterable[Job] = ()) -> int:
    """Print the closing table and return the exit code; ``jobs`` are those of this session."""
    print_summary(summarise(store))
    again = f"run the same command with --run-id {sweep.args.run_id}"
    if interrupted:
        print(f"Interrupted: {again} to finish.", file=sys.stderr)
        return INTERRUPTED
    rows = store.latest_trials().select(["trial_id", "attempt", "status"]).to_pylist()
    statuses = {(row["trial_id"], row["attempt"]): row["status"] for row in rows}
    ends = {job.trial_id: statuses.get((job.trial_id, job.attempt)) for job in jobs}
    lost = [trial_id for trial_id, status in ends.items() if status is None]
    if lost:
        noun = sweep.space.family.noun
        print(f"No result came of {len(lost)} {noun}, such as {lost[0]}: {again} to train them.", file=sys.stderr)
    return FAILED if lost or "failed" in ends.values() else 0


def _report(store: ResultsStore) -> str:
    # plotly is loaded where somebody asks for the page
    from dashboards import report

    return report.render(store)
