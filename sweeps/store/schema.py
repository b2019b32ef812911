"""The columns of the results: typed, versioned, documented one by one, and checked when a row is written.

Three tables. *trials* has one row for each attempt at a unit of work, keyed by (trial_id, attempt); *history* has one
row for each epoch of each attempt, keyed by (trial_id, attempt, epoch); *predictions* has one row for each held-out
pair of each attempt that was evaluated, keyed by (trial_id, attempt, pair). The columns here are common to all
families; those that a `Family` declares come after them in trials. A family may leave any column but the key empty. A
swept hyperparameter is ``config/<name>``, a metric that nobody declared is ``metric/<name>`` in trials and keeps its
name in history (``grad_norm/<component>``); both are stored by the type of their values.

Where the files lie and how they are written is in `sweeps.store.store`.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from trainables.common.errors import InputError
from trainables.common.family import Column

# Raise it when a column is renamed, retyped or changes its meaning, and teach `upgrade` the way from the old version.
# A new column needs no new version: files without it read as null.
SCHEMA_VERSION = 1

Kind = Literal["trials", "history", "predictions"]

KEYS: dict[Kind, tuple[str, ...]] = {
    "trials": ("trial_id", "attempt"),
    "history": ("trial_id", "attempt", "epoch"),
    "predictions": ("trial_id", "attempt", "pair"),
}

_TEXT, _INT, _REAL, _BOOL, _TIME = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")
_GRID = pa.list_(pa.list_(pa.int8()))

TRIALS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("run_id", _TEXT, "run that the row belongs to"),
    ("sweep", _TEXT, "name of the sweep"),
    ("family", _TEXT, "model family that was trained"),
    ("trial_id", _TEXT, "unit of work: <task_id>-<hash of configuration and seed>; key"),
    ("attempt", _INT, "1 for the first try, one more for each retry after a failure; key"),
    ("task_id", _TEXT, "task that was trained on"),
    ("category", _TEXT, "category of the task"),
    ("sample", _INT, "index of the configuration among those tried on this task, from 0"),
    ("seed", _INT, "seed of the initial weights and of the data order"),
    ("config", _TEXT, "complete resolved configuration, JSON"),
    ("config_hash", _TEXT, "hash of the configuration"),
    ("status", _TEXT, "success, failed, or stopped by the scheduler"),
    ("stop_reason", _TEXT, "why training ended, such as epochs, patience, asha or an error"),
    ("rung", _INT, "epoch of the last rung at which ASHA judged the trial; stop_reason says if it was stopped there"),
    (
        "asha_cutoff",
        _REAL,
        "metric that the trial had to reach at that rung to go on; null for the first trial there, and for a rung of "
        "an earlier session",
    ),
    ("epochs", _INT, "epochs trained, restarts included"),
    ("early_stopped", _BOOL, "whether the trial's own patience ended it"),
    ("final_loss", _REAL, "evaluation loss at the end"),
    ("best_loss", _REAL, "lowest evaluation loss of any epoch"),
    ("seconds", _REAL, "wall time from the start of the trial to its end, pauses between sessions left out"),
    ("busy_seconds", _REAL, "the trial's share of the wall time of the steps it took part in"),
    ("gpu_seconds", _REAL, "the trial's share of accelerator time; 0 on a CPU"),
    ("peak_memory_bytes", _INT, "highest memory of the process or accelerator while the trial ran"),
    ("checkpoint", _TEXT, "path of the trained weights"),
    ("error", _TEXT, "one line that says why the trial failed"),
    ("traceback", _TEXT, "traceback of the failure"),
    ("data_fingerprint", _TEXT, "fingerprint of the data trained on"),
    ("started_at", _TIME, "start of the attempt, in its first session, UTC"),
    ("finished_at", _TIME, "end of the attempt, UTC"),
    ("worker", _INT, "rank of the worker that trained it"),
    ("slot", _INT, "slot of the pack that trained it"),
)

HISTORY: tuple[tuple[str, pa.DataType, str], ...] = (
    ("run_id", _TEXT, "run that the row belongs to"),
    ("trial_id", _TEXT, "trial that the row belongs to; key"),
    ("attempt", _INT, "attempt that the row belongs to; key"),
    ("task_id", _TEXT, "task that was trained on"),
    ("epoch", _INT, "epochs trained at the end of this one, restarts included, from 1; key"),
    ("step", _INT, "optimiser steps taken at the end of the epoch"),
    ("train_loss", _REAL, "mean training loss of the epoch"),
    ("eval_loss", _REAL, "evaluation loss at the end of the epoch"),
    ("lr", _REAL, "learning rate of the epoch's last step"),
    ("grad_norm", _REAL, "norm of the whole gradient before clipping, mean over the epoch"),
    ("examples", _INT, "examples trained on in the epoch"),
    ("tokens", _INT, "tokens trained on in the epoch, padding not counted"),
    ("padded_tokens", _REAL, "tokens computed in training, padding included: the trial's share of its batches"),
    ("seconds", _REAL, "wall time since the end of the epoch before, evaluation and checkpoint included"),
    ("recorded_at", _TIME, "when the report of the epoch arrived, UTC"),
)

PREDICTIONS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("run_id", _TEXT, "run that the row belongs to"),
    ("trial_id", _TEXT, "trial that the row belongs to; key"),
    ("attempt", _INT, "attempt that the row belongs to; key"),
    ("task_id", _TEXT, "task that was trained on"),
    ("pair", _INT, "place among the task's held-out test pairs, from 0; key"),
    ("input", _GRID, "input grid: rows of colours 0 to 9"),
    ("expected", _GRID, "the right answer"),
    ("base", _GRID, "what the base answers before training; null where it writes no grid"),
    ("adapted", _GRID, "the answer after training; null where it is no grid"),
)

_TYPES = {str: _TEXT, int: _INT, float: _REAL, bool: _BOOL}
_DECLARED: dict[Kind, dict[str, tuple[pa.DataType, str]]] = {
    "trials": {name: (dtype, doc) for name, dtype, doc in TRIALS},
    "history": {name: (dtype, doc) for name, dtype, doc in HISTORY},
    "predictions": {name: (dtype, doc) for name, dtype, doc in PREDICTIONS},
}


def schema_of(kind: Kind, extra: Mapping[str, pa.DataType] | None = None, own: Sequence[Column] = ()) -> pa.Schema:
    """Return the schema of a table: the declared columns in order (``doc`` in their metadata), then ``extra``.

    Args:
        kind: Which table.
        extra: Columns that nobody declared, with their types.
        own: The columns that a family declares.
    """
    fields = [pa.field(name, dtype, metadata={"doc": doc}) for name, (dtype, doc) in declared(kind, own).items()]
    fields += [pa.field(name, dtype) for name, dtype in sorted((extra or {}).items())]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "table": kind})


def declared(kind: Kind, own: Sequence[Column] = ()) -> dict[str, tuple[pa.DataType, str]]:
    """Return type and meaning of the columns of a table that are common or that a family declares, in order."""
    if kind != "trials" or not own:
        return _DECLARED[kind]
    return {**_DECLARED[kind], **{column.name: (_TYPES[column.type], column.meaning) for column in own}}


def extra_of(schema: pa.Schema, kind: Kind, own: Sequence[Column] = ()) -> dict[str, pa.DataType]:
    """Return the columns of a schema that nobody declared, with their types."""
    known = declared(kind, own)
    # a metric may have been declared since a file was written
    return {field.name: field.type for field in schema if _column(field.name, kind, known) not in known}


def merge_extra(*columns: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Return the union of extra columns, each with the narrowest type that holds all its values.

    Null gives way to anything and int64 to float64; types that have nothing else in common become string.
    """
    merged: dict[str, pa.DataType] = {}
    for one in columns:
        for name, dtype in one.items():
            merged[name] = _common_type(merged[name], dtype) if name in merged else dtype
    return merged


