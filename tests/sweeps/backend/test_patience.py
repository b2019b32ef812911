"""Waiting for a worker: said after a minute with what Ray's logs hold, and over after some."""

from __future__ import annotations

import logging
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


def test_the_last_line_of_trouble_in_rays_logs(tmp_path: Path) -> None:
    assert last_trouble(tmp_path) is None
    (tmp_path / "raylet.out").write_text(
        "[2026-01-01 00:00:00,000 I 1 1] (raylet) main.cc:1: Started.\n"
        "[2026-01-01 00:00:01,000 E 1 1] (raylet) worker_pool.cc:588: Workers have not registered within the timeout.\n"
        "[2026-01-01 00:00:02,000 E 1 1] (raylet) open_telemetry_metric_recorder.cc: Failed to export metrics.\n"
    )
    assert "Workers have not registered" in str(last_trouble(tmp_path))
    (tmp_path / "raylet.err").write_text("bash: /home/my: No such file or directory\n")
    assert last_trouble(tmp_path) == "bash: /home/my: No such file or directory (raylet.err)"
