"""How a sweep ends: its exit code says whether every trial of the session has a result."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sweeps.core.session import FAILED, INTERRUPTED, close
from sweeps.core.sweep import Sweep
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from tests.sweeps.stub_sweep import SPACE, StubConfig
from trainables.common.jobs import Job

JOBS = [Job(name, "task", 0, {}, attempt) for name, attempt in (("a", 1), ("b", 2))]


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ([("a", 1, "success"), ("b", 1, "failed"), ("b", 2, "stopped")], 0, ""),
        ([("a", 1, "failed"), ("b", 2, "success")], FAILED, ""),
        # of b there is the first attempt only
        (
            [("a", 1, "success"), ("b", 1, "failed")],
            FAILED,
            "1 trials, such as b: run the same command with --run-id r",
        ),
        ([], FAILED, "2 trials, such as a"),
    ],
)
def test_a_trial_that_failed_or_got_lost_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[str, int, str]], code: int, said: str
) -> None:
    store = ResultsStore(tmp_path, "stub", "r")
    store.create(run_record(["python"], {}, [], "f0", 0, SPACE.family))
    store.append([{"trial_id": n, "attempt": a, "task_id": "task", "status": status} for n, a, status in rows])
    sweep = Sweep("stub", SPACE, argparse.Namespace(run_id="r"), StubConfig(), {}, {}, "f0")
    assert close(sweep, store, False, JOBS) == code
    assert said in capsys.readouterr().err
    assert close(sweep, store, True, JOBS) == INTERRUPTED
