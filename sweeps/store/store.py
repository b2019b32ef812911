"""The results of one run: a folder of Parquet files that only grows, and a record of the run.

``results/<sweep>/<run_id>/`` holds ``run.json``, ``trials/``, ``history/`` and ``predictions/`` (columns:
`sweeps.store.schema`), and the ``checkpoints/`` and ``adapters/`` that workers write. One process writes rows; any
number read. Each flush writes whole files, trials last, and drops rows whose key the store has, so that after a kill at
any moment the same work can be handed in again and a plain ``pandas.read_parquet`` still sees every row once. All files
of a table have the same columns, because Parquet readers take them from the first file: when a row brings a new column,
the files already written get it too, one atomic replacement at a time.

A lock keeps two processes that would write one run apart (`sweeps.store.lock`); should a key be there twice all the
same, readers take its first row. What the rows add up to is in `sweeps.store.summary`, which ``python -m
sweeps.results`` prints.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sweeps.store.lock import RunLock
from sweeps.store.schema import (
    KEYS,
    Kind,
    check_row,
    check_version,
    extra_of,
    merge_extra,
    missing_key,
    schema_of,
    to_table,
    upgrade,
)
from trainables.common.errors import InputError
from trainables.common.family import UNKNOWN, Family, find_family
from trainables.common.folder import Folder, remove_empty
from trainables.common.text import json_kind, parse_json

Rows = Sequence[Mapping[str, Any]]

# statuses after which a unit of work is not done again
FINISHED = ("success", "stopped")


class ResultsStore:
    """The results folder of one run.

    Args:
        results_dir: Local path or URI of the folder of all results.
        sweep: Name of the sweep.
        run_id: Name of the run, unique within the sweep.

    Attributes:
        folder: The run's folder, ``<results_dir>/<sweep>/<run_id>``.
        family: What the run's family declares of its columns.
        lock: To be held by who writes.

    Raises:
        InputError: If no file system handles ``results_dir``.
    """

    def __init__(self, results_dir: str | os.PathLike[str], sweep: str, run_id: str) -> None:
        self.sweep, self.run_id = sweep, run_id
        self.folder = open_folder(results_dir).sub(f"{sweep}/{run_id}")
        self.lock = RunLock(self.folder)
        self._parts: dict[Kind, Folder] = {kind: self.folder.sub(kind) for kind in KEYS}
        self._written: dict[Kind, _Written] = {}
        # folders that `create` made, and the record that it replaced; None where there is nothing to take back
        self._made: list[str] | None = None
        self._replaced: bytes | None = None

    @cached_property
    def family(self) -> Family:
        """What the run's record holds of its family; for runs from before it did, what the project has of its name."""
        declared = (self.run() or {}).get("family")
        if declared:
            return Family.from_declaration(declared)
        for rows in self._map("trials", lambda file: file.read(columns=["family"]).to_pylist()):
            if rows and rows[0].get("family"):
                return find_family(rows[0]["family"])
        return UNKNOWN

    @classmethod
    def open(cls, run_dir: str) -> ResultsStore:
        """Return the store of an existing run by the path or URI of its folder; raise InputError if there is none."""
        place, mark, options = run_dir.partition("?") if "://" in run_dir else (run_dir, "", "")
        location = place.rstrip("/") if "://" in place else os.path.abspath(os.path.expanduser(place))
        parts = location.rsplit("/", 2)
        store = cls(parts[0] + mark + options, *parts[1:]) if len(parts) == 3 and "" not in parts[1:] else None
        if store is None or store.run() is None:
            raise InputError(
                f"{run_dir!r} has no run.json; give the folder of one run: <results-dir>/<sweep>/<run id>."
            )
        return store

    def run(self) -> dict[str, Any] | None:
        """Return the record of the run, or None before `create`. Raises InputError if run.json is not readable."""
        where = self.folder.path("run.json")
        self._require_folders()
        try:
            data = self.folder.read("run.json")
        except OSError as error:
            raise InputError(f"{where} cannot be read ({error}); repair it or choose another --run-id.") from error
        if data is None:
            return None
        try:
            record = parse_json(data, "it")
            wrong = record_flaw(record)
        except InputError as error:
            wrong = str(error).rstrip(".")
        if wrong:
            raise InputError(f"{where} is not the record of a run ({wrong}); repair it or choose another --run-id.")
        return dict(record)

    def begin(self, run: Mapping[str, Any]) -> None:
        """Take the lock and `create`. Raises as these do; then the lock is given up."""
        absent = self.folder.absent()
        self.lock.acquire()
        try:
            self.create(run, absent)
        except BaseException:
            self.lock.release()
            raise

    def create(self, run: Mapping[str, Any], absent: list[str] | None = None) -> None:
        """Begin a session of the run: write run.json, or check that the run in the folder is the same and continue it.

        ``settings`` and ``data_fingerprint`` of ``run`` must equal the stored ones but for the names in
        ``run["extendable"]`` (a nested setting is named ``outer.inner``; naming ``outer`` covers it), and for options
        that the stored run does not know and that this one leaves out. Where ``fingerprints`` has those of single
        tasks, they must be equal for the tasks of both instead. ``sessions`` lists each session with its command; of
        the other fields ``settings``, ``extendable``, ``family`` and ``data_fingerprint`` are the last session's,
        ``fingerprints`` and ``left_out`` are of the tasks of all sessions, the rest is the first's. What a kill may
        have left is removed: half-written Parquet files, and checkpoints of units that are finished.

        Args:
            run: What `sweeps.store.record.run_record` returns.
            absent: The folders on the way to the run's that its start makes, where some are made already.

        Raises:
            InputError: If the stored run has other settings or data.
            OSError: If the folder cannot be written, see `sweeps.core.checks.results`.
        """
        new = json.loads(json.dumps({**run, "sweep": self.sweep, "run_id": self.run_id}, default=str))
        session = {name: new.get(name) for name in ("command", "started_at", "settings", "git", "versions", "hardware")}
        stored = self.run()
        if stored is None:
            stored = {**new, "sessions": [session]}
            self._made = self.folder.absent() if absent is None else absent
        else:
            self._check_same(stored, new)
            self._replaced = self.folder.read("run.json")
            sessions = [*stored.get("sessions", []), session]
            last = {name: new[name] for name in ("settings", "extendable", "family", "data_fingerprint")}
            before, now = stored.get("fingerprints", {}), new.get("fingerprints", {})
            counts = {
                name: own for name, own in stored.get("left_out", {}).items() if name in before.keys() - now.keys()
            }
            joined = {"fingerprints": {**before, **now}, "left_out": {**counts, **new.get("left_out", {})}}
            stored = {**stored, **last, **joined, "sessions": sessions}
        finished = self.finished()
        self.__dict__.pop("family", None)
        self.folder.write("run.json", json.dumps(stored, indent=2).encode())
        for folder in self._parts.values():
            self._remove_half_written(folder)
        self.delete_checkpoints(finished)

    @contextmanager
    def withdrawn_if_refused(self) -> Iterator[None]:
        """`withdraw` where the ``with`` block raises InputError."""
        try:
            yield
        except InputError:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Give up the lock, and take back what `create` wrote if nothing else was written of the run since.

        This is for a start that was refused.
        """
        self.lock.release()
        if self._replaced is not None:
            self.folder.write("run.json", self._replaced)
        elif self._made is not None and not {*KEYS, "checkpoints", "adapters", "models"} & set(self.folder.folders()):
            if self.folder.root in self._made:
                self.folder.delete_folder("")
            else:
                self.folder.delete("run.json")
            remove_empty(self._made[1:])

    def append(self, trials: Rows = (), history: Rows = (), predictions: Rows = ()) -> None:
        """Write rows whose keys are not in the store yet: history, predictions, then trials, each as one whole file.

        Of rows with the same key the first stays. ``run_id`` and ``sweep`` are filled in.

        Raises:
            TypeError: If a row does not fit the schema; then nothing is written.
            OSError: If the folder cannot be written; the same rows may be handed in again.
        """
        if trials or history or predictions:
            self._made = self._replaced = None
        # a trial's row says that it is done, so it comes after everything that belongs to it
        given: dict[Kind, Rows] = {"history": history, "predictions": predictions, "trials": trials}
        fresh = {kind: self._fresh(kind, rows) for kind, rows in given.items()}
        tables = {
            kind: to_table(list(rows.values()), kind, self._loaded(kind).extra, self.family.columns)
            for kind, rows in fresh.items()
            if rows
        }
        for kind, table in tables.items():
            try:
                self._write(kind, table)
                self._written[kind].keys |= fresh[kind].keys()
            except BaseException:
                # Ctrl-C or a lost connection may come after the file is complete: only the files know what is in them
                self._written.pop(kind, None)
                raise

    def trials(self) -> pa.Table:
        """Return every row of the trials table, one per attempt, in the order of writing."""
        return self._read_all("trials")

    def history(self) -> pa.Table:
        """Return every row of the history table, in the order of writing."""
        return self._read_all("history")

    def predictions(self) -> pa.Table:
        """Return every row of the predictions table, in the order of writing; none where a run kept none."""
        return self._read_all("predictions")

    def latest_trials(self) -> pa.Table:
        """Return the row of the last attempt of each trial, in the order of writing."""
        return latest_attempts(self.trials())

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the units of work that are done (status success or stopped) by trial id."""
        table = self.trials()
        done = latest_attempts(table.filter(pc.is_in(table["status"], pa.array(FINISHED))))
        return {row["trial_id"]: row for row in done.to_pylist()}

    def attempts(self) -> dict[str, int]:
        """Return the number of the last attempt in the trials table by trial id."""
        table = self.latest_trials()
        return dict(zip(table["trial_id"].to_pylist(), table["attempt"].to_pylist(), strict=True))

    def delete_checkpoints(self, trial_ids: Container[str]) -> None:
        """Remove what trials would go on from: the file of a packed adapter, the folder of another family's trial."""
        checkpoints = self.folder.sub("checkpoints")
        for name in checkpoints.names():
            if name.removesuffix(".before").removesuffix(".safetensors") in trial_ids:
                checkpoints.delete(name)
        for name in checkpoints.folders():
            if name in trial_ids:
                checkpoints.delete_folder(name)

    def _require_folders(self) -> None:
        """Raise InputError where something else lies in the place of the run's folder, one within it, or run.json."""
        if not self.folder.is_local:
            # object stores have no folders
            return
        root = self.folder.root
        folders = [root.rpartition("/")[0], root, *(f"{root}/{name}" for name in (*KEYS, "checkpoints"))]
        for info in self.folder.fs.get_file_info([*folders, f"{root}/run.json"]):
            is_record = info.base_name == "run.json"
            if info.type == (pafs.FileType.Directory if is_record else pafs.FileType.File):
                lies, belongs = ("a folder", "a file") if is_record else ("a file", "a folder")
                raise InputError(f"{info.path} is {lies} where {belongs} of a run belongs; move it away.")

    def _remove_half_written(self, folder: Folder) -> None:
        # Polars refuses a folder that holds files of other kinds, hidden ones included
        for info in folder.fs.get_file_info(pafs.FileSelector(folder.root, allow_not_found=True)):
            if info.base_name.startswith(".") and info.base_name.endswith(".tmp"):
                folder.delete(info.base_name)

    def _check_same(self, stored: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        extendable = set(new["extendable"])
        old, now = ({**_data(one, other), **_flat(one["settings"])} for one, other in ((stored, new), (new, stored)))
        for name in [*now, *(name for name in old if name not in now)]:
            parts = name.split(".")
            if extendable & {".".join(parts[: n + 1]) for n in range(len(parts))}:
                continue
            if name not in old and now[name] is None:
                # an option that older versions did not write down, and that is not used
                continue
            before, after = (json.dumps(side[name]) if name in side else "not set" for side in (old, now))
            if before != after:
                raise InputError(
                    f"Run {self.run_id!r} in {self.folder.location} has {name} = {before}, but this command has "
                    f"{after}; start it with the same settings to continue it, or choose another --run-id."
                )

    def _fresh(self, kind: Kind, rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        known = self._loaded(kind).keys
        fresh: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        own = {"run_id": self.run_id, **({"sweep": self.sweep} if kind == "trials" else {})}
        for row in rows:
            key = tuple(row.get(part) for part in KEYS[kind])
            if key not in known:
                fresh.setdefault(key, {**own, **row})
        return fresh

    def _loaded(self, kind: Kind) -> _Written:
        """Return what the store holds of a table, read from the files at first use."""
        if kind not in self._written:
            parts = self._map(kind, lambda file: (file.schema_arrow, file.read(columns=list(KEYS[kind]))))
            for schema, _ in parts:
                check_version(schema, kind)
            own = self.family.columns
            extra = merge_extra(*(extra_of(schema, kind, own) for schema, _ in parts))
            keys = {
                key for _, table in parts for key in zip(*(c.to_pylist() for c in table.itercolumns()), strict=True)
            }
            self._written[kind] = _Written(keys, extra)
            # an older version wrote some of the files, or a kill came between two replacements
            if any(not schema.equals(schema_of(kind, extra, own)) for schema, _ in parts):
                self._widen(kind, extra)
        return self._written[kind]

    def _write(self, kind: Kind, table: pa.Table) -> None:
        written, extra = self._written[kind], extra_of(table.schema, kind, self.family.columns)
        if extra != written.extra:
            self._widen(kind, extra)
            written.extra = extra
        name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        self._parts[kind].write(name, _parquet(table))

    def _widen(self, kind: Kind, extra: Mapping[str, pa.DataType]) -> None:
        folder, own = self._parts[kind], self.family.columns
        schema = schema_of(kind, extra, own)
        for name in folder.names(".parquet"):
            table = _read_part(folder, name, kind, lambda file: file.read())
            if not table.schema.equals(schema):
                folder.write(name, _parquet(upgrade(table, kind, extra, own)))

    def _read_all(self, kind: Kind) -> pa.Table:
        tables, own = self._map(kind, lambda file: file.read()), self.family.columns
        extra = merge_extra(*(extra_of(table.schema, kind, own) for table in tables))
        empty = schema_of(kind, extra, own).empty_table()
        return _once(pa.concat_tables([empty, *(upgrade(table, kind, extra, own) for table in tables)]), kind)

    def _map(self, kind: Kind, read: Callable[[pq.ParquetFile], Any]) -> list[Any]:
        """Apply ``read`` to each file of a table as a ParquetFile, in order of name, several at a time."""
        folder = self._parts[kind]
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda name: _read_part(folder, name, kind, read), folder.names(".parquet")))


