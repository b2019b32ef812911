"""What becomes of reports over two sessions of a run: epochs count once, times leave out the pause between them."""

from __future__ import annotations

import argparse
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from search_spaces.recursive_reasoner import SPACE
from sweeps.core import recorder as module
from sweeps.core.recorder import Recorder
from sweeps.core.sweep import Inputs, Sweep
from sweeps.monitoring.metrics import SweepMetrics
from sweeps.monitoring.progress import Progress
from sweeps.store.store import ResultsStore, RowWriter
from trainables.common.jobs import Job, Report

MONDAY = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Clock:
    """The wall clock of the recorder, moved by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = MONDAY
        monkeypatch.setattr(module, "datetime", self)

    def now(self, zone: Any) -> datetime:
        return self.time

    def wait(self, **duration: float) -> None:
        self.time += timedelta(**duration)


class Tracker:
    """Keeps the rows that it is sent."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def rows(self, trials: Any, history: Any) -> None:
        self.epochs += [row["epoch"] for row in history]


class Session:
    """One session of a run with a single job."""

    def __init__(self, folder: Path, job: Job) -> None:
        config, domains = SPACE.resolve("smoke")
        sweep = Sweep("recursive_reasoner", SPACE, argparse.Namespace(), config, domains, Inputs("f0"))
        self.store, self.tracker = ResultsStore(folder, "recursive_reasoner", "r"), Tracker()
        self.writer = RowWriter(self.store, interval_s=0.0)
        metrics = SweepMetrics("recursive_reasoner", SPACE.family, 1)
        progress = Progress(1, stream=io.StringIO())
        self.recorder = Recorder(sweep, self.writer, progress, metrics, self.tracker)  # type: ignore[arg-type]
        self.recorder.expect([job])
        self.job = job

    def report(self, *epochs: int, status: Any = "running", **metrics: Any) -> None:
        rows = [{"epoch": epoch, "seconds": 60.0, "train_loss": 1 / epoch} for epoch in epochs]
        self.recorder.on_reports([Report(self.job.trial_id, status, epochs[-1] if epochs else 0, metrics, rows)])


@pytest.fixture
def job() -> Job:
    return Job("t-1", "t", 0, {"epochs": 10})


def test_epochs_that_are_sent_again_reach_store_and_trackers_once(tmp_path: Path, job: Job) -> None:
    first = Session(tmp_path, job)
    first.report(1, 2)
    first.report(1, 2, 3)  # by a worker that was started again
    assert first.tracker.epochs == [1, 2, 3]
    second = Session(tmp_path, job)
    second.report(1, 2, 3, 4)
    assert second.tracker.epochs == [4] and second.store.history()["epoch"].to_pylist() == [1, 2, 3, 4]


def test_a_value_that_does_not_fit_its_column_fails_its_own_trial(tmp_path: Path, job: Job) -> None:
    session = Session(tmp_path, job)
    other = Job("u-1", "u", 0, {"epochs": 10})
    session.recorder.expect([other])
    good = {"exact_accuracy": 0.5, "note": "anything", "shape": [1, 2]}
    bad_epoch = {"epoch": 1, "seconds": 60.0, "train_loss": "low", "entropy": 0.1}
    session.recorder.on_reports(
        [Report("t-1", "running", 1, {}, [bad_epoch]), Report("u-1", "success", 1, good, [{"epoch": 1}])]
    )
    session.report(2, status="success", exact_accuracy="all")
    rows = {row["trial_id"]: row for row in session.store.trials().to_pylist()}
    assert rows["u-1"]["status"] == "success" and rows["u-1"]["metric/shape"] == "[1, 2]"
    assert rows["t-1"]["status"] == "failed" and "'train_loss' of history holds double" in rows["t-1"]["error"]
    epochs = [row for row in session.store.history().to_pylist() if row["trial_id"] == "t-1"]
    # the rest of the epoch is kept
    assert [(row["epoch"], row["train_loss"], row["entropy"]) for row in epochs] == [(1, None, 0.1), (2, 0.5, None)]


def test_a_trial_begins_in_its_first_session_and_its_seconds_leave_out_the_pause(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    clock.wait(seconds=120)
    Session(tmp_path, job).report(1, 2)
    clock.wait(days=1)
    second = Session(tmp_path, job)
    clock.wait(seconds=60)
    second.report(3)
    clock.wait(seconds=5)
    second.report(status="success")
    (row,) = second.store.trials().to_pylist()
    assert (row["started_at"], row["seconds"]) == (MONDAY, 180.0)
    assert row["finished_at"] == MONDAY + timedelta(days=1, seconds=185)


def test_a_job_of_the_pool_knows_its_seconds_itself(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.wait(seconds=90)
    session = Session(tmp_path, job)
    # it has waited 30 s for its evaluation
    session.report(1, status="success", seconds=90.0)
    (row,) = session.store.trials().to_pylist()
    assert (row["started_at"], row["seconds"]) == (MONDAY, 90.0)


def test_an_attempt_after_a_failure_has_times_of_its_own(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    session = Session(tmp_path, job)
    clock.wait(seconds=60)
    session.report(1, status="failed")
    again = Session(tmp_path, Job("t-1", "t", 0, {"epochs": 10}, attempt=2))
    clock.wait(seconds=60)
    again.report(1, status="success")
    rows = again.store.trials().to_pylist()
    assert [row["started_at"] for row in rows] == [MONDAY, MONDAY + timedelta(seconds=60)]
    assert [row["seconds"] for row in rows] == [60.0, 60.0] and again.tracker.epochs == [1]
