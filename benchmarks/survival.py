"""Whether a sweep survives kill -9: the driver is killed at a random moment, then the same command is run again.

    python benchmarks/survival.py --rounds 10 --seed 0

Each round starts the smoke sweep under a new run id, kills the driver with SIGKILL after a random time, runs the same
command to its end, and reads the Parquet files with pandas, without any code of this project. It counts trial and
history rows that are missing, rows that are there twice, and finished work that was done again (a row that is not what
it was). The sweep trains long enough that most kills come while it trains, on few enough slots that adapters finish all
the time.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--tasks", default="smallest:24")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run(args, folder, "unbroken").wait()
        whole_s = time.perf_counter() - started
        trials, history = read(folder, "unbroken")
        expected, curves = set(trials["trial_id"]), len(history)
        print(f"unbroken: {whole_s:.0f} s, {len(expected)} trials, {curves} epochs")
        lost = twice = redone = 0
        rounds = []
        for number in range(args.rounds):
            name = f"round-{number}"
            moment = rng.uniform(0.1, 1.0) * whole_s
            process = run(args, folder, name)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            before, begun = read(folder, name)
            code = run(args, folder, name).wait()
            trials, history = read(folder, name)
            epochs = history.drop_duplicates(["trial_id", "epoch"])
            round_lost = len(expected - set(trials["trial_id"])) + curves - len(epochs)
            round_twice = int(trials.duplicated("trial_id").sum() + history.duplicated(["trial_id", "epoch"]).sum())
            after = trials.set_index("trial_id")["finished_at"]
            again = sum(after.get(row.trial_id) != row.finished_at for row in before.itertuples())
            lost, twice, redone = lost + round_lost, twice + round_twice, redone + again
            rounds.append({
                "killed_after_s": moment, "finished": len(before), "epochs": len(begun), "exit_code": code,
                "lost": round_lost, "twice": round_twice, "done_again": again,
            })  # fmt: skip
            print(
                f"killed after {moment:5.1f} s with {len(before):3} adapters finished and {len(begun):5} epochs in the "
                f"store; then exit code {code}: "
                f"rows lost {round_lost}, twice {round_twice}, done again {again}",
                flush=True,
            )
    print(f"{args.rounds} kills: rows lost {lost}, rows twice {twice}, finished work done again {redone}")
    record(args.json, {"unbroken_s": whole_s, "lost": lost, "twice": twice, "done_again": redone, "rounds": rounds})
    sys.exit(1 if lost or twice or redone else 0)


def run(args: argparse.Namespace, folder: str, name: str) -> subprocess.Popen[bytes]:
    """Start the sweep as a user would."""
    fixed = ["--num-gpus", "0", "--slots", "2", "--set", "report_every=5"]
    fixed += [word for name in ("epochs", "patience") for word in ("--set", f"{name}={args.epochs}")]
    command = [sys.executable, str(ROOT / "sweeps" / "atomic_lora.py"), "--preset", "smoke", "--tasks", args.tasks]
    command += [*fixed, "--results-dir", folder, "--run-id", name]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read(folder: str, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of a run; empty tables where it has not written any yet."""
    tables = []
    for kind, columns in (("trials", ["trial_id", "finished_at"]), ("history", ["trial_id", "epoch"])):
        path = Path(folder, "atomic_lora", name, kind)
        there = path.exists() and any(path.glob("*.parquet"))
        tables.append(pd.read_parquet(path, columns=columns) if there else pd.DataFrame(columns=columns))
    return tables[0], tables[1]


if __name__ == "__main__":
    main()
