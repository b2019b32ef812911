"""Train a recursive reasoner and direct predictions in a plain process, without Ray: does recursion pay?

    python benchmarks/reasoner_demo.py --preset demo --folder DIR --direct-lrs 1e-3,3e-3 --json FILE
    python benchmarks/reasoner_demo.py --dataset maze --set maze_side=9 --set mixer=attention --folder DIR

Settings are those of ``sweeps/recursive_reasoner.py``, and so is the loop. The direct predictions have the same
parameters and take as many optimizer steps on the same puzzles, once at each of ``--direct-lrs``: the best of them is
what recursion is compared with. What was broken off goes on from its last checkpoint. ``cpu_seconds`` is the time that
this process computed, which a busy machine does not lengthen as it does the wall time; of what was broken off it is
that of the last session.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import record
from search_spaces.recursive_reasoner import SPACE
from trainables.common.context import PlainRun
from trainables.common.folder import Folder
from trainables.puzzles.kinds import KINDS
from trainables.recursive_reasoner.data import load_dataset
from trainables.recursive_reasoner.train import direct_baseline, train_loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(SPACE.presets), default="demo")
    parser.add_argument("--dataset", choices=KINDS, help="default: the preset's")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--direct-lrs", default="", metavar="LR,LR", help="train a direct prediction at each of these")
    parser.add_argument("--direct-only", action="store_true", help="train no reasoner")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", required=True, help="where checkpoints and the trained reasoner go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config, _ = SPACE.resolve(args.preset, sets=args.sets)
    config = dataclasses.replace(config, direct_baseline=False)
    name = args.dataset or SPACE.presets[args.preset].tasks
    dataset, folder = load_dataset(name, config, args.seed), Path(args.folder)
    rows = []
    for lr in map(float, filter(None, args.direct_lrs.split(","))):
        started, at = time.process_time(), dataclasses.replace(config, lr=lr)
        row = direct_baseline(at, dataset, args.seed, PlainRun(args.device), Folder(str(folder / f"direct-{lr:g}")))
        rows.append({"trained": f"direct, lr {lr:g}", **row, "cpu_seconds": time.process_time() - started})
        print(rows[-1], flush=True)
    if not args.direct_only:
        started, run = time.process_time(), PlainRun(args.device)
        settings = {"config": dataclasses.asdict(config), "dataset": name, "data_seed": args.seed, "dataset_dir": None}
        train_loop({**settings, "seed": args.seed, "folder": str(folder / "reasoner"), "checkpoint": None}, run)
        row = run.reports[-1]
        rows.append({"trained": "reasoner", **row, "cpu_seconds": time.process_time() - started})
        for column in ("exact_accuracy", "token_accuracy", "mean_steps", "step", "cpu_seconds"):
            print(f"{column:>20} {rows[-1][column]:10.4f}")
    record(args.json, {"preset": args.preset, "dataset": name, "sets": args.sets, "seed": args.seed, "rows": rows})


if __name__ == "__main__":
    main()
