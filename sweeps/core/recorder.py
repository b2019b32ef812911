"""What becomes of a report: rows of the store, a line of progress, metrics, and rows for trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from search_spaces.settings import config_hash
from sweeps.core.sweep import Sweep
from sweeps.monitoring.metrics import SweepMetrics
from sweeps.monitoring.progress import Progress
from sweeps.monitoring.trackers import Trackers
from sweeps.store.store import RowWriter
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
    """

    def __init__(
        self, sweep: Sweep, writer: RowWriter, progress: Progress, metrics: SweepMetrics, trackers: Trackers
    ) -> None:
        self._sweep, self._writer, self._progress, self._metrics = sweep, writer, progress, metrics
        self._trackers = trackers
        self._retried = self._restarts = 0
        self.jobs: dict[str, Job] = {}
        self.slots = 1

    def expect(self, jobs: Iterable[Job]) -> None:
        """Take note of jobs before their first report."""
        for job in jobs:
            self.jobs[job.trial_id] = job
            self._retried += job.attempt > 1

    def on_counts(self, counts: Mapping[str, int]) -> None:
        """Take note of what the pool counts."""
        self._progress.running, self._restarts = counts["running"], counts["worker_restarts"]

    def on_reports(self, reports: Sequence[Report]) -> None:
        """Store the reports' history and predictions, and a row for each job that is over.

        Called with nothing, write what is due.
        """
        history = [{**self._key(report), **epoch} for report in reports for epoch in report.history]
        predictions = [{**self._key(report), **answers} for report in reports for answers in report.predictions]
        trials = [self._trial_row(report) for report in reports if report.status != "running"]
        self._writer.add(trials, history, predictions)
        self._trackers.rows(trials, history)
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

    def _key(self, report: Report) -> dict[str, Any]:
        job = self.jobs[report.trial_id]
        return {"trial_id": job.trial_id, "attempt": job.attempt, "task_id": job.task_id}

    def _trial_row(self, report: Report) -> dict[str, Any]:
        job, metrics = self.jobs[report.trial_id], dict(report.metrics)
        for name in ("train_loss", "eval_loss"):
            metrics.pop(name, None)
        ended = datetime.now(UTC)
        reasons = {
            "success": "patience" if metrics.get("early_stopped") else "epochs",
            "stopped": "asha",
            "failed": "error",
        }
        return {
            **self._key(report),
            "family": self._sweep.space.family,
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
            "data_fingerprint": self._sweep.data_fingerprint,
            "started_at": ended - timedelta(seconds=metrics.get("seconds") or 0.0),
            "finished_at": ended,
            **{name: _finite(value) for name, value in metrics.items()},
        }


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
