"""Pre-train a base of the atomic LoRA sweep as an ordinary Ray Train trial: the Champion, or a canvas model.

    python sweeps/champion.py --preset demo
    python sweeps/champion.py --num-gpus 1
    python sweeps/champion.py --set architecture=canvas --set minutes=40 --more FILE

The trained model lies in the run's folder, in ``models/<trial>/champion.safetensors`` or ``canvas.safetensors``; give
that folder to ``sweeps/atomic_lora.py --base``. A canvas model trains on generated pairs (``--data``, by default those
that ship, and ``--more`` of ``python -m sweeps.datasets``) and on the official demonstrations.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.champion import SPACES
from search_spaces.space import SearchSpace
from sweeps.core import cli, ordinary
from sweeps.core.arc_options import choose_tasks, combined_counts, data_option
from sweeps.core.ordinary import Prepared
from sweeps.core.sweep import Inputs
from trainables.arc import fingerprint
from trainables.atomic_lora.config import CanvasConfig, ChampionConfig
from trainables.common.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    space = SPACES.get(architecture(words), SPACES["autoregressive"])
    return ordinary.main(space, partial(add_options, space), partial(prepare, space), words, __doc__)


def architecture(words: Sequence[str]) -> str:
    """Return what ``--set architecture=`` says: the other settings depend on it."""
    said = [word.removeprefix("--set=").partition("=") for word in words]
    return next((value for name, _, value in reversed(said) if name == "architecture"), "autoregressive")


def add_options(space: SearchSpace, parser: cli.Parser) -> None:
    data_option(parser)
    parser.add_argument(
        "--tasks", metavar="all|ID,ID|FILE|smallest:N", help="tasks to train on (default: the preset's)"
    )
    if space.config is CanvasConfig:
        parser.set_defaults(data="re-arc")
        parser.add_argument(
            "--more", action="append", default=[], type=cli.location, metavar="FILE",
            help="further pairs to train on, a file of python -m sweeps.datasets; repeatable",
        )  # fmt: skip


def prepare(
    space: SearchSpace, args: Namespace, config: ChampionConfig | CanvasConfig, domains: Mapping[str, Any]
) -> Prepared:
    if args.workers_per_trial > 1:
        raise InputError(
            f"--workers-per-trial {args.workers_per_trial}: a base trains on one device; give 1, or 0 to train "
            "without Ray Train."
        )
    tasks, left_out = choose_tasks(args.data, args.tasks, (args.preset, space.presets[args.preset].tasks))
    chosen = list(tasks)
    settings: dict[str, Any] = {"data": args.data, "tasks": chosen}
    # data are known by their fingerprint, wherever they lie
    if isinstance(config, ChampionConfig):
        from trainables.atomic_lora.pretrain import pretrain

        inputs = Inputs(fingerprint(tasks), {"tasks": chosen}, extendable=("data",), left_out=left_out)
        return Prepared(pretrain, settings, inputs)
    if next(iter(tasks.values())).augment:
        raise InputError(
            f"--data {args.data}: a canvas model knows a task by its number, which does not hold for turned and "
            "recoloured views; give --data re-arc, re-arc:DIR or re-arc:FILE."
        )
    from trainables.atomic_lora.canvas_pretrain import pretrain_canvas, training_data

    settings |= {"more": args.more, "official": True}
    # which further pairs there are, not in which files they are
    data = training_data(settings)
    inputs = Inputs(
        fingerprint(tasks), {"tasks": chosen, "more_fingerprint": data.more_fingerprint}, ("data", "more"),
        left_out=combined_counts(left_out, data.left_out),
    )  # fmt: skip
    return Prepared(pretrain_canvas, settings, inputs)


if __name__ == "__main__":
    cli.run_main(main)
