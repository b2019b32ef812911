"""The ledger of a run that several sweeps extend, through the command line that opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps import atomic_lora
from sweeps.core.session import ledger
from tests.sweeps.tiny import SMALLEST, save_tiny_champion


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
