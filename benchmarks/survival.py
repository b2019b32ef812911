"""Whether a sweep survives what happens to it: a campaign over families and kinds of harm, at random moments.

    python benchmarks/survival.py --rounds 100 --json FILE
    python benchmarks/survival.py --rounds 40 --families atomic_lora,recursive_reasoner --harms driver,cut

Rounds that FILE holds are not done again, so a campaign may take several sessions; each round has its commit.

Each round starts a small sweep of a family under a new run id, does it one harm at a random moment, runs the same
command to its end, and reads the Parquet files with pandas, without any code of this project. It counts trial and
history rows that are missing, rows that are there twice, finished work that was done again (a row that is not what it
was), and ends that were no end: a traceback, or a process that is left. The harms:

    driver   kill -9 of the command
    worker   kill -9 of one of Ray's processes that trains
    broker   kill -9 of the pool's broker
    node     kill -9 of Ray's raylet, without which a machine is none
    group    SIGTERM to the whole process group
    hup      SIGHUP to the command, as a terminal's end
    cut      kill -9 of the command, then the newest checkpoint file is cut in half
    twice    the same command is started a second time beside the first, which must be refused
    disk     the disk of the results is full, then has room again (as root: a disk is mounted)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import record
from sweeps.store.provenance import code

HARMS = ("driver", "worker", "broker", "node", "group", "hup", "cut", "twice", "disk")
LONG = ("--set", "epochs=30")
ONE_PROCESS = ("--workers-per-trial", "0")
# what each family's sweep gets, so that it trains for about half a minute on two cores and checkpoints now and then
FAMILIES = {
    "atomic_lora": (
        "--tasks", "smallest:24", "--slots", "2", "--set", "report_every=5", "--set", "epochs=40",
        "--set", "patience=40",
    ),
    "recursive_reasoner": (*ONE_PROCESS, *LONG, "--set", "checkpoint_every=3"),
    "arc_efe": (*ONE_PROCESS, *LONG, "--set", "checkpoint_every=3"),
    "sad_student": (*ONE_PROCESS, *LONG, "--set", "checkpoint_every=3"),
    # finished phases are shared by runs, so each has a folder of its own
    "reasoning_agents": (*ONE_PROCESS, "--phases", "3", "--set", "epochs=40", "--phase-dir", "{folder}/phases-{name}"),
    "champion": (*ONE_PROCESS, *LONG, "--set", "eval_every=4"),
}  # fmt: skip
# a sweep asks for a gibibyte of room before it starts
DISK = 1200 << 20


@dataclass
class Round:
    """What became of a sweep that was harmed.

    Attributes:
        family, harm: What was done to whom.
        after_s: When, in seconds since its start.
        commit: Of the code.
        exit_code: Of the command that was harmed; None where it was killed.
        ended_s: Seconds from the harm to its end.
        finished: Trials that had a row by then.
        lost, twice, done_again: Rows, once the same command has ended.
        faults: What else was wrong.
    """

    family: str
    harm: str
    after_s: float
    commit: str | None
    exit_code: int | None = None
    ended_s: float = 0.0
    finished: int = 0
    lost: int = 0
    twice: int = 0
    done_again: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.twice or self.done_again or self.faults)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of moments and of what is harmed")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--harms", default=",".join(HARMS))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    kept: dict[str, Any] = json.loads(Path(args.json).read_text()) if args.json and Path(args.json).exists() else {}
    rounds = [Round(**found) for found in kept.get("rounds", ())]
    families, harms = args.families.split(","), args.harms.split(",")
    with tempfile.TemporaryDirectory() as folder:
        whole = {family: unbroken(family, Path(folder)) for family in families}
        pairs = [(f, h) for f, h in itertools.product(families, harms) if h != "broker" or f == "atomic_lora"]
        random.Random(args.seed).shuffle(pairs)
        order = enumerate(itertools.islice(itertools.cycle(pairs), args.rounds))
        for number, (family, harm) in itertools.islice(order, len(rounds), None):
            rng = random.Random(f"{args.seed}-{number}")
            found = harmed(family, harm, Path(folder), f"round-{number}", whole[family], rng)
            rounds.append(found)
            print(f"{'good' if found.is_good else 'BAD '} {vars(found)}", flush=True)
            times = {family: seconds for family, (seconds, *_) in whole.items()}
            record(args.json, {"unbroken_s": times, "rounds": [vars(found) for found in rounds]})
    for what in ("family", "harm"):
        print(table(rounds, what))
    sys.exit(0 if all(found.is_good for found in rounds) else 1)


def table(rounds: Sequence[Round], what: str) -> str:
    """Return the counts by family or harm as a table in Markdown."""
    lines = [f"| {what} | rounds | rows lost | rows twice | done again | other faults |", "|---|---|---|---|---|---|"]
    for name in [*sorted({getattr(found, what) for found in rounds}), "all"]:
        own = [found for found in rounds if name in ("all", getattr(found, what))]
        counts = [sum(getattr(found, count) for found in own) for count in ("lost", "twice", "done_again")]
        cells = name, len(own), *counts, sum(len(found.faults) for found in own)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def unbroken(family: str, folder: Path) -> tuple[float, set[str], int]:
    """Run a family's sweep without harm; return its seconds, its trials, and its epochs."""
    began = time.perf_counter()
    process = start(family, folder, "unbroken")
    _, err = process.communicate()
    trials, history = read(folder, family, "unbroken")
    seconds = time.perf_counter() - began
    print(f"{family}: {seconds:.0f} s, {len(trials)} trials, {len(history)} epochs", flush=True)
    if process.returncode:
        raise SystemExit(f"{family} does not even end by itself: {err[-2000:]}")
    return seconds, set(trials["trial_id"]), len(history)


