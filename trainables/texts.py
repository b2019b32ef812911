"""Text tasks of one's own: a folder of files, what their rows say, and which of them are held out.

``DIR/<task>.jsonl`` is a task, and so is ``DIR/<task>.parquet`` or a folder ``DIR/<task>/`` (a data set that
``datasets`` saved to disk, or files that begin with ``train`` and ``test``). ``DIR/<task>.test.jsonl`` holds its test
rows; without one a hash of the prompts decides. ``DIR/tasks.yaml`` may give a task a category and settings of its own.
A row is ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}``.

How rows become tokens is in `trainables.atomic_lora.text_tokens`.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from trainables.common.errors import InputError, did_you_mean
from trainables.common.text import parse_json, read_text

# how ``--data`` names such a folder
PREFIX = "jsonl:"
SETTINGS = "tasks.yaml"
SUFFIXES = (".jsonl", ".parquet")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
FORMATS = '{"prompt", "completion"}, {"messages"} or {"text"}'
# the share of a task's prompts that is held out for the test, and as many for validation; and the most of each
HELD, MOST_TEST, MOST_VALIDATION = 0.1, 200, 50
# a near-repeat shares this much of its runs of five words with a held-out row; a run that more of a task's rows have is
# a template's, and texts with fewer runs of their own are compared as wholes
SHINGLE, NEAR, TEMPLATE, LEAST_SHINGLES = 5, 0.7, 0.1, 8

Prompt = str | tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class TextRow:
    """What a model is shown and what it is to write.

    Attributes:
        prompt: Text, or the messages of a conversation so far, which go through the tokenizer's chat template; ``""``
            where the row is one running text.
        completion: Text; after messages that of the assistant's next one.
    """

    prompt: Prompt
    completion: str

    @property
    def question(self) -> str:
        """The text that two rows are compared by: the prompt, or the running text."""
        if isinstance(self.prompt, str):
            return self.prompt or self.completion
        return "\n".join(str(message.get("content") or "") for message in self.prompt)


@dataclass(frozen=True)
class TextTask:
    """A task's rows.

    Attributes:
        id: Its name.
        train: Rows to train on.
        validation: Rows that weights are chosen by.
        test: Rows that nothing but the final evaluation sees.
        repeats: Rows of the file that are in no set, because a held-out row repeats them or nearly does.
    """

    id: str
    train: tuple[TextRow, ...]
    validation: tuple[TextRow, ...]
    test: tuple[TextRow, ...]
    repeats: int


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's rows are, and what ``tasks.yaml`` says of it.

    Attributes:
        train: Files of its rows.
        test: Files of its own test rows; none where they are held out from the others.
        category: Its category.
        settings: Settings of its own by name, as they are written.
    """

    train: tuple[Path, ...]
    test: tuple[Path, ...] = ()
    category: str = "text"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of its files, which orders tasks by size before any is read."""
        return sum(file.stat().st_size for file in (*self.train, *self.test))


def is_text(data: str) -> bool:
    """Return whether ``--data`` names a folder of text tasks."""
    return data.startswith(PREFIX)


def find_tasks(data: str) -> dict[str, TaskFiles]:
    """Return the tasks of a folder by name, sorted, without reading their rows.

    Args:
        data: ``jsonl:DIR``.

    Raises:
        InputError: If there is no such folder, it holds no task, a name cannot be used, or ``tasks.yaml`` is wrong.
    """
    folder = Path(data.removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise InputError(f"--data {data}: {folder} is no folder; give one with a file <task>.jsonl for each task.")
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files = _files_of_folder(entry)
            if files[0]:
                name, whole = entry.name, (train, test)
                for found, part in zip(whole, files, strict=True):
                    found.setdefault(name, []).extend(part)
        elif entry.suffix in SUFFIXES:
            own = test if entry.stem.endswith(".test") else train
            own.setdefault(entry.stem.removesuffix(".test"), []).append(entry)
    if not train:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise InputError(f"--data {data}: there is no <task>.jsonl, <task>.parquet or data set in it, but {there}.")
    for name in sorted({*train, *test}):
        if not NAME.fullmatch(name):
            raise InputError(f"{folder}: a task cannot be called {name!r}; use letters, digits, '.', '-' and '_'.")
        if name not in train:
            raise InputError(f"{test[name][0]} holds test rows of {name!r}, but there are no rows to train it on.")
        twice = [path for path in train[name] if path.parent == folder]
        if len(twice) > 1 or (twice and len(train[name]) > 1):
            raise InputError(f"{folder} holds the task {name!r} twice: {', '.join(str(p) for p in train[name][:2])}.")
    said = _read_settings(folder / SETTINGS, train)
    return {
        name: TaskFiles(
            tuple(train[name]), tuple(test.get(name, ())), str(said.get(name, {}).get("category", "text")),
            said.get(name, {}).get("set") or {},
        )
        for name in sorted(train)
    }  # fmt: skip


def load_task(task_id: str, files: TaskFiles) -> TextTask:
    """Read a task and hold out its test and validation rows, the same ones whenever its rows are the same.

    Rows of one prompt are held out together. No row that repeats the prompt of a test row, or nearly does (see
    `near_repeats`), is trained or validated on, and none that repeats a validation row is trained on.

    Raises:
        InputError: If a file cannot be read, a row is of no known form, or too few rows are left to train on.
    """
    rows, test = _read(files.train), _read(files.test)
    count = len(rows)
    if not files.test:
        test, rows = _held_out(rows, MOST_TEST)
    rows = _without(rows, near_repeats(rows, test))
    validation, rows = _held_out(rows, MOST_VALIDATION)
    rows = _without(rows, near_repeats(rows, validation))
    if not rows:
        raise InputError(
            f"{files.train[0]} holds {count} rows, of which none is left to train on once test and validation rows "
            "and what repeats them are held out; give it more rows with different prompts."
        )
    used = len(rows) + len(validation) + (0 if files.test else len(test))
    return TextTask(task_id, tuple(rows), tuple(validation), tuple(test), count - used)


def fingerprint(task: TextTask) -> str:
    """Return 16 hex digits that change whenever a row of a task, or its set, does."""
    digest = hashlib.sha256()
    for part in (task.train, task.validation, task.test):
        digest.update(json.dumps([[row.prompt, row.completion] for row in part], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def near_repeats(rows: Sequence[TextRow], held: Sequence[TextRow]) -> set[int]:
    """Return the places of the rows that repeat a held-out one.

    One repeats another whose question is the same but for case, white space and punctuation; or whose runs of five
    words are for 70 % the same, of those that fewer than a tenth of all rows have: so a template that all rows share
    makes no repeats.
    """
    texts, others = ([normal(row.question) for row in part] for part in (rows, held))
    known = set(others)
    found = {place for place, text in enumerate(texts) if text in known}
    shingles, held_shingles = ([_shingles(text) for text in part] for part in (texts, others))
    common = Counter(shingle for part in (*shingles, *held_shingles) for shingle in part)
    most = max(2.0, TEMPLATE * (len(texts) + len(others)))
    rare = {shingle for shingle, times in common.items() if times <= most}
    owners: dict[str, list[int]] = defaultdict(list)
    sizes = []
    for place, of_row in enumerate(held_shingles):
        own = of_row & rare
        sizes.append(len(own))
        if len(own) >= LEAST_SHINGLES:
            for shingle in own:
                owners[shingle].append(place)
    for place, of_row in enumerate(shingles):
        own = of_row & rare
        shared = Counter(owner for shingle in own for owner in owners.get(shingle, ()))
        if any(both >= NEAR * (len(own) + sizes[owner] - both) for owner, both in shared.items()):
            found.add(place)
    return found


def normal(text: str) -> str:
    """Return what texts have in common that differ in case, white space and punctuation alone."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split()) or text.strip()


