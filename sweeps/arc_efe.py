"""Train prompted grid agents by expected free energy: terms and weights x steps x prompt x language model x memory.

    python sweeps/arc_efe.py --preset demo
    python sweeps/arc_efe.py --preset ablation --num-samples 3
    python sweeps/arc_efe.py --preset demo --num-samples 6 --sweep 'lr=loguniform(5e-4, 4e-3)'
    python sweeps/arc_efe.py --preset demo --set lm_training=lora --set epochs=5
    python sweeps/arc_efe.py --num-gpus 1 --set lm=hf:Qwen/Qwen2.5-1.5B
    python sweeps/arc_efe.py --preset demo --data re-arc:DIR --set examples_per_task=8

With several samples one ASHA compares their exact accuracy on validation pairs, then that in cells; variants of an
ablation are all trained to the end, each with the same seeds. The trained systems are written to
``models/<trial>/agent.pt`` in the run's folder, their checkpoints beside them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.arc_efe import SPACE
from search_spaces.space import extremes
from sweeps.core import cli, ordinary
from sweeps.core.arc_options import choose_tasks, combined_counts, data_option
from sweeps.core.ordinary import Prepared
from sweeps.core.sweep import Inputs
from trainables.arc import fingerprint
from trainables.arc_efe.config import EfeConfig
from trainables.arc_efe.data import make_dataset
from trainables.arc_efe.language import known_as, read_config
from trainables.arc_efe.train import train_loop
from trainables.common.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    return ordinary.main(SPACE, add_options, prepare, argv, __doc__)


def add_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--tasks",
        metavar="all|ID,ID|FILE|smallest:N",
        help="tasks to train on, of those that max_side admits (default: the preset's)",
    )
    data_option(parser)


def prepare(args: Namespace, config: EfeConfig, domains: Mapping[str, Any]) -> Prepared:
    if args.workers_per_trial > 1:
        raise InputError(
            f"--workers-per-trial is {args.workers_per_trial}, but one agent trains on one device; give 0 or 1."
        )
    tasks, left_out = choose_tasks(args.data, args.tasks, (args.preset, SPACE.presets[args.preset].tasks))
    sides = extremes(domains["max_side"]) if "max_side" in domains else [config.max_side]
    dataset = make_dataset(tasks, min(sides), config.prompt_pairs)
    models = extremes(domains["lm"]) if "lm" in domains else [config.lm]
    for name in models:
        read_config(name, config.lm_layers)
    ids = list(tasks)
    # data are known by their fingerprint, wherever they lie
    inputs = Inputs(
        fingerprint(tasks),
        {"tasks": ids},
        ("data",),
        left_out=combined_counts(left_out, dataset.left_out),
        known_as={name: known_as(name) for name in models},
    )
    return Prepared(train_loop, {"data": args.data, "tasks": ids}, inputs)


if __name__ == "__main__":
    cli.run_main(main)
