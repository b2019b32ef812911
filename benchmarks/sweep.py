"""What the sweep adds to the engine: wall time through Tune and the pool over the same jobs in the engine alone.

    python benchmarks/sweep.py --preset demo --json FILE
    python benchmarks/sweep.py --preset demo --set epochs=30
    python benchmarks/sweep.py --preset demo-lm --sweep-only
    python benchmarks/sweep.py --preset demo --engine-only --idle-actors 11
    python benchmarks/sweep.py --stub-engine --trials 400,4000 --others 6 --json FILE

Without ``--stub-engine`` both sides run in fresh processes on the same machine, one after the other, with the same
jobs, slots and threads. Prints wall times, their ratio, overhead per trial, and the peak memory of the driver and of
all processes together (proportional set size, sampled every ten seconds). ``--idle-actors`` shows what a cluster takes
from the engine by being there.

With ``--stub-engine`` jobs report six epochs and compute nothing: what is left is the cost of a trial, rows written
included, and the driver's memory as the sweep grows. ``--others N`` measures what is done elsewhere on a sample of N
such trials: a TorchTrainer for each, and a Tune trial with a process of its own for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import circumstances, end_with_parent, record
from trainables.common.environment import environment_without_ray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--tasks", help="as of the sweep")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as of the sweep; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results-dir", metavar="DIR", help="keep the sweep's results there")
    parser.add_argument("--base", help="of the adapters, as of the sweep")
    parser.add_argument("--data", help="as of the sweep")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--engine-only", action="store_true", help="leave out the sweep")
    only.add_argument("--sweep-only", action="store_true", help="leave out the engine alone")
    parser.add_argument("--idle-actors", type=int, default=0, metavar="N", help="of a cluster beside the engine")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of the engine; they share the cores")
    parser.add_argument("--stub-engine", action="store_true", help="jobs that compute nothing")
    parser.add_argument("--trials", default="400,4000", help="sizes of the sweeps with --stub-engine")
    parser.add_argument("--others", type=int, default=0, metavar="N", help="trials of each other way to run them")
    parser.add_argument("--json", metavar="FILE")
    # a sweep, or another way, in a process of its own
    parser.add_argument("--stub-sweep", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stub-others", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stub_sweep:
        return stub_sweep(args.stub_sweep)
    if args.stub_others:
        return stub_others(int(args.stub_others), args.others)
    if args.set and args.stub_engine:
        parser.error("--set says nothing to jobs that compute nothing; leave it out with --stub-engine.")
    if args.stub_engine:
        return write(stubbed(args), args.json)
    options = ["--preset", args.preset, "--seed", str(args.seed)]
    options += ["--tasks", args.tasks] if args.tasks else []
    options += [word for setting in args.set for word in ("--set", setting)]
    options += ["--base", args.base] if args.base else []
    options += ["--data", args.data] if args.data else []
    with tempfile.TemporaryDirectory() as folder:
        if args.sweep_only:
            return write(sweep(options, args.results_dir or folder), args.json)
        with idle_cluster(args.idle_actors) if args.idle_actors else contextlib.nullcontext():
            engine = engine_alone(options, folder, args.processes)
        if args.engine_only:
            return write(engine, args.json)
        swept = sweep(options, args.results_dir or folder)
    write({
        **engine,
        **swept,
        "overhead_s": swept["sweep_s"] - engine["engine_s"],
        "overhead_per_trial_s": (swept["sweep_s"] - engine["engine_s"]) / engine["adapters"],
        "ratio": swept["sweep_s"] / engine["engine_s"],
    }, args.json)  # fmt: skip


def write(report: dict[str, Any], file: str | None) -> None:
    """Print a report with its circumstances, and keep it as JSON."""
    for name, value in (circumstances() | report).items():
        print(f"{name:32} {value if not isinstance(value, float) else round(value, 4)}")
    record(file, report)


# ---------------------------------------------------------------------------------------------------- the real engine


def engine_alone(options: list[str], folder: str, processes: int) -> dict[str, Any]:
    """Return number of adapters, wall seconds and peak memory of each process, without Ray, their start included.

    As in the pool there is a process for each core, unless ``processes`` says otherwise; they share the cores' threads,
    and each gets every so-manyth job beforehand. Their environment is that of a sweep's processes.
    """
    started = time.perf_counter()
    with (
        mock.patch.dict(os.environ, environment_without_ray()),
        ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent) as pool,
    ):
        shares = [pool.submit(_train, options, folder, part, processes) for part in range(processes)]
        found = [share.result() for share in shares]
    seconds = time.perf_counter() - started
    return {
        "adapters": sum(adapters for adapters, _ in found),
        "engine_s": seconds,
        "worker_peak_bytes": [peak for _, peak in found],
    }


@contextlib.contextmanager
def idle_cluster(actors: int) -> Iterator[None]:
    """Have a cluster of a sweep's kind on this machine that does nothing, with so many actors that wait for calls."""
    import ray

    from sweeps.backend.cluster import connect

    class Idle:
        def ready(self) -> None: ...

    with connect("local", 0):
        idle = [ray.remote(Idle).options(num_cpus=0).remote() for _ in range(actors)]
        ray.get([actor.ready.remote() for actor in idle])
        # the dashboard's processes are still starting
        time.sleep(10.0)
        yield


