"""Measure how accuracy grows with thinking time, of the reasoners that a run trained; nothing is trained.

    python -m sweeps.reasoner_scaling results/recursive_reasoner/RUN_ID
    python -m sweeps.reasoner_scaling RUN_DIR --steps 48 --trajectories 4,16 --noise 0.1,0.3 --symmetries 8

Each successful trial whose weights are there solves held-out puzzles, and harder ones than it was trained on, with more
steps than in training, with noise on several trajectories, and by votes over symmetries (see
`trainables.recursive_reasoner.scaling`). The rows go to ``scaling.parquet`` in the run's folder, in place of those
before, and the report draws them.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sweeps.core.ending import run_main
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError
from trainables.puzzles.puzzles import Puzzles
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import Dataset, load_dataset
from trainables.recursive_reasoner.family import FAMILY
from trainables.recursive_reasoner.scaling import Plan, Trained, config_of, measure

FILE = "scaling.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the reasoners of a run and write the rows into its folder; return the exit code.

    Raises:
        InputError: If the command line is wrong, the run is none of reasoners, or none of its trials can be measured.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.reasoner_scaling", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of the run, a path or a URI")
    parser.add_argument(
        "--trial", metavar="ID", action="append", help="measure this trial; default: all successful ones"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="most steps of a trajectory (default: 4 x max_steps)")
    parser.add_argument("--trajectories", default="4", metavar="K,K", help="noisy trajectories; 0: none (default: 4)")
    parser.add_argument(
        "--noise", default="0.2", metavar="X,X", help="their noise, states being about 1 (default: 0.2)"
    )
    parser.add_argument("--symmetries", default="4", metavar="K,K", help="views that vote; 0: none (default: 4)")
    parser.add_argument("--puzzles", type=int, default=256, metavar="N", help="of each level at most (default: 256)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise and symmetries (default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.puzzles < 1:
        raise InputError(f"--puzzles is {args.puzzles} but must be at least 1.")
    if args.steps is not None and args.steps < 1:
        raise InputError(f"--steps is {args.steps} but must be at least 1.")
    trajectories, symmetries = (_numbers(args, name, int, 2) for name in ("trajectories", "symmetries"))
    noises = _numbers(args, "noise", float, 0)
    store = ResultsStore.open(args.run_dir)
    if store.family.name != FAMILY.name:
        raise InputError(f"{args.run_dir} is a run of {store.family.name}; give one of {FAMILY.name}.")
    rows: list[dict[str, Any]] = []
    for trial, config, dataset, trained in _trained(store, args.trial, args.device):
        steps = args.steps or 4 * config.max_steps
        counts = sorted(
            {steps, min(steps, config.max_steps), *(2**n for n in range(steps.bit_length()) if 2**n <= steps)}
        )
        plan = Plan(counts, trajectories, noises, symmetries if dataset.kind.generated else (), args.seed)
        for level, puzzles in _levels(dataset, args.puzzles):
            about = {
                "trial_id": trial["trial_id"], "dataset": dataset.name, "halting": config.halting,
                "planner": config.planner, "level": level, "trained_max_steps": config.max_steps,
                "train_steps": trained.training["steps"], "train_cpu_minutes": trained.training["cpu_minutes"],
                "seed": args.seed, "device": args.device, "threads": torch.get_num_threads(),
            }  # fmt: skip
            found = [about | row for row in measure(trained, dataset.kind, puzzles, args.device, plan)]
            _print(found)
            rows += found
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
    store.folder.write(FILE, buffer.getvalue())
    print(f"{store.folder.location}/{FILE}: {len(rows)} rows")
    return 0


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("trial_id", "dataset", "halting", "planner", "level")),
        ("trained_max_steps", pa.int32()), ("train_steps", pa.int64()), ("train_cpu_minutes", pa.float64()),
        ("seed", pa.int64()), ("device", pa.string()), ("threads", pa.int32()),
        ("method", pa.string()), ("most_steps", pa.int32()), ("trajectories", pa.int32()), ("noise", pa.float64()),
        ("puzzles", pa.int32()),
        *((name, pa.float64()) for name in (
            "exact_accuracy", "token_accuracy", "valid_accuracy", "steps", "flops_per_puzzle", "seconds_per_puzzle",
        )),
    ]
)  # fmt: skip


def _numbers(args: argparse.Namespace, name: str, of: Callable[[str], Any], least: float) -> tuple[Any, ...]:
    """Return an option's numbers in order, none for ``0``: counts of at least ``least``, or noises above 0."""
    text = getattr(args, name)
    try:
        found = sorted({of(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(f"--{name} is {text!r} but must be numbers with commas between them, such as 4,16.") from error
    if found == [0]:
        return ()
    if found[0] < least or found[0] <= 0:
        raise InputError(f"--{name} is {text!r} but must be {'above 0' if not least else f'at least {least:g}'}, or 0.")
    return tuple(found)


def _trained(
    store: ResultsStore, wanted: Sequence[str] | None, device: str
) -> list[tuple[dict[str, Any], ReasonerConfig, Dataset, Trained]]:
    record = store.run() or {}
    trials = {row["trial_id"]: row for row in store.latest_trials().to_pylist() if row["status"] == "success"}
    unknown = sorted(set(wanted or ()) - set(trials))
    if unknown:
        raise InputError(f"--trial {unknown[0]} is no successful trial of {store.folder.location}.")
    found = []
    for trial_id in wanted or trials:
        data = store.folder.sub(f"models/{trial_id}").read("reasoner.pt")
        if data is None:
            continue
        row = trials[trial_id]
        try:
            config = config_of(data)
        except InputError as error:
            raise InputError(f"{store.folder.path(f'models/{trial_id}/reasoner.pt')}: {error}") from error
        dataset = load_dataset(row["dataset"], config, record["seed"], record["settings"].get("dataset_dir"))
        if dataset.fingerprint != row["data_fingerprint"]:
            raise InputError(
                f"{store.folder.location}: the puzzles of {trial_id} have fingerprint {row['data_fingerprint']}, but "
                f"this version draws {dataset.fingerprint}; train it again."
            )
        found.append((row, config, dataset, Trained.read(data, dataset, device)))
    if not found:
        raise InputError(
            f"{store.folder.location} holds no trained reasoner (models/TRIAL/reasoner.pt); finish the run."
        )
    return found


def _levels(dataset: Dataset, most: int) -> list[tuple[str, Puzzles]]:
    levels = {"as trained": dataset.held_out, "harder": dataset.harder}
    return [
        (name, puzzles.take(np.arange(min(most, len(puzzles))))) for name, puzzles in levels.items() if len(puzzles)
    ]


def _print(rows: Sequence[dict[str, Any]]) -> None:
    first = rows[0]
    print(f"{first['trial_id']}: {first['puzzles']} puzzles of {first['dataset']}, {first['level']}")
    print(
        f"{'method':>16} {'at most':>8} {'of':>4} {'noise':>6} {'exact':>7} {'cells':>7} {'steps':>7} {'GFLOP':>8} "
        f"{'ms':>7}"
    )
    for row in rows:
        print(
            f"{row['method']:>16} {row['most_steps']:8} {row['trajectories']:4} {row['noise']:6.2f} "
            f"{100 * row['exact_accuracy']:6.1f}% {100 * row['token_accuracy']:6.1f}% {row['steps']:7.1f} "
            f"{row['flops_per_puzzle'] / 1e9:8.3f} {1000 * row['seconds_per_puzzle']:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    run_main(main)