def _shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def _held_out(rows: Sequence[TextRow], most: int) -> tuple[list[TextRow], list[TextRow]]:
    """Return the rows of a tenth of the prompts, at least one and at most ``most``, and the others, in their order."""
    keys = [normal(row.question) for row in rows]
    order = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    chosen = set(order[: min(most, max(1, int(len(order) * HELD)))])
    held = [row for row, key in zip(rows, keys, strict=True) if key in chosen]
    return held, [row for row, key in zip(rows, keys, strict=True) if key not in chosen]


def _without(rows: Sequence[TextRow], places: set[int]) -> list[TextRow]:
    return [row for place, row in enumerate(rows) if place not in places]


# --------------------------------------------------------------------------------------------------------------- files


def _files_of_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder's training rows and of its test rows; none where it is no data set."""
    if (folder / "dataset_dict.json").is_file():
        return _saved(folder / "train"), _saved(folder / "test")
    if (folder / "state.json").is_file():
        return _saved(folder), []
    inside = sorted(path for place in (folder, folder / "data") if place.is_dir() for path in place.iterdir())
    files = [path for path in inside if path.suffix in SUFFIXES and not path.name.startswith(".")]
    return ([p for p in files if p.name.startswith("train")], [p for p in files if p.name.startswith("test")])


