"""The adapter pool on a real Ray with a stub pool loop: every job reported exactly once, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.search import Searcher

from search_spaces.space import Mode
from sweeps.backend.asha import GroupedASHA, Unit
from sweeps.backend.cluster import ROOT, ClusterInfo
from sweeps.backend.pool.broker import PoolBroker
from sweeps.backend.pool.driver import run_pool_sweep
from sweeps.backend.pool.queue import BrokerQueue
from sweeps.backend.pool.workers import AdapterPool
from sweeps.backend.trials import Search
from tests.sweeps.stub_pool import make_job
from trainables.common.environment import environment_without_ray
from trainables.common.errors import InputError
from trainables.common.jobs import Job, Report

pytestmark = pytest.mark.slow

LOOP = "tests.sweeps.stub_pool:loop"


class Reports(list[Report]):
    """The `Listener` that keeps every report."""

    def on_reports(self, reports: Sequence[Report]) -> None:
        self.extend(reports)

    def on_counts(self, counts: Mapping[str, int]) -> None:
        pass


def sweep(
    work: Sequence[Job] | Search[Unit], tmp_path: Path, settings: dict[str, Any] | None = None, **options: Any
) -> list[Report]:
    settings = {"slots": 4, "epoch_s": 0.02, "folder": str(tmp_path), **(settings or {})}
    units = work if isinstance(work, Search) else [Unit(job.trial_id, [job], job.task_id) for job in work]
    pool, reports = AdapterPool(LOOP, settings, num_workers=1, use_gpu=False), Reports()
    options = {"metric": "eval_loss", "backlog": 8, **options}
    outcome = run_pool_sweep(units, pool, reports, **options)
    assert not outcome.interrupted and outcome.counts["unfinished"] == 0
    return reports


def asha(mode: Mode = "min", metric: str = "eval_loss") -> GroupedASHA:
    return GroupedASHA(metric=metric, mode=mode, max_t=30, grace_period=5, reduction_factor=3)


def assert_each_epoch_once(reports: list[Report], ids: set[str]) -> None:
    last = [r.trial_id for r in reports if r.status != "running"]
    assert len(last) == len(ids) and set(last) == ids
    epochs: dict[str, list[int]] = {name: [] for name in ids}
    for report in reports:
        epochs[report.trial_id] += [row["epoch"] for row in report.history]
    for name, seen in epochs.items():
        # a job that was begun again after its worker died sends its first epochs again
        restart = max(i for i, epoch in enumerate(seen) if epoch == 1)
        assert seen[restart:] == list(range(1, len(seen) - restart + 1)), name


def test_every_job_is_reported_exactly_once_though_a_worker_is_killed(cluster: ClusterInfo, tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    # Tune's one trial waits for the first job all the while
    jobs = [make_job("long", epochs=500)]
    jobs += [make_job(f"job-{i}", f"task-{i}", fails_at=7 if i == 11 else 0) for i in range(30)]
    reports = sweep(jobs, tmp_path)
    assert not (tmp_path / "die").exists()
    assert_each_epoch_once(reports, {job.trial_id for job in jobs})
    ends = [r for r in reports if r.status != "running"]
    assert Counter(r.status for r in ends) == {"success": 30, "failed": 1}
    assert ends[-1].trial_id == "long", "a long job keeps no other from the pool"


def test_asha_judges_every_job_in_training_within_its_task_and_one_without_a_number_has_failed(
    cluster: ClusterInfo, tmp_path: Path
) -> None:
    jobs = [
        make_job(f"{task}-{i}", task, i, quality=scale * (1 + i))
        for i in range(12)
        for task, scale in (("easy", 0.1), ("hard", 10.0))
    ]
    alone: dict[str, dict[str, Any]] = {"a": {"diverges_at": 5}, "b": {"diverges_at": 30}, "c": {}}
    alone["d"] = {"silent": True}
    jobs += [make_job(name, name, **config) for name, config in alone.items()]
    # all train at once, one of them has a process of Tune's
    settings = {"slots": 28, "epoch_s": 0.2, "metric": "score"}
    reports = sweep(jobs, tmp_path, settings, asha=asha("max", "score"), metric="score", backlog=28)
    ends = [r for r in reports if r.status != "running"]
    last = {r.trial_id: r for r in ends}
    assert len(ends) == len(last) == len(jobs)
    compared = {name for name in last if name not in alone}
    assert_each_epoch_once([r for r in reports if r.trial_id in compared], compared)
    assert last["easy-0"].status == last["hard-0"].status == "success"
    assert all(last[name].metrics["rung"] in (5, 15) for name in compared)
    for task in ("easy", "hard"):
        stopped = [r for name, r in last.items() if r.status == "stopped" and name.startswith(task)]
        # ASHA keeps the first of twelve trials at a rung, and about one in three of the others.
        assert len(stopped) >= 4 and all(r.epoch < 30 for r in stopped)
        scale = 0.1 if task == "easy" else 10.0
        assert all(scale < abs(r.metrics["asha_cutoff"]) < scale * 13 * 1.2 for r in stopped)
    assert (last["c"].status, last["c"].metrics["rung"], last["c"].error) == ("success", 15, None)
    assert {name: r.error for name, r in last.items() if r.status == "failed"} == {
        "a": "score is nan in epoch 5: the training diverged.",
        "b": "score is nan in epoch 30: the training diverged.",
        "d": "None of its reports has score, by which ASHA compares trials.",
    }


def test_a_workers_reports_arrive_in_order_and_it_hears_of_cancelled_jobs(cluster: ClusterInfo) -> None:
    broker = ray.remote(PoolBroker).options(num_cpus=0, max_concurrency=100).remote()
    for name in "ab":
        # one after the other: such an actor may begin with the second of two calls
        ray.get(broker.submit.remote(name, [make_job(name)]))
    queue = BrokerQueue(broker, ray.get(broker.register.remote(0, 1)), poll_s=0.01)
    assert [job.trial_id for job in queue.take(2, wait=True)] == ["a", "b"]
    for epoch in range(1, 101):
        queue.report([Report("a", "running", epoch, {"eval_loss": 1.0})])
        assert not queue.cancelled()
    queue.report([Report("a", "success", 101, {"eval_loss": 1.0})])
    queue.flush()
    _, reports, counts = ray.get(broker.collect.remote(0))
    assert [r.epoch for r in reports] == list(range(1, 102)) and counts["success"] == 1
    ray.get(broker.cancel.remote("b"))
    until = time.monotonic() + 10
    while not (heard := queue.cancelled()) and time.monotonic() < until:
        time.sleep(0.01)
    assert heard == {"b"}
    ray.get(broker.close.remote())
    assert queue.take(1, wait=True) == []
    ray.kill(broker)


def test_workers_allocate_with_jemalloc(cluster: ClusterInfo) -> None:
    if "LD_PRELOAD" not in environment_without_ray():
        pytest.skip("this Ray comes without jemalloc")
    maps = ray.get(ray.remote(num_cpus=0)(lambda: Path("/proc/self/maps").read_text()).remote())
    assert "jemalloc" in maps


def test_a_pool_that_cannot_run_fails_every_trial(cluster: ClusterInfo, tmp_path: Path) -> None:
    reports = sweep([make_job(f"job-{i}") for i in range(6)], tmp_path, {"broken": True})
    assert sorted(r.trial_id for r in reports) == [f"job-{i}" for i in range(6)]
    assert {r.status for r in reports} == {"failed"}
    assert "base checkpoint cannot be read" in str(reports[0].error)
    assert "Traceback" in str(reports[0].traceback)


def test_what_a_worker_refuses_ends_the_sweep_at_once(cluster: ClusterInfo, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="the base checkpoint is of another kind"):
        sweep([make_job(f"job-{i}") for i in range(6)], tmp_path, {"refused": True})
    # a worker that breaks otherwise is started five times
    assert time.monotonic() - started < 60


class Given(Searcher):
    """Suggests units by name."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__()
        self._names = iter(names)

    def __reduce__(self) -> tuple[Any, ...]:
        return Given, ()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        name = next(self._names, None)
        return Searcher.FINISHED if name is None else {"unit": name}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass


