"""Waiting for a worker: said after a minute with what Ray's logs hold, and over after some."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from sweeps.backend import patience
from sweeps.backend.patience import Patience, last_trouble
from trainables.common.errors import SurroundingsError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("grows", "end_s"), [(False, 300), (True, 1800)])
def test_a_wait_says_why_once_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, grows: bool, end_s: int
) -> None:
    monkeypatch.setattr(patience, "why_no_worker", lambda: "no such file")
    monkeypatch.setattr(patience, "machines_left", lambda: 1)
    clock = Clock()
    waits = Patience(grows, clock)
    for clock.now in range(0, 60):
        waits.look(waiting=True)
    assert not caplog.records
    # a worker came and went
    waits.look(waiting=False)
    with caplog.at_level(logging.WARNING):
        for clock.now in range(60, 60 + end_s):
            waits.look(waiting=True)
    assert [record.getMessage() for record in caplog.records] == ["No worker has started for 61 s: no such file."]
    clock.now = 61 + end_s
    with pytest.raises(SurroundingsError, match=rf"started for {end_s // 60} minutes .no such file.: see"):
        waits.look(waiting=True)


@pytest.mark.parametrize("waiting", [True, False])
def test_without_a_machine_a_sweep_ends_within_a_minute(monkeypatch: pytest.MonkeyPatch, waiting: bool) -> None:
    monkeypatch.setattr(patience, "machines_left", lambda: 0)
    clock = Clock()
    waits = Patience(clock=clock)
    clock.now = 59
    waits.look(waiting)
    clock.now = 61
    with pytest.raises(SurroundingsError, match="lost its last machine"):
        waits.look(waiting)


def test_the_last_line_of_trouble_in_rays_logs(tmp_path: Path) -> None:
    assert last_trouble(tmp_path) is None
    now, before = datetime.now(), datetime.now() - timedelta(hours=1)
    lines = [
        (now, "I", "main.cc:1: Started, no errors."),
        (now, "E", "worker_pool.cc:588: Workers have not registered within the timeout."),
        (now, "E", "open_telemetry_metric_recorder.cc: Failed to export metrics."),
        (before, "E", "worker_pool.cc:1: Of another sweep."),
    ]
    told = [f"[{at:%Y-%m-%d %H:%M:%S},000 {kind} 1 1] (raylet) {text}" for at, kind, text in lines]
    (tmp_path / "raylet.out").write_text(
        "\n".join([*told, "[state-dump] FailureReason - 1 total", "- bytes errored: 0"])
    )
    assert "Workers have not registered" in str(last_trouble(tmp_path))
    (tmp_path / "raylet.err").write_text("bash: /home/my: No such file or directory\n")
    assert last_trouble(tmp_path) == "bash: /home/my: No such file or directory (raylet.err)"
