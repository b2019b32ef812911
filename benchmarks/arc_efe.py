"""Train prompted grid agents in a plain process, without Ray: what comes out, and what a step costs.

    python benchmarks/arc_efe.py --preset demo --folder DIR --json benchmarks/results/arc-efe-<machine>.json
    python benchmarks/arc_efe.py --preset demo --folder DIR --seeds 0,1,2 --set memory=false
    python benchmarks/arc_efe.py --preset ablation --folder DIR --seeds 0,1,2 --sweep 'memory=ablate(False)'

What is swept (``--sweep``, or by the preset) is trained in turn, seed by seed, and JSON is written after each. Settings
are those of ``sweeps/arc_efe.py``, and so is the loop. Each training has a folder of its own; what was broken off goes
on from its last checkpoint. ``cpu_seconds`` is the time that this process computed, which a busy machine does not
lengthen as it does the wall time; of a seed that was broken off it is that of the last session.
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
from search_spaces.arc_efe import SPACE
from sweeps.core.arc_options import choose_tasks, data_option
from trainables.arc_efe.family import FAMILY
from trainables.arc_efe.train import train_loop
from trainables.common.context import PlainRun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(SPACE.presets), default="demo")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--sweep", dest="sweeps", action="append", default=[], metavar="NAME=VALUES")
    parser.add_argument("--seeds", default="0", metavar="N,N")
    parser.add_argument("--folder", required=True, help="where checkpoints and answers go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    data_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config, domains = SPACE.resolve(args.preset, sets=args.sets, sweeps=args.sweeps)
    plain = dataclasses.asdict(config)
    ids = list(choose_tasks(args.data, None, (args.preset, SPACE.presets[args.preset].tasks))[0])
    rows = []
    for seed in map(int, args.seeds.split(",")):
        for values, _ in SPACE.sample(config, domains, 1, seed):
            own = {name: value for name, value in values.items() if value != plain[name]}
            said = ",".join(f"{name}={value}" for name, value in own.items()) or "plain"
            started, run = time.process_time(), PlainRun(args.device)
            folder = str(Path(args.folder) / f"seed-{seed}-{said}")
            train_loop({"config": values, "seed": seed, "folder": folder, "data": args.data, "tasks": ids}, run)
            spent = time.process_time() - started
            rows.append({**run.reports[-1], "seed": seed, "settings": said, "cpu_seconds": spent})
            print(f"seed {seed}, {said}: {spent:.0f} s", flush=True)
            record(args.json, {"preset": args.preset, "sets": args.sets, "data": args.data, "rows": rows})
    for said in dict.fromkeys(row["settings"] for row in rows):
        print(f"\n{said}")
        for name in (*(column.name for column in FAMILY.columns), "cpu_seconds"):
            found = [row[name] for row in rows if row["settings"] == said and isinstance(row.get(name), int | float)]
            if found:
                print(f"{name:>34} " + " ".join(f"{value:9.4f}" for value in found))


if __name__ == "__main__":
    main()