def _train(options: list[str], folder: str, part: int, parts: int) -> tuple[int, int]:
    """Return how many adapters a process trained, and its peak memory in bytes."""
    import torch

    from search_spaces.atomic_lora import SPACE, TEXT_SPACE
    from sweeps.atomic_lora import limits, prepare
    from sweeps.core.arc_options import has_texts
    from trainables.atomic_lora.train import train_adapters
    from trainables.common.context import PlainRun
    from trainables.common.jobs import ListQueue

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // parts))
    made, pool, tasks = prepare("atomic_lora", TEXT_SPACE if has_texts(options) else SPACE, "", options)
    order = sorted(tasks, key=lambda task_id: (-tasks[task_id].tokens, task_id))
    jobs = [made.job(task_id, vars(made.config), made.args.seed, 0) for task_id in order]
    settings = {**pool.settings, **limits([job.config for job in jobs]), "folder": f"{folder}/engine"}
    queue = ListQueue(jobs[part::parts])
    train_adapters(settings, PlainRun(), queue)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return sum(report.status == "success" for report in queue.reports), peak


def sweep(options: list[str], folder: str) -> dict[str, float]:
    """Return wall seconds and peak memory of the sweep's command."""
    started = time.perf_counter()
    command = [
        sys.executable,
        str(ROOT / "sweeps" / "atomic_lora.py"),
        *options,
        "--num-gpus",
        "0",
        "--results-dir",
        folder,
    ]
    process = subprocess.Popen(command)
    driver = everything = 0
    while process.returncode is None:
        own, total = memory(process.pid)
        driver, everything = max(driver, own), max(everything, total)
        # seldom: reading the memory of so many processes takes a tenth of a second of a core that has other work
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10.0)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"The sweep ended with exit code {process.returncode}.")
    return {"sweep_s": seconds, "driver_peak_bytes": driver, "total_peak_bytes": everything}


def memory(pid: int) -> tuple[int, int]:
    """Return the proportional set size of a process, and of it and all its descendants, in bytes."""
    try:
        driver = psutil.Process(pid)
        sizes = []
        for process in [driver, *driver.children(recursive=True)]:
            try:
                sizes.append(process.memory_full_info().pss)
            except psutil.Error:
                continue
        return (sizes[0], sum(sizes)) if sizes else (0, 0)
    except psutil.NoSuchProcess:
        return 0, 0


# ------------------------------------------------------------------------------------------------------ the stub engine

REPORTS = 6


