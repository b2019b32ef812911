"""The adapter pool on a real Ray with a stub pool loop: every job reported exactly once, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sweeps.backend.asha import GroupedASHA
from sweeps.backend.cluster import ROOT, ClusterInfo, connect
from sweeps.backend.pool.broker import PoolBroker
from sweeps.backend.pool.driver import UnitSearch, run_pool_sweep
from sweeps.backend.pool.queue import BrokerQueue
from tests.sweeps.stub_pool import make_job
from trainables.common.environment import environment_without_ray
from trainables.common.jobs import Job, Report

pytestmark = pytest.mark.slow

LOOP = "tests.sweeps.stub_pool:loop"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterInfo]:
    with connect("local", num_gpus=0, num_cpus=2) as info:
        yield info


def sweep(
    units: list[list[Job]], tmp_path: Path, settings: dict[str, Any] | None = None, **options: Any
) -> list[Report]:
    reports: list[Report] = []
    outcome = run_pool_sweep(
        units,
        pool_loop=LOOP,
        pool_settings={"slots": 4, "epoch_s": 0.02, "folder": str(tmp_path), **(settings or {})},
        num_workers=1,
        use_gpu=False,
        on_reports=reports.extend,
        **{"max_concurrent": 3, "lookahead": 4, **options},
    )
    assert not outcome.interrupted and outcome.counts["unfinished"] == 0
    return reports


def test_units_are_given_out_in_turn() -> None:
    search = UnitSearch([make_job(f"t{i}") for i in range(2)])
    given = [search.suggest(name) for name in ("a", "b", "c")]
    assert given == [{"unit": i, "task_id": "task", "trial_id": f"t{i}"} for i in range(2)] + [Searcher.FINISHED]


def test_a_trial_id_that_comes_again_gets_no_unit() -> None:
    search = UnitSearch([make_job(f"t{i}") for i in range(2)])
    assert [bool(search.suggest(name)) for name in ("a", "a", "b")] == [True, False, True]


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


def test_every_job_is_reported_exactly_once(cluster: ClusterInfo, tmp_path: Path) -> None:
    units = [[make_job(f"job-{i}", f"task-{i}", fails_at=7 if i == 11 else 0)] for i in range(30)]
    done: list[str] = []
    reports = sweep(units, tmp_path, on_trial_done=lambda ids, status, decision: done.extend(ids))
    assert_each_epoch_once(reports, {unit[0].trial_id for unit in units})
    assert Counter(r.status for r in reports) == {"running": 29 * 5 + 1, "success": 29, "failed": 1}
    assert sorted(done) == sorted(unit[0].trial_id for unit in units)


def test_asha_stops_within_each_task_and_the_slot_goes_on(cluster: ClusterInfo, tmp_path: Path) -> None:
    units = [
        [make_job(f"{task}-{i}", task, i, quality=scale * (1 + i))]
        for i in range(6)
        for task, scale in (("easy", 0.1), ("hard", 10.0))
    ]
    scheduler = GroupedASHA(
        group=lambda c: c["task_id"], key=lambda c: c["trial_id"], max_t=30, grace_period=5, reduction_factor=3
    )
    reports = sweep(units, tmp_path, {"epoch_s": 0.1}, scheduler=scheduler, max_concurrent=4, lookahead=0)
    assert_each_epoch_once(reports, {unit[0].trial_id for unit in units})
    last = {r.trial_id: r for r in reports if r.status != "running"}
    assert last["easy-0"].status == last["hard-0"].status == "success"
    stopped = {name: r for name, r in last.items() if r.status == "stopped"}
    assert {"easy-5", "hard-5"} <= set(stopped)
    for report in stopped.values():
        assert report.metrics["stop_reason"] == "asha" and report.metrics["rung"] in (5, 15)
        assert report.epoch < 30 and report.metrics["asha_cutoff"] > 0
    assert stopped["hard-5"].metrics["asha_cutoff"] > stopped["easy-5"].metrics["asha_cutoff"]


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


def test_a_killed_worker_loses_no_job(cluster: ClusterInfo, tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    units = [[make_job(f"job-{i}")] for i in range(8)]
    reports = sweep(units, tmp_path)
    assert not (tmp_path / "die").exists()
    assert_each_epoch_once(reports, {unit[0].trial_id for unit in units})
    assert all(r.status in ("running", "success") for r in reports)


def test_a_pool_that_cannot_run_fails_every_trial(cluster: ClusterInfo, tmp_path: Path) -> None:
    units = [[make_job(f"job-{i}")] for i in range(6)]
    reports = sweep(units, tmp_path, {"broken": True})
    assert sorted(r.trial_id for r in reports) == [f"job-{i}" for i in range(6)]
    assert {r.status for r in reports} == {"failed"}
    assert "base checkpoint cannot be read" in str(reports[0].error)
    assert "Traceback" in str(reports[0].traceback)


def test_panel_search_with_optuna(cluster: ClusterInfo, tmp_path: Path) -> None:
    def panel(config: Any) -> list[Job]:
        return [make_job(f"{task}-{config['quality']:.6f}", task, quality=config["quality"]) for task in "ab"]

    space = OptunaSearch.convert_search_space({"quality": tune.loguniform(0.1, 10)})
    first = [{"quality": 0.5}]
    searcher = OptunaSearch(space, metric="eval_loss", mode="min", seed=0, points_to_evaluate=first)
    reports = sweep([], tmp_path, make_jobs=panel, searcher=searcher, num_samples=5)
    last = {r.trial_id: r for r in reports if r.status != "running"}
    assert len(last) == 10 and {r.status for r in last.values()} == {"success"}
    assert {"a-0.500000", "b-0.500000"} <= set(last)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(
        """
from sweeps.backend.cluster import connect, stop_on_signals
from sweeps.backend.pool.driver import run_pool_sweep
from tests.sweeps.stub_pool import make_job

def show(reports):
    for r in reports:
        print(r.trial_id, r.status, r.epoch, len(r.history), flush=True)

with connect("local", num_gpus=0, num_cpus=2), stop_on_signals() as stop:
    outcome = run_pool_sweep([[make_job(f"job-{i}", epochs=10_000)] for i in range(9)], should_stop=stop,
        pool_loop="tests.sweeps.stub_pool:loop", pool_settings={"slots": 4, "epoch_s": 0.05},
        num_workers=1, use_gpu=False, on_reports=show, max_concurrent=3, lookahead=4)
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
        if number == signal.SIGINT:  # Ctrl-C reaches the whole process group
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
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
