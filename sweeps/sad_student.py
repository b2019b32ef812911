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
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.sad_student import SPACE
from sweeps.core import cli, ordinary
from sweeps.core.ordinary import Prepared
from sweeps.core.sweep import Inputs
from trainables.common.errors import InputError
from trainables.common.family import counts_text
from trainables.sad_student.config import SadConfig
from trainables.sad_student.data import Source, check_source
from trainables.sad_student.files import load_file
from trainables.sad_student.server import started
from trainables.sad_student.train import train_loop


def main(argv: Sequence[str] | None = None) -> int:
    # a server that is started here ends with the sweep
    with ExitStack() as stack:
        return ordinary.main(SPACE, add_options, partial(prepare, stack), argv, __doc__)


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
    parser.add_argument(
        "--trajectories",
        default=default.trajectories,
        metavar="expert|teacher|FILE.jsonl",
        help="learn from the expert's, from those in which the teacher succeeds, or from a file (default: %(default)s)",
    )
    parser.add_argument(
        "--environment",
        type=cli.one_of(("generated", "textworld")),
        default=default.environment,
        metavar="generated|textworld",
        help="problems: tasks with tools, or games of the extra package TextWorld (default: %(default)s)",
    )
    parser.add_argument("--skip-malformed", action="store_true", help="leave out lines of the file that cannot be read")
    parser.add_argument(
        "--teacher-server",
        metavar="URL",
        help="ask the OpenAI-compatible server at http://HOST:PORT/v1, which serves the model of --teacher",
    )
    parser.add_argument("--server-command", metavar="COMMAND", help="start this server first, and stop it at the end")
    parser.add_argument("--teacher-cache", type=cli.folder, metavar="DIR", help="local folder of what teachers said")
    parser.add_argument(
        "--train-teacher", type=cli.folder, metavar="DIR", help="train the teacher's adapter, write it to DIR and stop"
    )


def prepare(stack: ExitStack, args: Namespace, config: SadConfig, domains: Mapping[str, Any]) -> Prepared | None:
    if args.train_teacher:
        from trainables.sad_student.pretrain import TeacherConfig, train_teacher

        train_teacher("smollm2", Path(args.train_teacher), TeacherConfig(seed=args.seed))
        return None
    if args.workers_per_trial and config.batch_size % args.workers_per_trial:
        raise InputError(
            f"--workers-per-trial {args.workers_per_trial} cannot share a batch_size of {config.batch_size} evenly; "
            "make one a multiple of the other."
        )
    given = args.trajectories
    if given not in ("expert", "teacher"):
        given = str(Path(given).expanduser().absolute())
    if args.server_command:
        if not args.teacher_server:
            raise InputError("--server-command needs --teacher-server, the address at which the server will answer.")
        stack.enter_context(started(args.server_command, args.teacher_server))
    # workers may run in another folder
    teacher, student = (
        str(Path(model).expanduser().absolute()) if Path(model).expanduser().is_dir() else model
        for model in (args.teacher, args.student)
    )
    source = Source(
        teacher,
        student,
        args.seed,
        given,
        args.skip_malformed,
        args.teacher_server,
        args.teacher_cache,
        args.environment,
    )
    check_source(source)
    # models and trajectories are known by their fingerprint, wherever they lie; the cache only saves asking again
    settings = {"source": dataclasses.asdict(source)}
    extendable = ("teacher", "student", "trajectories", "teacher_cache", "server_command")
    if source.file is None:
        return Prepared(train_loop, settings, Inputs(source.fingerprint, extendable=extendable))
    loaded = load_file(source.file, source.skip_malformed)
    print(f"{source.file}: {len(loaded.trajectories)} trajectories, dropped: {counts_text(loaded.dropped) or 'none'}")
    inputs = Inputs(
        source.fingerprint, {}, extendable, places={"--trajectories": str(source.file)},
        left_out={"trajectories": loaded.dropped} if loaded.dropped else {},
    )  # fmt: skip
    return Prepared(train_loop, settings, inputs)


if __name__ == "__main__":
    cli.run_main(main)