def extra_columns(rows: Iterable[Mapping[str, Any]], kind: Kind, own: Sequence[Column] = ()) -> dict[str, pa.DataType]:
    """Return the columns that rows of dicts bring and nobody declared, typed by their values."""
    known, found = declared(kind, own), dict[str, pa.DataType]()
    for row in rows:
        for name, value in row.items():
            column = _column(name, kind, known)
            # a metric without a value says nothing of its type; a swept setting may be None
            if column not in known and (value is not None or column.startswith("config/")):
                found[column] = _common_type(found.get(column, pa.null()), _type_of(value))
    return found


def check_row(row: Mapping[str, Any], kind: Kind, own: Sequence[Column] = ()) -> None:
    """Raise TypeError if a value does not fit its declared column or the row lacks a part of its key."""
    known = declared(kind, own)
    for part in KEYS[kind]:
        if row.get(part) is None:
            raise TypeError(f"A row of {kind} has no {part!r}, which is part of its key: {dict(row)!r:.300}.")
    for name, value in row.items():
        column = _column(name, kind, known)
        if column in known:
            _cell(row, column, value, known[column][0], kind)


def fitting(rows: Iterable[Mapping[str, Any]], kind: Kind, own: Sequence[Column] = ()) -> list[dict[str, Any]]:
    """Return rows without the values that do not fit their declared columns; a row without its key is left out."""
    known, kept = declared(kind, own), []
    for row in rows:
        fit = {}
        for name, value in row.items():
            column = _column(name, kind, known)
            try:
                if column in known:
                    _cell(row, column, value, known[column][0], kind)
                fit[name] = value
            except TypeError:
                continue
        if all(fit.get(part) is not None for part in KEYS[kind]):
            kept.append(fit)
    return kept