def test_panels_are_judged_and_stopped_as_a_whole(cluster: ClusterInfo, tmp_path: Path) -> None:
    def panel(config: Mapping[str, Any]) -> Unit:
        name = config["unit"]
        return Unit(name, [make_job(f"{task}-{name}", task, quality=float(name)) for task in "ab"])

    # b ends in epoch 7, so that a panel comes to rung 15 by a alone
    search, settings = Search(Given(["1", "9", "5", "0.1"]), panel, 4), {"epoch_s": 0.1, "last": {"b": 7}}
    reports = sweep(search, tmp_path, settings, asha=asha())
    last = {r.trial_id: r for r in reports if r.status != "running"}
    assert len(last) == 8 and {last[f"a-{name}"].status for name in ("1", "0.1")} == {"success"}
    # one panel after the other: at epoch 5 they came to 1.2 times their name
    for name, cutoff in (("9", 1.2), ("5", 1.2 * (1 + 8 / 3))):
        assert {last[f"{task}-{name}"].status for task in "ab"} <= {"stopped", "success"}
        metrics = last[f"a-{name}"].metrics
        assert last[f"a-{name}"].status == "stopped" and metrics["rung"] == 5
        assert metrics["asha_cutoff"] == pytest.approx(cutoff)
    assert last["a-1"].metrics["rung"] == 15


def test_a_signal_to_the_whole_process_group_drains(tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(
        """
from sweeps.backend.cluster import connect, stop_on_signals
from sweeps.backend.pool.driver import run_pool_sweep
from sweeps.backend.asha import Unit
from sweeps.backend.pool.workers import AdapterPool
from tests.sweeps.stub_pool import make_job

class Show:
    def on_reports(self, reports):
        for r in reports:
            print(r.trial_id, r.status, r.epoch, len(r.history), flush=True)

    def on_counts(self, counts):
        pass

jobs = [make_job(f"job-{i}", epochs=10_000) for i in range(9)]
pool = AdapterPool("tests.sweeps.stub_pool:loop", {"slots": 4, "epoch_s": 0.05}, num_workers=1, use_gpu=False)
with connect("local", num_gpus=0, num_cpus=2), stop_on_signals() as stop:
    outcome = run_pool_sweep([Unit(job.trial_id, [job]) for job in jobs], pool, Show(), metric="eval_loss",
        should_stop=stop, backlog=8)
    print("interrupted", outcome.interrupted, flush=True)
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        process = subprocess.Popen([sys.executable, str(script)], stdout=out, env=environment, start_new_session=True)
    try:
        while len(said.read_text().splitlines()) < 8 and process.poll() is None:
            time.sleep(0.1)
        asked = time.monotonic()
        # the whole process group, as a terminal, `timeout` or a service manager does: the cluster must not end first
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=120)
        seconds = time.monotonic() - asked
    finally:
        process.kill()
    lines = said.read_text().splitlines()
    assert process.returncode == 0 and lines[-1] == "interrupted True"
    epochs = Counter[str]()
    for name, status, epoch, history in (line.split() for line in lines[:-1]):
        assert status == "running"  # a job that is stopped this way is not finished
        epochs[name] += int(history)
        assert epochs[name] == int(epoch)  # no epoch is missing
    print("seconds", seconds)
    assert seconds < 30  # 15 on an idle machine, Ray's own shutdown included