class RowWriter:
    """Collects rows and hands them to a store at most every ``interval_s`` seconds, so that files are not tiny.

    Only `add` and `flush` write: rows wait as long as neither is called. Once the row of a finished trial is written,
    its checkpoint is removed. Threads may share a writer. Leaving the ``with`` block flushes.
    """

    def __init__(self, store: ResultsStore, interval_s: float = 2.0) -> None:
        self.store = store
        self.interval_s = interval_s
        self._waiting: dict[Kind, list[Mapping[str, Any]]] = {kind: [] for kind in KEYS}
        self._flushed_at = time.monotonic()
        self._lock = threading.RLock()

    def add(self, trials: Rows = (), history: Rows = (), predictions: Rows = ()) -> None:
        """Take rows; flush if the interval has passed. Raises TypeError, and takes none, if a row does not fit."""
        # found here, a bad row cannot hold back the good ones that wait beside it
        given: dict[Kind, Rows] = {"trials": trials, "history": history, "predictions": predictions}
        for kind, rows in given.items():
            for row in rows:
                check_row(row, kind, self.store.family.columns)
        with self._lock:
            for kind, rows in given.items():
                self._waiting[kind] += rows
            if time.monotonic() - self._flushed_at >= self.interval_s:
                self.flush()

    def flush(self) -> None:
        """Write all rows that wait. Raises OSError if the folder cannot be written; the rows then go on waiting."""
        with self._lock:
            self.store.append(**self._waiting)
            finished = {row["trial_id"] for row in self._waiting["trials"] if row.get("status") in FINISHED}
            self._waiting, self._flushed_at = {kind: [] for kind in KEYS}, time.monotonic()
            if finished:
                self.store.delete_checkpoints(finished)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()


