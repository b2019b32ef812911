"""What the sweep adds to the engine: wall time through Tune and the pool over the same jobs in the engine alone.

    python benchmarks/sweep.py --preset demo --json benchmarks/results/sweep-<machine>.json

Both sides run in fresh processes on the same machine, one after the other, with the same jobs, slots and threads.
Prints wall times, their ratio, overhead per trial, and the peak memory of the driver and of all processes together
(proportional set size, sampled every second). Not covered: what a TorchTrainer or a fresh actor per trial would cost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    options = ["--preset", args.preset, "--tasks", args.tasks, "--seed", str(args.seed)]
    with tempfile.TemporaryDirectory() as folder:
        engine_s, adapters = engine_alone(options, folder)
        swept = sweep(options, folder)
    report = {
        "command": f"python benchmarks/sweep.py {' '.join(options)}",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "adapters": adapters,
        "engine_s": engine_s,
        **swept,
        "overhead_s": swept["sweep_s"] - engine_s,
        "overhead_per_trial_s": (swept["sweep_s"] - engine_s) / adapters,
        "ratio": swept["sweep_s"] / engine_s,
    }
    for name, value in report.items():
        print(f"{name:24} {value if not isinstance(value, float) else round(value, 3)}")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


def engine_alone(options: list[str], folder: str) -> tuple[float, int]:
    """Return wall seconds and number of adapters of the jobs in a plain process without Ray, its start included."""
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_train, args=(options, folder, queue))
    process.start()
    adapters = queue.get()
    process.join()
    return time.perf_counter() - started, adapters


def _train(options: list[str], folder: str, queue: Any) -> None:
    import torch

    from search_spaces.atomic_lora import SPACE
    from sweeps.atomic_lora import prepare
    from trainables.atomic_lora.train import train_adapters
    from trainables.context import PlainRun
    from trainables.jobs import ListQueue

    torch.set_num_threads(os.cpu_count() or 1)
    made, pool, tasks = prepare("atomic_lora", SPACE, "", options)
    config, order = vars(made.config), sorted(tasks, key=lambda task_id: (-tasks[task_id].tokens, task_id))
    jobs = ListQueue(made.job(task_id, config, made.args.seed, 0) for task_id in order)
    settings = {
        **pool.settings, "rank": config["rank"], "target_modules": config["target_modules"], "slots": pool.slots(False),
        "folder": f"{folder}/engine",
    }  # fmt: skip
    train_adapters(settings, PlainRun(), jobs)
    queue.put(sum(report.status == "success" for report in jobs.reports))


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
    while process.poll() is None:
        own, total = memory(process.pid)
        driver, everything = max(driver, own), max(everything, total)
        time.sleep(1.0)
    if process.returncode:
        raise SystemExit(f"The sweep ended with exit code {process.returncode}.")
    seconds = time.perf_counter() - started
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


if __name__ == "__main__":
    main()
