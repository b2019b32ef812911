"""What becomes of a report: rows of the store, a line of progress, metrics, and rows for trackers."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from search_spaces.settings import config_hash
from sweeps.core.ending import trouble_in
from sweeps.core.sweep import Sweep
from sweeps.monitoring.metrics import SweepMetrics
from sweeps.monitoring.progress import Progress
from sweeps.monitoring.trackers import Trackers
from sweeps.store.schema import Kind, fitting
from sweeps.store.store import ResultsStore, RowWriter
from trainables.common.errors import SurroundingsError
from trainables.common.family import number
from trainables.common.jobs import Job, Report


class Recorder:
    """Turns reports into rows of the store, lines of progress and metrics.

    Args:
        sweep: The sweep.
        writer: Where rows go.
        progress: Who is told.
        metrics: Who is told for Prometheus.
        trackers: Who gets the rows as well.

    Attributes:
        jobs: The jobs that reports may be about, by trial id.
        slots: Trials that can train at once.
        listeners: Who else is told of every report, after its row is on its way.
    """

    def __init__(
        self, sweep: Sweep, writer: RowWriter, progress: Progress, metrics: SweepMetrics, trackers: Trackers
    ) -> None:
        self._sweep, self._writer, self._progress, self._metrics = sweep, writer, progress, metrics
        self._trackers = trackers
        self._retried = self._restarts = 0
        self._trained = _trained_before(writer.store)
        self._refused: dict[str, str] = {}  # trials that reported what does not fit, with what is wrong
        self.jobs: dict[str, Job] = {}
        self.slots = 1
        self.listeners: list[Callable[[Sequence[Report]], None]] = []

    def expect(self, jobs: Iterable[Job]) -> None:
        """Take note of jobs before their first report."""
        for job in jobs:
            self.jobs[job.trial_id] = job
            self._retried += job.attempt > 1
            cost = self._sweep.cost(job)
            self._progress.expect({job.trial_id: replace(cost, trained=self._trained[self._attempt(job)].epoch)})

    def on_counts(self, counts: Mapping[str, int]) -> None:
        """Take note of what the pool counts."""
        self._progress.count_running(counts["running"])
        self._restarts = counts["worker_restarts"]

    def on_reports(self, reports: Sequence[Report]) -> None:
        """Store the reports' history and predictions, and a row for each job that is over.

        Called with nothing, write what is due.

        Raises:
            SurroundingsError: If a job failed by what every other one meets as well; it has no row then.
        """
        reports = [_explained(report) if report.status == "failed" else report for report in reports]
        reports = [self._record(self._without_known_epochs(report)) for report in reports]
        if not reports:
            self._writer.add()
        for listener in self.listeners:
            listener(reports)
        for report in reports:
            if report.status == "running":
                self._progress.trial_progress(report.trial_id, report.epoch, report.metrics)
            else:
                self._progress.trial_finished(report.trial_id, report.status, {**report.metrics, "error": report.error})
        if not reports:
            self._progress.tick()
        self._metrics.observe(reports)
        retries = self._retried + self._restarts
        self._metrics.refresh(self._progress.in_training, self.slots, retries, *self._progress.pace())

    def _record(self, report: Report) -> Report:
        """Hand a report's rows to the store and the trackers, and return the report.

        A report with a value that does not fit its column fails its own trial and no other: epochs are stored without
        that value, and the trial ends as failed, whatever else it says.
        """
        if report.status != "running" and report.trial_id in self._refused:
            report = replace(report, status="failed", error=self._refused[report.trial_id])
        rows = self._rows(report)
        try:
            self._writer.add(**rows)
        except TypeError as error:
            self._refused[report.trial_id] = str(error)
            if report.status != "running":
                report = replace(report, status="failed", error=str(error))
            own = self._writer.store.family.columns
            rows = {kind: fitting(some, kind, own) for kind, some in self._rows(report).items()}
            self._writer.add(**rows)
        self._trackers.rows(rows["trials"], rows["history"])
        return report

    def _rows(self, report: Report) -> dict[Kind, list[dict[str, Any]]]:
        key, now = self._key(report), datetime.now(UTC)
        return {
            "trials": [self._trial_row(report)] if report.status != "running" else [],
            "history": [{**key, **epoch, "recorded_at": now} for epoch in report.history],
            "predictions": [{**key, **answers} for answers in report.predictions],
        }

    def _without_known_epochs(self, report: Report) -> Report:
        """Drop the epochs that were reported before, and take note of the others.

        A job that goes on from a checkpoint, after a restart of its worker or of the sweep, sends all of its epochs
        again. The store would drop them itself, but metrics and trackers would count them twice.
        """
        trained = self._trained[self._attempt(self.jobs[report.trial_id])]
        fresh = [row for row in report.history if row["epoch"] > trained.epoch]
        trained.add(fresh, datetime.now(UTC), number(report.metrics.get("seconds")) or 0.0)
        return replace(report, history=fresh)

    def _attempt(self, job: Job) -> tuple[str, int]:
        return job.trial_id, job.attempt

    def _key(self, report: Report) -> dict[str, Any]:
        job = self.jobs[report.trial_id]
        return {"trial_id": job.trial_id, "attempt": job.attempt, "task_id": job.task_id}

    def _trial_row(self, report: Report) -> dict[str, Any]:
        job, metrics, inputs = self.jobs[report.trial_id], dict(report.metrics), self._sweep.inputs
        for name in ("train_loss", "eval_loss"):
            metrics.pop(name, None)
        ended, trained = datetime.now(UTC), self._trained[self._attempt(job)]
        metrics.setdefault("seconds", trained.seconds)
        reasons = {
            "success": "patience" if metrics.get("early_stopped") else "epochs",
            "stopped": "asha",
            "failed": "error",
        }
        return {
            **self._key(report),
            "family": self._sweep.space.family.name,
            "category": self._sweep.categories.get(job.task_id),
            "sample": job.sample,
            "seed": job.seed,
            "config": json.dumps(dict(job.config), sort_keys=True),
            "config_hash": config_hash(dict(job.config), job.seed),
            **{f"config/{name}": _plain(job.config[name]) for name in self._sweep.domains},
            "status": report.status,
            "stop_reason": reasons[report.status],
            "error": report.error,
            "traceback": report.traceback,
            "data_fingerprint": inputs.fingerprints.get(job.task_id, inputs.data_fingerprint),
            "started_at": trained.began or ended - timedelta(seconds=metrics["seconds"] or 0.0),
            "finished_at": ended,
            **{name: _finite(value) for name, value in metrics.items()},
        }


def _explained(report: Report) -> Report:
    """Return a failed report that says what to do, where the surroundings are the reason."""
    found = trouble_in(f"{report.error}\n{report.traceback}")
    if found is None:
        return report
    sentence, trouble = found
    if trouble.everybodys:
        raise SurroundingsError(sentence)
    return replace(report, error=sentence)


@dataclass
class _Trained:
    """What is known of the training of one attempt, earlier sessions included.

    Attributes:
        epoch: The last epoch that was reported.
        seconds: Wall time of all epochs.
        began: When its training began.
    """

    epoch: int = 0
    seconds: float = 0.0
    began: datetime | None = None

    def add(self, rows: Sequence[Mapping[str, Any]], at: datetime | None, seconds: float = 0.0) -> None:
        """Take note of epochs that were reported together.

        Args:
            rows: The epochs.
            at: When they were reported, where it is known.
            seconds: Wall time of the whole attempt until then, where it is known; else that of the epochs counts.
        """
        if not rows:
            return
        spent = sum(number(row.get("seconds")) or 0.0 for row in rows)
        if self.began is None and at is not None:
            self.began = at - timedelta(seconds=max(spent, seconds))
        self.seconds += spent
        self.epoch = max(self.epoch, *(row["epoch"] for row in rows))


def _trained_before(store: ResultsStore) -> dict[tuple[str, int], _Trained]:
    """Return what earlier sessions have trained, by trial and attempt."""
    together: dict[tuple[str, int], dict[datetime | None, list[Mapping[str, Any]]]] = defaultdict(dict)
    columns = ["trial_id", "attempt", "epoch", "seconds", "recorded_at"]
    for row in store.history().select(columns).to_pylist():
        together[row["trial_id"], row["attempt"]].setdefault(row["recorded_at"], []).append(row)
    found: dict[tuple[str, int], _Trained] = defaultdict(_Trained)
    for attempt, reports in together.items():
        for at, rows in reports.items():
            found[attempt].add(rows, at)
    return found


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