def to_table(
    rows: Sequence[Mapping[str, Any]],
    kind: Kind,
    extra: Mapping[str, pa.DataType] | None = None,
    own: Sequence[Column] = (),
) -> pa.Table:
    """Cast rows of dicts into a table of the current schema.

    A column that a row does not have is null. A mapping given for ``config`` is written as JSON. A name that nobody
    declared becomes ``metric/<name>`` in trials and keeps its name in the other tables; its type is that of its values,
    and what is no number, text or truth value is written as JSON.

    Args:
        rows: One mapping per row.
        kind: Which table.
        extra: Extra columns that the table gets besides those of the rows, as `merge_extra` returns them.
        own: The columns that a family declares.

    Raises:
        TypeError: If a value does not fit its declared column or a row lacks a part of its key.
    """
    schema = schema_of(kind, merge_extra(extra or {}, extra_columns(rows, kind, own)), own)
    values: dict[str, list[Any]] = {name: [None] * len(rows) for name in schema.names}
    types, known = {field.name: field.type for field in schema}, declared(kind, own)
    for index, row in enumerate(rows):
        check_row({part: row.get(part) for part in KEYS[kind]}, kind)
        for name, value in row.items():
            column = _column(name, kind, known)
            if column in types:
                values[column][index] = _cell(row, column, value, types[column], kind, column not in known)
    return pa.Table.from_arrays([pa.array(values[f.name], f.type) for f in schema], schema=schema)


