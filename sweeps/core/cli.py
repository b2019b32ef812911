"""The command line that all sweeps share: its options. How errors leave the program is in `sweeps.core.ending`.

Every option is defined once, here; a sweep's script adds the groups that apply to it (`worker_options` for families
that train one trial at a time, `sweeps.core.arc_options` for sweeps over ARC tasks). Values are checked for form while
they are parsed; settings of the family (``--set``, ``--sweep``, ``--config``) are checked by its search space.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from search_spaces.space import SearchSpace
from sweeps.backend.cluster import in_job
from sweeps.core.ending import run_main
from trainables.common.errors import did_you_mean

__all__ = ["Parser", "common_parser", "location", "new_run_id", "place_options", "run_main", "tracker_options",
           "whole_number", "worker_options"]  # fmt: skip

WANDB_MODES = ("off", "offline", "online")
SEARCHES = ("random", "optuna")
# the largest that Optuna's samplers take
MAX_SEED = 2**32 - 1


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are one line, with the nearest option for a mistyped one.

    Args:
        space: The search space whose settings ``--help`` lists after the options.
        kwargs: Those of `argparse.ArgumentParser`.
    """

    def __init__(self, space: SearchSpace | None = None, **kwargs: Any) -> None:
        # an abbreviation that works today is ambiguous once another option is added
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self._space = space

    def format_help(self) -> str:
        text = super().format_help()
        return f"{text}\n{_settings_help(self._space)}" if self._space else text

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
        space: The search space, for its presets and, in ``--help``, its settings.
        description: What the sweep does, for ``--help``.
    """
    parser = Parser(space, description=description)
    place_options(parser)
    presets = "; ".join(f"{name}: {preset.description}" for name, preset in space.presets.items())
    add = parser.add_argument
    add(
        "--preset",
        type=one_of(tuple(space.presets)),
        default=space.default_preset,
        metavar="|".join(space.presets),
        help=f"{presets} (default: {space.default_preset})",
    )
    add(
        "--num-samples",
        type=whole_number(1),
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
        help="fix a setting of those below, as in --set epochs=8; repeatable, the last one for a name counts",
    )
    add(
        "--sweep",
        dest="sweeps",
        action="append",
        default=[],
        metavar="NAME=DOMAIN",
        help="sweep a setting: draw from 'lr=loguniform(1e-4, 1e-2)' or epochs=4,8,16, try every value of "
        "'epochs=grid(4, 8)', or change this setting alone with 'epochs=ablate(4, 8)'; repeatable",
    )
    add("--config", metavar="FILE", help="YAML file with the sections 'set' and 'sweep'")
    add(
        "--run-id",
        type=_run_id,
        default=new_run_id(),
        metavar="ID",
        help="name of the run; the name of an earlier one continues it (default: a new name)",
    )
    add("--seed", type=whole_number(0, MAX_SEED), default=0, metavar="N", help="seed of the whole sweep (default: 0)")
    tracker_options(parser)
    return parser


def tracker_options(parser: argparse.ArgumentParser) -> None:
    """Add ``wandb``, ``wandb_per_trial`` and ``tensorboard``."""
    add = parser.add_argument
    modes = "|".join(WANDB_MODES)
    add("--wandb", type=one_of(WANDB_MODES), default="off", metavar=modes, help="log to W&B (default: off)")
    add("--wandb-per-trial", action="store_true", help="a W&B run for each trial instead of one for the sweep")
    add("--tensorboard", action="store_true", help="write TensorBoard's files into the run's folder")


def place_options(parser: argparse.ArgumentParser) -> None:
    """Add ``num_gpus``, ``address`` and ``results_dir``: where a sweep runs and where its results go."""
    add = parser.add_argument
    add(
        "--num-gpus", type=whole_number(0), metavar="N", help="GPUs to use (default: what the machine has; 0: CPU only)"
    )
    add("--address", metavar="ADDR", help="Ray cluster to connect to (default: start one on this machine)")
    add(
        "--results-dir",
        type=_results_dir,
        default="results",
        metavar="DIR",
        help="folder or URI of all results; in a submitted job a relative one is in the home folder (default: results)",
    )


def worker_options(parser: argparse.ArgumentParser) -> None:
    """Add ``workers_per_trial`` and ``search``, for families whose trials train one model each."""
    parser.add_argument(
        "--workers-per-trial",
        type=whole_number(0),
        default=1,
        metavar="N",
        help="Ray Train workers of each trial; 0 trains in the trial's own process (default: 1)",
    )
    parser.add_argument(
        "--search",
        type=one_of(SEARCHES),
        default="random",
        metavar="|".join(SEARCHES),
        help="who draws from what is swept (default: random)",
    )


def location(text: str) -> str:
    """Return a local path in full, because workers may run in another folder, and a URI as it is."""
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def folder(text: str) -> str:
    """Return the `location` of a folder, which need not exist; refuse a path on which there is a file."""
    place = location(text)
    if "://" not in place:
        there = next(path for path in (Path(place), *Path(place).parents) if path.exists())
        if not there.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is no folder: {there} is a file")
    return place


def new_run_id(now: datetime | None = None) -> str:
    """Return a name for a new run: the UTC time and four random hex digits, as in ``20250131-235959-1a2b``."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def whole_number(minimum: int, maximum: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{text[:60]!r} must be a whole number of at least {minimum}")
        if number > maximum:
            raise argparse.ArgumentTypeError(f"{text[:60]!r} must be a whole number of at most {maximum}")
        return number

    return parse


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a type of options that takes one of some names, and says which is near another one."""

    def parse(text: str) -> str:
        if text not in names:
            near = did_you_mean(text, names)
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}{near}")
        return text

    return parse


def _settings_help(space: SearchSpace) -> str:
    """Return the settings as argparse shows arguments, as wide as the terminal."""
    # its arguments are shown and never parsed
    shown = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    for heading, settings in space.sections().items():
        group = shown.add_argument_group("settings and their defaults" + (f", {heading}" if heading else ""))
        for setting in settings:
            line = f"{setting.documentation.rstrip('.')} ({setting.values})".replace("`", "").replace("%", "%%")
            group.add_argument(f"{setting.name}={setting.text}", help=line)
    return shown.format_help()


def _results_dir(text: str) -> str:
    # the working directory of a job is Ray's copy of the upload: what is written there is removed with it
    text = os.path.join("~", text) if in_job() and "://" not in text and not text.startswith("~") else text
    place = folder(text)
    # readers of Parquet take a folder called name=value for a column
    if "=" in place.partition("?")[0]:
        raise argparse.ArgumentTypeError(
            f"{place!r} has a '=' in its path, which readers of Parquet files take for a column; "
            "choose a folder without one"
        )
    return text


def _run_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a folder's name: a letter or digit, then at most 99 letters, digits, '.', '-' or '_'"
        )
    return text