def stubbed(args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and driver memory of sweeps of each size, and seconds a trial of the other ways."""
    found: dict[str, Any] = {}
    sizes = [int(size) for size in args.trials.split(",")]
    for size in sizes:
        found |= {f"{name}_{size}": value for name, value in _child("--stub-sweep", str(size)).items()}
    for size in sizes[1:]:
        grown = found[f"driver_peak_bytes_{size}"] - found[f"driver_peak_bytes_{sizes[0]}"]
        found[f"driver_bytes_per_trial_{size}"] = grown / (size - sizes[0])
        found[f"seconds_per_trial_{size}_over_{sizes[0]}"] = (
            found[f"seconds_per_trial_{size}"] / found[f"seconds_per_trial_{sizes[0]}"]
        )
    if args.others:
        for name, workers in (("torch_trainer", 1), ("fresh_actor", 0)):
            seconds = _child("--stub-others", str(workers), "--others", str(args.others))["seconds_per_trial"]
            found[f"seconds_per_trial_{name}"] = seconds
            found[f"{name}_over_pool"] = seconds / found[f"seconds_per_trial_{sizes[0]}"]
        found["trials_of_others"] = args.others
    return found


def _child(*words: str) -> dict[str, float]:
    shown = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(shown.stdout.strip().splitlines()[-1])
    return answer


def stub_loop(settings: dict[str, Any], run: Any, queue: Any) -> None:
    """A pool loop whose jobs compute nothing: they report an epoch each time around."""
    from trainables.common.jobs import Report

    epochs: dict[str, int] = {}
    while True:
        jobs = queue.take(settings["slots"] - len(epochs), wait=not epochs)
        if not jobs and not epochs:
            return
        epochs |= {job.trial_id: 0 for job in jobs}
        for trial_id in queue.cancelled() & epochs.keys():
            del epochs[trial_id]
            queue.report([Report(trial_id, "stopped", 0)])
        reports = []
        for trial_id in list(epochs):
            epochs[trial_id] += 1
            row = {"epoch": epochs[trial_id], "step": epochs[trial_id], "train_loss": 1.0, "eval_loss": 1.0}
            ends = epochs[trial_id] == REPORTS
            metrics = {"eval_loss": 1.0, "final_loss": 1.0, "epochs": epochs[trial_id]}
            reports.append(Report(trial_id, "success" if ends else "running", epochs[trial_id], metrics, [row]))
            if ends:
                del epochs[trial_id]
        queue.report(reports)


def stub_train(settings: dict[str, Any], run: Any) -> None:
    """A training loop that computes nothing and reports as often."""
    for epoch in range(1, REPORTS + 1):
        run.report({"epoch": epoch, "eval_loss": 1.0})


def stub_sweep(trials: int) -> None:
    """Run a sweep of so many tasks through `sweeps.core.pooled.run_pool`; print its seconds and the driver's memory."""
    from search_spaces.atomic_lora import SPACE
    from sweeps.core import cli
    from sweeps.core.arc_options import task_options
    from sweeps.core.pooled import Pool, run_pool
    from sweeps.core.sweep import Inputs, Sweep
    from sweeps.core.work import listed

    with tempfile.TemporaryDirectory() as folder:
        parser = cli.common_parser(SPACE, "")
        task_options(parser)
        args = parser.parse_args(["--results-dir", folder, "--num-gpus", "0"])
        config, domains = SPACE.resolve("full")
        task_ids = [f"task-{number:06}" for number in range(trials)]
        sweep = Sweep("stub", SPACE, args, config, domains, Inputs("none", {"tasks": task_ids}))
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            pool = Pool(stub_loop, {"slots": 32}, lambda configs: {}, lambda on_gpu: 32, 1 << 30)
            code = run_pool(sweep, pool, listed(sweep, task_ids))
        seconds = time.perf_counter() - started
    if code:
        raise SystemExit(code)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "seconds_per_trial": seconds / trials, "driver_peak_bytes": peak}))


def stub_others(workers: int, trials: int) -> None:
    """Run so many ordinary trials, one after another, and print their seconds a trial, Ray's start not counted."""
    from sweeps.backend.cluster import connect
    from sweeps.backend.trials import Training, TrialEnd, run_ordinary

    class Listener:
        def on_report(self, trial_id: str, metrics: dict[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None: ...

        def on_trial_end(self, end: TrialEnd) -> None: ...

        def on_tick(self) -> None: ...

    with tempfile.TemporaryDirectory() as folder, connect(None, 0):
        training = Training(stub_train, "stub", folder, workers_per_trial=workers, use_gpu=False)
        work: list[tuple[str, dict[str, Any]]] = [(f"trial-{number}", {}) for number in range(trials)]
        started = time.perf_counter()
        run_ordinary(work, training, Listener(), metric="eval_loss")
        print(json.dumps({"seconds_per_trial": (time.perf_counter() - started) / trials}))


if __name__ == "__main__":
    main()