def open_folder(results_dir: str | os.PathLike[str]) -> Folder:
    """Return the folder of all results; raise InputError where no file system handles it."""
    try:
        return Folder(results_dir)
    except Exception as error:  # every file system has errors of its own for a location it cannot reach
        place = os.fspath(results_dir)
        raise InputError(f"No file system can open {place!r} ({error}); give a local path or a URI.") from error


def latest_attempts(trials: pa.Table) -> pa.Table:
    """Return the row of the last attempt of each trial in a trials table, in the order of the table."""
    best: dict[str, tuple[int, int]] = {}
    keys = zip(trials["trial_id"].to_pylist(), trials["attempt"].to_pylist(), strict=True)
    for index, (trial_id, attempt) in enumerate(keys):
        best[trial_id] = max(best.get(trial_id, (attempt, index)), (attempt, index))
    return trials.take(pa.array(sorted(index for _, index in best.values()), pa.int64()))


@dataclass
class _Written:
    """What the files of one table hold: the keys of their rows and the extra columns they all have."""

    keys: set[tuple[Any, ...]]
    extra: dict[str, pa.DataType]


def _read_part(folder: Folder, name: str, kind: Kind, read: Callable[[pq.ParquetFile], Any]) -> Any:
    try:
        with folder.fs.open_input_file(folder.path(name)) as stream:
            file = pq.ParquetFile(stream)
            lacks = missing_key(file.schema_arrow, kind)
            if lacks:
                raise InputError(f"{folder.path(name)} holds no rows of {kind}: it has no {lacks}; move it away.")
            return read(file)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{folder.path(name)} is not a readable Parquet file ({error}); move it away: what it held is done again."
        ) from error


