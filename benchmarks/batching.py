"""How long the host takes to partition a step's rows into batches; no device is involved.

    python benchmarks/batching.py
    python benchmarks/batching.py --rows 256,1024,2048 --json FILE

Rows have random lengths such as training examples of ARC tasks have; the cost of a batch is a GPU's, where the
partition keeps the device waiting. Prints the median of several calls, in milliseconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import record
from trainables.pack.batching import COSTS, group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="64,256,1024,2048", help="rows of a step, numbers separated by commas")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    found = {}
    for count in map(int, args.rows.split(",")):
        # input, output and two solved pairs, each of up to 930 tokens
        lengths = rng.integers(10, 930, (count, 4)).tolist()
        seconds = []
        for _ in range(args.calls):
            started = time.perf_counter()
            batches = group(lengths, COSTS["cuda"])
            seconds.append(time.perf_counter() - started)
        found[str(count)] = {"milliseconds": 1e3 * median(seconds), "batches": len(batches)}
        print(f"{count:>6} rows {1e3 * median(seconds):8.2f} ms, {len(batches)} batches")
    record(args.json, {"rows": found})


if __name__ == "__main__":
    main()
