"""The queue of plain lists, and the modules that must load without torch or Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainables.common.errors import did_you_mean
from trainables.common.jobs import Job, JobQueue, ListQueue, Report


def _jobs(count: int) -> list[Job]:
    return [Job(f"t{i}", "task", i, {}) for i in range(count)]


def test_jobs_come_in_order_and_once() -> None:
    queue: JobQueue = ListQueue(_jobs(5))
    assert [job.seed for job in queue.take(2, wait=False)] == [0, 1]
    assert queue.take(0, wait=True) == []
    assert [job.seed for job in queue.take(9, wait=True)] == [2, 3, 4]
    assert queue.take(9, wait=True) == []


def test_a_cancellation_is_told_once() -> None:
    queue = ListQueue(_jobs(2))
    queue.take(2, wait=False)
    queue.cancel("t1")
    queue.cancel("t0")
    assert queue.cancelled() == {"t0", "t1"}
    assert queue.cancelled() == set()


def test_a_job_that_nobody_took_can_be_cancelled() -> None:
    queue = ListQueue(_jobs(3))
    queue.cancel("t1")
    assert queue.cancelled() == set()
    assert [job.trial_id for job in queue.take(9, wait=False)] == ["t0", "t2"]
    assert [(report.trial_id, report.status) for report in queue.reports] == [("t1", "stopped")]


def test_reports_are_kept_in_order() -> None:
    queue = ListQueue([])
    queue.report([Report("a", "running", 5), Report("b", "failed", 1, error="No.")])
    queue.report([Report("a", "success", 10)])
    assert [(r.trial_id, r.status, r.epoch) for r in queue.reports] == [
        ("a", "running", 5),
        ("b", "failed", 1),
        ("a", "success", 10),
    ]


def test_near_names_are_suggested() -> None:
    known = ["rank", "alpha", "lr_multiple"]
    assert did_you_mean("rnak", known) == "; did you mean 'rank'?"
    assert did_you_mean("zzz", known) == ""


@pytest.mark.slow
def test_what_drivers_import_needs_neither_torch_nor_ray() -> None:
    common = ["jobs", "errors", "folder", "context", "schedules"]
    modules = [*(f"common.{name}" for name in common), "arc", "atomic_lora.config"]
    code = f"import sys, {', '.join('trainables.' + m for m in modules)}; print({{'torch', 'ray'}} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
