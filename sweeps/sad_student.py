"""Distil small students from a teacher's reasoning and actions: loss x divergence x span weights x curriculum x rank.

    python sweeps/sad_student.py --preset demo --set loss=sad
    python sweeps/sad_student.py --preset demo --sweep 'loss=grid(ce, token_kd, sad, guided)'
    python sweeps/sad_student.py --preset ablation --num-samples 5
    python sweeps/sad_student.py --preset demo --num-samples 20 --search optuna
    python sweeps/sad_student.py --num-gpus 1 --teacher Qwen/Qwen3-1.7B --student Qwen/Qwen3-0.6B
    python sweeps/sad_student.py --train-teacher FOLDER      # the adapter of the teacher that ships

The teacher that ships is SmolLM2-135M-Instruct with a LoRA adapter that learned the generated tasks from their expert;
a student is made of its first layers. What a teacher said is kept in ``--teacher-cache``. Trained students are written
to ``models/<trial>/student`` in the run's folder.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.sad_student import SPACE
from sweeps.core import cli, ordinary
from sweeps.core.ordinary import Prepared
from trainables.common.errors import InputError
from trainables.sad_student.config import SadConfig
from trainables.sad_student.data import Source, check_source
from trainables.sad_student.train import train_loop


def main(argv: Sequence[str] | None = None) -> int:
    return ordinary.main(SPACE, add_options, prepare, argv, __doc__)


def add_options(parser: cli.Parser) -> None:
    default = Source()
    parser.add_argument(
        "--teacher",
        default=default.teacher,
        metavar="MODEL",
        help="smollm2-taught, smollm2, a folder or a name on the hub (default: %(default)s)",
    )
    parser.add_argument(
        "--student",
        default=default.student,
        metavar="layers:N|MODEL",
        help="the teacher's first N layers, or a model with its vocabulary (default: %(default)s)",
    )
    parser.add_argument("--teacher-cache", metavar="DIR", help="local folder of what teachers said")
    parser.add_argument("--train-teacher", metavar="DIR", help="train the teacher's adapter, write it to DIR and stop")


def prepare(args: Namespace, config: SadConfig, domains: Mapping[str, Any]) -> Prepared | None:
    if args.train_teacher:
        from trainables.sad_student.pretrain import TeacherConfig, train_teacher

        train_teacher("smollm2", Path(args.train_teacher), TeacherConfig(seed=args.seed))
        return None
    if args.workers_per_trial and config.batch_size % args.workers_per_trial:
        raise InputError(
            f"--workers-per-trial {args.workers_per_trial} cannot share a batch_size of {config.batch_size} evenly; "
            "make one a multiple of the other."
        )
    cache = str(Path(args.teacher_cache).expanduser().absolute()) if args.teacher_cache else None
    source = Source(args.teacher, args.student, args.seed, cache)
    check_source(source)
    # the cache only saves asking the teacher again
    settings = {"source": dataclasses.asdict(source)}
    return Prepared(train_loop, settings, source.fingerprint, extendable=("teacher_cache",))


if __name__ == "__main__":
    cli.run_main(main)
