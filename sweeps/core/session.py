"""Around every sweep: who is told of it while it runs, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sweeps.backend import cluster
from sweeps.backend.trials import StopFlag
from sweeps.core import checks
from sweeps.core.ending import FAILED, INTERRUPTED, explaining
from sweeps.core.recorder import Recorder
from sweeps.core.sweep import Sweep
from sweeps.core.work import Work
from sweeps.monitoring.metrics import SweepMetrics
from sweeps.monitoring.progress import Progress
from sweeps.monitoring.trackers import Trackers, sinks_for
from sweeps.store.store import ResultsStore, RowWriter
from sweeps.store.summary import print_summary, summarise
from trainables.common.jobs import Job


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
def recording(sweep: Sweep, work: Work) -> Iterator[Session]:
    """Connect to Ray and open all that listens to the sweep, for the length of a ``with`` block.

    Raises:
        RunEndedError: Where the surroundings, or a second signal, end the sweep.
    """
    store = work.store
    log = Path(store.folder.root, "progress.log") if store.folder.is_local else None
    args = sweep.args
    with (
        explaining(_again(sweep)),
        store.withdrawn_if_refused(),
        # outermost of what listens: what trackers still have to do keeps no machine waiting
        Trackers(sinks_for(store, args.wandb, args.wandb_per_trial, args.tensorboard, _report)) as trackers,
        cluster.connect(args.address, args.num_gpus) as info,
        cluster.stop_on_signals() as stop,
    ):
        store.lock.on_lost = stop.set
        if info.num_gpus or info.nodes > 1:
            checks.require(*checks.machines(info, args.results_dir, sweep.inputs.places))
        if getattr(args, "workers_per_trial", 0):
            checks.require(checks.state_api(info))
        family = sweep.space.family
        with RowWriter(store) as writer, Progress(work.total, work.done, log, family=family) as progress:
            metrics = SweepMetrics(sweep.name, family, work.total, work.done)
            yield Session(Recorder(sweep, writer, progress, metrics, trackers), info, stop)
        if stop.is_set():
            trackers.hurry()


def close(sweep: Sweep, store: ResultsStore, interrupted: bool = False, jobs: Iterable[Job] = ()) -> int:
    """Give up the run's lock, print the closing table and return the exit code; ``jobs`` are those of this session."""
    store.lock.release()
    print_summary(summarise(store))
    again = _again(sweep)
    if interrupted:
        print(f"Interrupted: {again}.", file=sys.stderr)
        return INTERRUPTED
    rows = store.latest_trials().select(["trial_id", "attempt", "status"]).to_pylist()
    statuses = {(row["trial_id"], row["attempt"]): row["status"] for row in rows}
    ends = {job.trial_id: statuses.get((job.trial_id, job.attempt)) for job in jobs}
    lost = [trial_id for trial_id, status in ends.items() if status is None]
    if lost:
        noun = sweep.space.family.noun
        print(f"No result came of {len(lost)} {noun}, such as {lost[0]}: {again}.", file=sys.stderr)
    return FAILED if lost or "failed" in ends.values() else 0


def _again(sweep: Sweep) -> str:
    return f"run the same command with --run-id {sweep.args.run_id} to finish"


def _report(store: ResultsStore) -> str:
    # plotly is loaded where somebody asks for the page
    from dashboards import report

    return report.render(store)
