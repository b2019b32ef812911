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
from sweeps.core.recorder import Recorder
from sweeps.core.sweep import Sweep
from sweeps.core.work import Work
from sweeps.monitoring.metrics import SweepMetrics
from sweeps.monitoring.progress import Progress
from sweeps.monitoring.trackers import Trackers, sinks_for
from sweeps.store.store import ResultsStore, RowWriter
from sweeps.store.summary import print_summary, summarise
from trainables.common.jobs import Job

# exit codes: 0 all good, 1 something failed, 130 interrupted (2 is bad input, see sweeps/core/cli.py)
FAILED, INTERRUPTED = 1, 130


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
    """Connect to Ray and open all that listens to the sweep, for the length of a ``with`` block."""
    store = work.store
    log = Path(store.folder.root, "progress.log") if store.folder.is_local else None
    args = sweep.args
    with (
        store.withdrawn_if_refused(),
        # outermost: what trackers still have to do keeps no machine waiting
        Trackers(sinks_for(store, args.wandb, args.wandb_per_trial, args.tensorboard, _report)) as trackers,
        cluster.connect(args.address, args.num_gpus) as info,
        cluster.stop_on_signals() as stop,
    ):
        if info.num_gpus or info.nodes > 1:
            checks.require(*checks.machines(info, args.results_dir, sweep.inputs.places))
        if getattr(args, "workers_per_trial", 0):
            checks.require(checks.state_api(info))
        family = sweep.space.family
        with RowWriter(store) as writer, Progress(work.total, work.done, log, family=family) as progress:
            metrics = SweepMetrics(sweep.name, family, work.total, work.done)
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