def harmed(
    family: str, harm: str, folder: Path, name: str, whole: tuple[float, set[str], int], rng: random.Random
) -> Round:
    """Start a sweep, harm it, run the same command to its end, and compare with what was to be."""
    seconds, expected, epochs = whole
    found = Round(family, harm, rng.uniform(0.2, 0.95) * seconds, (code() or {}).get("commit"))
    disk = folder / name
    if harm == "disk" and not mounted(disk):
        return found
    place = disk if harm == "disk" else folder
    process = start(family, place, name)
    try:
        process.wait(found.after_s)
    except subprocess.TimeoutExpired:
        began = time.perf_counter()
        children = psutil.Process(process.pid).children(recursive=True)
        found.faults += strike(process, harm, place / family / name, children, rng, lambda: start(family, place, name))
        _, err = process.communicate()
        found.ended_s = time.perf_counter() - began
        if "Traceback" in err:
            found.faults.append(err[-2000:])
        if harm in ("group", "hup", "disk") and found.ended_s > 15:
            found.faults.append(f"it took {found.ended_s:.0f} s to end")
        alive = left_of(children)
        if alive:
            found.faults.append(f"{len(alive)} processes are left, such as {alive[0].name()}")
    found.exit_code = process.returncode
    if harm == "disk":
        (disk / "filler").unlink(missing_ok=True)
    before, _ = read(place, family, name)
    found.finished = len(before)
    again = start(family, place, name)
    _, err = again.communicate()
    if again.returncode or "Traceback" in err:
        found.faults.append(f"exit code {again.returncode}: {err[-2000:]}")
    trials, history = read(place, family, name)
    last = history.drop_duplicates(["trial_id", "epoch"])
    found.lost = len(expected - set(trials["trial_id"])) + max(0, epochs - len(last))
    found.twice = int(trials.duplicated(["trial_id", "attempt"]).sum())
    found.twice += int(history.duplicated(["trial_id", "attempt", "epoch"]).sum())
    after = trials.drop_duplicates("trial_id", keep="last").set_index("trial_id")["finished_at"]
    kept = before[before["status"] != "failed"]
    found.done_again = sum(after.get(row.trial_id) != row.finished_at for row in kept.itertuples())
    if harm == "disk":
        subprocess.run(["umount", disk], check=True)
    return found


def strike(
    process: subprocess.Popen[str], harm: str, run: Path, children: list[Any], rng: random.Random, second: Any
) -> list[str]:
    """Do a harm to a sweep; return what was not as it should be."""
    if harm in ("driver", "cut"):
        process.kill()
        process.wait()
        files = [f for f in run.rglob("*") if f.suffix in (".pt", ".safetensors", ".json") and "checkpoint" in str(f)]
        if harm == "cut" and files:
            newest = max(files, key=lambda file: file.stat().st_mtime_ns)
            newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    elif harm in ("worker", "broker"):
        names = {child: " ".join(child.cmdline()) for child in children if child.is_running()}
        marks = ("ray::PoolBroker",) if harm == "broker" else ("ray::RayTrainWorker", "ray::ImplicitFunc", "ray::train")
        chosen = [child for child, line in names.items() if line.startswith(marks)]
        if chosen:
            rng.choice(chosen).kill()
    elif harm == "node":
        for child in children:
            if child.is_running() and child.name() == "raylet":
                child.kill()
    elif harm == "group":
        os.killpg(process.pid, signal.SIGTERM)
    elif harm == "hup":
        process.send_signal(signal.SIGHUP)
    elif harm == "twice":
        other = second()
        _, err = other.communicate()
        if process.poll() is None and (other.returncode != 2 or "is at work on the run" not in err):
            return [f"the second start ended with {other.returncode}: {err[-500:]}"]
    elif harm == "disk":
        fill(run.parents[1] / "filler")
    return []


def lives(process: psutil.Process) -> bool:
    """Whether a process runs."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return which processes are still there after a minute: Ray's agents notice late that their raylet was killed."""
    deadline = time.monotonic() + 60
    while True:
        # a zombie has ended, and nobody has asked for its exit code
        alive = [process for process in processes if lives(process)]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.2)


def mounted(disk: Path) -> bool:
    """Mount a small disk; return whether that is allowed."""
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fill(filler: Path) -> None:
    """Write until there is no room."""
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    stream.write(b"\0" * size)
            except OSError:
                continue


def start(family: str, folder: Path, name: str) -> subprocess.Popen[str]:
    """Start a sweep as a user would, in a process group of its own."""
    command = [sys.executable, str(ROOT / "sweeps" / f"{family}.py"), "--preset", "smoke", "--num-gpus", "0"]
    command += [word.format(folder=folder, name=name) for word in FAMILIES[family]]
    command += ["--results-dir", str(folder), "--run-id", name]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def read(folder: Path, family: str, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of a run; empty tables where it has not written any yet."""
    tables = []
    for kind, columns in (
        ("trials", ["trial_id", "attempt", "status", "finished_at"]),
        ("history", ["trial_id", "attempt", "epoch"]),
    ):
        files = sorted((folder / family / name / kind).glob("*.parquet"))
        parts = [pd.read_parquet(file, columns=columns) for file in files]
        tables.append(pd.concat(parts) if parts else pd.DataFrame(columns=columns))
    return tables[0], tables[1]


if __name__ == "__main__":
    main()