def _once(table: pa.Table, kind: Kind) -> pa.Table:
    """Return a table with the first row of each key."""
    keys = table.select(KEYS[kind])
    rows = pa.array(range(len(table)), pa.int64())
    first = keys.append_column("row", rows).group_by(list(KEYS[kind])).aggregate([("row", "min")])["row_min"]
    return table if len(first) == len(table) else table.take(first.sort())


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def record_flaw(record: Any) -> str:
    """Return why a JSON value is not what `ResultsStore.create` writes to run.json; empty where it is."""
    if not isinstance(record, dict):
        return f"it is {json_kind(record)}"
    kinds = {"settings": dict, "extendable": list, "sessions": list, "fingerprints": dict, "left_out": dict}
    for name, kind in kinds.items():
        if not isinstance(record.get(name, None if name == "settings" else kind()), kind):
            return f"{name!r} is {json_kind(record[name])}" if name in record else f"it has no {name!r}"
    if record.get("family"):
        try:
            Family.from_declaration(record["family"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"its family is not declared as one: {type(error).__name__}: {error}"
    return ""


def _data(run: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprints of a run's data that another session must have too: of the tasks of both, or the one."""
    own, others = run.get("fingerprints") or {}, other.get("fingerprints") or {}
    if own and others:
        return {f"the data of {task_id}": own[task_id] for task_id in sorted(own.keys() & others.keys())}
    return {"data_fingerprint": run.get("data_fingerprint")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        # an empty mapping stays a value, or its absence would go unseen
        nested = isinstance(value, Mapping) and value
        flat.update(_flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return flat