def upgrade(
    table: pa.Table, kind: Kind, extra: Mapping[str, pa.DataType] | None = None, own: Sequence[Column] = ()
) -> pa.Table:
    """Return a table read from a file of this or an older version under the current schema.

    Columns that the file does not have become null, in declared types; columns that only the file has stay, at the end.

    Args:
        table: What the file holds, with the schema metadata it was written with.
        kind: Which table it is.
        extra: Extra columns that the result gets besides the file's own.
        own: The columns that a family declares. One that the file has as ``metric/<name>`` was not declared then.

    Raises:
        InputError: If a newer version of this project wrote the file, or if it holds another table.
    """
    check_version(table.schema, kind)
    known = declared(kind, own)
    names = {_column(name, kind, known): name for name in table.schema.names}
    schema = schema_of(kind, merge_extra(extra or {}, extra_of(table.schema, kind, own)), own)
    arrays = [
        _cast(table[names[field.name]], field.type, field.name)
        if field.name in names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def check_version(schema: pa.Schema, kind: Kind) -> None:
    """Raise InputError if a file with this schema is of a newer version or holds another table than ``kind``."""
    metadata = schema.metadata or {}
    # files from before the version was recorded are the oldest there are
    version = int(metadata.get(b"schema_version", b"0"))
    if version > SCHEMA_VERSION:
        raise InputError(
            f"A {kind} file has schema version {version}, but this installation reads versions up to {SCHEMA_VERSION}; "
            "update the project to read it."
        )
    table = metadata.get(b"table", kind.encode()).decode()
    if table != kind:
        raise InputError(
            f"A file of the table {table!r} lies where files of {kind!r} belong; move it to its own folder."
        )


def missing_key(schema: pa.Schema, kind: Kind) -> str:
    """Return the column that rows of a table must have and a file with this schema does not; empty where it has all."""
    for name in (*KEYS[kind], *(("status",) if kind == "trials" else ())):
        index, dtype = schema.get_field_index(name), _DECLARED[kind][name][0]
        if index < 0:
            return f"column {name!r}"
        # pandas writes texts of its own as large ones
        if schema.field(index).type not in (dtype, pa.large_string() if dtype == _TEXT else dtype):
            return f"column {name!r} of type {dtype}"
    return ""


def _column(name: str, kind: Kind, known: Mapping[str, Any]) -> str:
    plain = name.removeprefix("metric/")
    if kind != "trials" or plain in known:
        return plain if kind == "trials" else name
    return name if name.startswith(("config/", "metric/")) else f"metric/{name}"


def _type_of(value: Any) -> pa.DataType:
    value = _scalar(value)
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, numbers.Integral):
        return _INT if -(2**63) <= int(value) < 2**63 else _TEXT
    return _REAL if isinstance(value, numbers.Real) else _TEXT


def _cell(
    row: Mapping[str, Any], column: str, value: Any, dtype: pa.DataType, kind: Kind, undeclared: bool = False
) -> Any:
    as_json = undeclared or column == "config"
    try:
        return _convert(value, dtype, as_json)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"Column {column!r} of {kind} holds {dtype}, but trial {row['trial_id']!r} gave "
            f"{value!r:.100} ({type(value).__name__}); give a value of that type or None."
        ) from error


def _common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    return _REAL if {a, b} == {_INT, _REAL} else _TEXT


def _cast(column: pa.ChunkedArray, dtype: pa.DataType, name: str) -> pa.ChunkedArray:
    try:
        return column if column.type == dtype else column.cast(dtype)
    except pa.ArrowException as error:
        raise InputError(
            f"A file of the results has the column {name!r} as {column.type} where {dtype} belongs; move it away."
        ) from error


def _scalar(value: Any) -> Any:
    # numpy scalars and one-element tensors, without importing either library; a longer array becomes a list
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (ValueError, RuntimeError):
        return value.tolist()


def _convert(value: Any, dtype: pa.DataType, as_json: bool) -> Any:
    """Return ``value`` as the Python value that pyarrow stores as ``dtype``; raise TypeError where it does not fit."""
    if dtype == _GRID and value is not None:
        return _grid(value.tolist() if hasattr(value, "tolist") else value)
    value = _scalar(value)
    if value is None:
        return None
    if dtype == _TEXT and (isinstance(value, str) or as_json):
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    if dtype == _BOOL and isinstance(value, bool):
        return value
    if dtype == _REAL and isinstance(value, numbers.Real):
        return float(value)
    if dtype == _INT and isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value):
        # pyarrow itself refuses what 64 bits do not hold, but without naming the column
        if not -(2**63) <= value < 2**63:
            raise OverflowError(f"{value!r} does not fit into 64 bits")
        return int(value)
    if dtype == _TIME and isinstance(value, datetime) and value.tzinfo is not None:
        return value
    raise TypeError(f"{value!r:.100} is not of type {dtype}")


def _grid(rows: Any) -> list[list[int]]:
    # bytes() refuses what is no whole number from 0 to 255, many times faster than a look at each cell
    if not isinstance(rows, list) or not all(isinstance(row, list) and max(bytes(row), default=0) <= 9 for row in rows):
        raise ValueError("a grid is a list of rows of colours from 0 to 9")
    return rows
