"""Train recursive reasoners on generated puzzles: halting x planner x schedule x width.

    python sweeps/recursive_reasoner.py --preset demo --set halting=dqn
    python sweeps/recursive_reasoner.py --preset demo --num-samples 3 --sweep 'halting=grid(fixed, bce, dqn)'
    python sweeps/recursive_reasoner.py --preset ablation --num-samples 3
    python sweeps/recursive_reasoner.py --preset demo --num-samples 20 --search optuna
    python sweeps/recursive_reasoner.py --num-gpus 1 --dataset sudoku9
    python sweeps/recursive_reasoner.py --dataset sudoku9 --dataset-dir DIR --dataset-only --set train_puzzles=100000
    python sweeps/recursive_reasoner.py --preset demo --dataset mixed     # shown as text, image or grid: capsules

With several samples one ASHA compares their exact accuracy on held-out puzzles; variants of an ablation are all trained
to the end, each with the same seeds. The trained models are written to ``models/<trial>/reasoner.pt`` in the run's
folder, their checkpoints beside them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.recursive_reasoner import SPACE
from search_spaces.space import extremes
from sweeps.backend.shards import build
from sweeps.core import cli, ordinary
from sweeps.core.ordinary import Prepared
from sweeps.core.sweep import Inputs
from trainables.common.checkpoints import Checkpoints
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.puzzles.kinds import KINDS, kind_of
from trainables.puzzles.shards import Plan
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import load_dataset
from trainables.recursive_reasoner.model import uses_capsules
from trainables.recursive_reasoner.train import identity, train_loop


def main(argv: Sequence[str] | None = None) -> int:
    return ordinary.main(SPACE, add_options, prepare, argv, __doc__)


def add_options(parser: cli.Parser) -> None:
    parser.add_argument("--dataset", metavar="|".join(KINDS), help="puzzles to train on (default: the preset's)")
    parser.add_argument(
        "--dataset-dir",
        type=cli.folder,
        metavar="DIR",
        help="folder or URI of generated puzzles; what is missing in it is built first (default: keep them in memory)",
    )
    parser.add_argument("--dataset-only", action="store_true", help="build the puzzles in --dataset-dir and stop")
    parser.add_argument(
        "--checkpoint",
        type=cli.folder,
        metavar="DIR",
        help="go on from the newest checkpoint of a trial of another run, RUN_DIR/models/TRIAL; one trial only",
    )


def prepare(args: Namespace, config: ReasonerConfig, domains: Mapping[str, Any]) -> Prepared | None:
    if args.workers_per_trial and config.batch_size % args.workers_per_trial:
        raise InputError(
            f"--workers-per-trial {args.workers_per_trial} cannot share a batch_size of {config.batch_size} evenly; "
            "make one a multiple of the other."
        )
    name = args.dataset or SPACE.presets[args.preset].tasks
    if args.dataset_dir or args.dataset_only:
        if not args.dataset_dir:
            raise InputError("--dataset-only needs --dataset-dir, the folder to build in.")
        plan = Plan(kind_of(name, config.maze_side, config.arc_side, config.givens), args.seed)
        if not plan.kind.generated:
            raise InputError(f"--dataset-dir is for generated puzzles; --dataset {name} needs no building.")
        build(plan, args.dataset_dir, plan.shards_for(config.train_puzzles, config.held_out_puzzles), args.address)
    dataset = load_dataset(name, config, args.seed, args.dataset_dir)
    if config.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size is {config.batch_size}, more than the {len(dataset.train)} puzzles of --dataset {name}."
        )
    for front_end in extremes(domains["front_end"]) if "front_end" in domains else [config.front_end]:
        uses_capsules(front_end, dataset.kind.modalities)
    if dataset.rules > len(dataset.kind.modalities) and not config.prefix:
        raise InputError(
            f"prefix is 0, but --dataset {name} tells its {dataset.rules} rules apart by it; give 1 or more."
        )
    if args.dataset_only:
        print(f"{args.dataset_dir}: {len(dataset.train)} + {len(dataset.held_out)} puzzles, {dataset.fingerprint}")
        return None
    if args.checkpoint:
        if args.num_samples > 1 or domains:
            raise InputError(
                f"--checkpoint {args.checkpoint} goes with one trial; leave --num-samples and --sweep out."
            )
        kept = Checkpoints(Folder(args.checkpoint).sub("checkpoints"), config.keep_checkpoints)
        if not kept.newest(identity(config, dataset, args.seed)):
            raise InputError(
                f"--checkpoint {args.checkpoint} holds no checkpoint to go on from; give RUN_DIR/models/TRIAL."
            )
    settings = {
        "dataset": name,
        "data_seed": args.seed,
        "dataset_dir": args.dataset_dir,
        "checkpoint": args.checkpoint,
    }
    # the puzzles are known by their fingerprint, wherever they lie
    extendable = ("dataset_dir", "dataset_only")
    inputs = Inputs(dataset.fingerprint, {"dataset": name}, extendable, left_out=dataset.left_out)
    return Prepared(train_loop, settings, inputs)


if __name__ == "__main__":
    cli.run_main(main)