def _saved(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set that ``datasets`` saved to disk; none where there is none."""
    state = folder / "state.json"
    if not state.is_file():
        return []
    content = parse_json(read_text(state, str(state)), str(state))
    try:
        return [folder / file["filename"] for file in content["_data_files"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{state} is not one that datasets wrote: {error!r}.") from error


def _read_settings(file: Path, known: Iterable[str]) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        return {}
    try:
        content = yaml.safe_load(read_text(file, str(file)))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(said, dict) for said in content.values()):
        raise InputError(f"{file} must map names of tasks to 'category' and 'set', as in 'sums: {{set: {{rank: 8}}}}'.")
    for name, said in content.items():
        if name not in set(known):
            raise InputError(f"{file} names the unknown task {name!r}{did_you_mean(str(name), known) or '.'}")
        other = sorted(map(str, said.keys() - {"category", "set"}))
        if other or not isinstance(said.get("set", {}), dict):
            raise InputError(f"{file}, {name}: only 'category' and 'set' (a mapping) are read, not {', '.join(other)}.")
    return content


def _read(files: Sequence[Path]) -> list[TextRow]:
    rows = [_row(values, where) for file in files for where, values in _RECORDS[file.suffix](file)]
    if files and not rows:
        raise InputError(f"{files[0]} holds no row.")
    return rows


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(file, str(file)).split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, parse_json(line, where)


def _table(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file) if file.suffix == ".parquet" else pa.ipc.open_stream(file.read_bytes()).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file} cannot be read as a table: {error}.") from error
    for number, values in enumerate(table.to_pylist(), 1):
        # a column that other rows have is null here
        yield f"{file}, row {number}", {name: value for name, value in values.items() if value is not None}


_RECORDS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _json_lines, ".parquet": _table, ".arrow": _table,
}  # fmt: skip


def _row(values: Any, where: str) -> TextRow:
    if not isinstance(values, dict):
        raise InputError(f"{where} is no JSON object; give {FORMATS}.")
    if "messages" in values:
        return _conversation(values["messages"], where)
    prompt, completion = values.get("prompt"), values.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return _conversation([*prompt, *completion], where)
    if "text" in values and prompt is None:
        prompt, completion = "", values["text"]
    if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
        raise InputError(
            f"{where} has {', '.join(sorted(map(str, values)))}; give {FORMATS}, texts that are not empty."
        )
    return TextRow(prompt, completion)


def _conversation(messages: Any, where: str) -> TextRow:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages
    ):
        raise InputError(f'{where}: messages must be a list of {{"role", "content"}}.')
    *before, last = messages or [{}]
    if not before or last.get("role") != "assistant" or not isinstance(last.get("content"), str) or not last["content"]:
        raise InputError(f"{where}: the last of several messages must be the assistant's, with text in 'content'.")
    # of a table's structs: fields that only other messages have
    return TextRow(tuple({k: v for k, v in m.items() if v is not None} for m in before), last["content"])
