"""Which work is left in a run that several sweeps extend, and how a sweep ends: its exit code."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sweeps import atomic_lora
from sweeps.core.session import FAILED, INTERRUPTED, close
from sweeps.core.sweep import Inputs, Sweep
from sweeps.core.work import ledger
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from tests.sweeps.stub_sweep import SPACE, StubConfig
from tests.sweeps.tiny import SMALLEST, save_tiny_champion
from trainables.common.jobs import Job

JOBS = [Job(name, "task", 0, {}, attempt) for name, attempt in (("a", 1), ("b", 2))]


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ([("a", 1, "success"), ("b", 1, "failed"), ("b", 2, "stopped")], 0, ""),
        ([("a", 1, "failed"), ("b", 2, "success")], FAILED, ""),
        # Trial b has a row of its first attempt only.
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
    sweep = Sweep("stub", SPACE, argparse.Namespace(run_id="r"), StubConfig(), {}, Inputs("f0"))
    assert close(sweep, store, False, JOBS) == code
    assert said in capsys.readouterr().err
    assert close(sweep, store, True, JOBS) == INTERRUPTED


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_champion(tmp_path)


def test_an_extension_by_another_sweep_numbers_its_trials_after_those_that_are_there(
    tmp_path: Path, base: Path
) -> None:
    fixed = ["--preset", "smoke", "--base", str(base), "--tasks", ",".join(SMALLEST[:2])]
    place = ["--results-dir", str(tmp_path), "--run-id", "a"]

    def jobs(*more: str) -> dict[str, tuple[str, int]]:
        """Open the run as this command line does, and finish one task's new trials."""
        sweep, _, tasks = atomic_lora.prepare("atomic_lora", atomic_lora.SPACE, "", [*fixed, *place, *more])
        store, all_jobs, missing = ledger(sweep, list(tasks))
        rows = [
            {"trial_id": j.trial_id, "attempt": 1, "task_id": j.task_id, "sample": j.sample, "status": "success"}
            for j in missing
            if j.task_id == SMALLEST[0]
        ]
        store.append(trials=rows)
        return {job.trial_id: (job.task_id, job.sample) for job in all_jobs}

    first = jobs()
    assert sorted(first.values()) == [(task_id, 0) for task_id in sorted(SMALLEST[:2])]
    swept = jobs("--num-samples", "3")
    assert not set(first) & set(swept), "the preset sweeps as soon as there are several samples"
    # sample 0 of the task that has a row belongs to the first sweep
    assert sorted(swept.values()) == [(SMALLEST[0], n) for n in (1, 2, 3)] + [(SMALLEST[1], n) for n in (0, 1, 2)]
    assert jobs("--num-samples", "3") == swept, "a restart changes nothing"
    assert jobs() == first
    more = jobs("--num-samples", "5")
    assert swept.items() <= more.items() and len(set(more.values())) == len(more)
