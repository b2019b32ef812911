"""Pre-train the Champion, the base of the atomic LoRA sweep, as an ordinary Ray Train trial.

    python sweeps/champion.py --preset demo
    python sweeps/champion.py --num-gpus 1

The trained model lies in the run's folder, in ``models/<trial>/champion.safetensors``; give that folder to
``sweeps/atomic_lora.py --base``.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.champion import SPACE
from sweeps.core import cli, ordinary
from sweeps.core.arc_options import data_option, parse_tasks
from sweeps.core.ordinary import Prepared
from trainables.arc import fingerprint, load_tasks
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.pretrain import pretrain
from trainables.common.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    return ordinary.main(SPACE, add_options, prepare, argv, __doc__)


def add_options(parser: cli.Parser) -> None:
    data_option(parser)
    parser.add_argument(
        "--tasks", metavar="all|ID,ID|FILE|smallest:N", help="tasks to train on (default: the preset's)"
    )


def prepare(args: Namespace, config: ChampionConfig, domains: Mapping[str, Any]) -> Prepared:
    if args.workers_per_trial > 1:
        raise InputError(
            f"--workers-per-trial {args.workers_per_trial}: a Champion trains on one device; give 1, or 0 to train "
            "without Ray Train."
        )
    everything = load_tasks(args.data)
    sizes = {task_id: task.tokens for task_id, task in everything.items()}
    chosen = list(parse_tasks(args.tasks or SPACE.presets[args.preset].tasks, list(everything), sizes))
    settings = {"data": args.data, "tasks": chosen}
    # data are known by their fingerprint, wherever they lie
    return Prepared(pretrain, settings, fingerprint(everything), {"tasks": chosen}, extendable=("data",))


if __name__ == "__main__":
    cli.run_main(main)
