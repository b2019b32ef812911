"""Weights & Biases and TensorBoard as views of the rows: one background thread writes to them while the sweep runs.

Rows come here as they go to the store. A tracker that fails or does not answer is dropped with a warning: it neither
slows nor fails a sweep, and at the end it gets a limited time to finish. The record is the Parquet store: ``python -m
sweeps.trackers`` makes W&B runs from it later, or again.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import logging
import math
import os
import queue
import re
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from sweeps.store.store import ResultsStore
from sweeps.store.summary import over_text, summarise

logger = logging.getLogger(__name__)

PROJECT = "arc-sweeps"
# what a tracker may take after the sweep's last row, in seconds
CLOSE_S = 60.0
# and where the sweep was told to stop
HURRY_S = 3.0
# characters of a W&B run's id and name
WANDB_NAME = 120
# so many trials in a row that a tracker fails to show are its own fault
MOST_LOST = 3
# names the folder in which W&B keeps the files of artifacts until they are uploaded
DATA_VARIABLE = "WANDB_DATA_DIR"
# columns of a history row that say which row it is
KEYS = ("run_id", "trial_id", "attempt", "task_id")

Row = Mapping[str, Any]
Render = Callable[[ResultsStore], str]


class Sink(Protocol):
    """A tracker. Called from one thread; what it raises ends it alone."""

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Take rows of trials that ended, and of epochs; those of a trial's epochs come first."""

    def close(self) -> None:
        """Take notice that the store is complete."""


class Trackers:
    """Hands rows to sinks on a thread of its own, which starts with the first rows or at the end.

    Args:
        sinks: Functions that make them, called on that thread.
        close_s: Seconds that `close` waits at most.

    Attributes:
        dropped: Sinks that failed.
    """

    def __init__(self, sinks: Sequence[Callable[[], Sink]], close_s: float = CLOSE_S) -> None:
        self._queue: queue.SimpleQueue[tuple[Sequence[Row], Sequence[Row]] | None] = queue.SimpleQueue()
        self._close_s = close_s
        self.dropped = 0
        # a daemon: a connection that hangs must not keep the command from ending
        self._thread = threading.Thread(target=self._work, args=(list(sinks),), name="trackers", daemon=True)
        self._waits = bool(sinks)

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Hand over rows, without waiting."""
        if not trials and not history:
            return
        self._start()
        if self._thread.is_alive():
            self._queue.put((trials, history))

    def hurry(self) -> None:
        """Leave `close` a few seconds: somebody waits for the end."""
        self._close_s = min(self._close_s, HURRY_S)

    def close(self) -> bool:
        """Let the sinks finish; return whether they did in time."""
        self._start()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(self._close_s)
            if self._thread.is_alive():
                logger.warning(
                    "The trackers did not finish within %.0f s; the results are complete. "
                    "'python -m sweeps.trackers RUN_DIR --wandb online' logs them later.",
                    self._close_s,
                )
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def _start(self) -> None:
        if self._waits:
            self._waits = False
            self._thread.start()

    def _work(self, makers: list[Callable[[], Sink]]) -> None:
        sinks = [sink for sink in (self._guarded(make) for make in makers) if sink is not None]
        while (item := self._queue.get()) is not None and sinks:
            sinks = [sink for sink in sinks if self._guarded(lambda sink=sink: (sink.rows(*item),))]  # type: ignore[misc]
        for sink in sinks:
            self._guarded(sink.close)

    def _guarded(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            self.dropped += 1
            logger.warning("A tracker was dropped (%s: %s); the results are complete.", type(error).__name__, error)
            return None


class WandbSweep:
    """One W&B run for a sweep: its progress while it runs, then tables of trials and epochs, the report, the summary.

    What earlier sessions stored comes first, each report a step, so that a run that goes on has all of its history; an
    offline run replaces the files of its earlier sessions. W&B keeps `wandb.Table.MAX_ARTIFACT_ROWS` rows of a table
    and shows `wandb.Table.MAX_ROWS`. Of a longer one the last rows are logged, with a warning; the summary has the rows
    of each table, and those that W&B has.

    Args:
        store: The run's results.
        mode: ``offline`` (written beside the results, or to the home folder for remote ones) or ``online``.
        render: Makes the report of the run, an HTML page.
    """

    def __init__(self, store: ResultsStore, mode: str, render: Render) -> None:
        self._store, self._render = store, render
        self._run = _wandb_run(store, mode, id=store.run_id, name=store.run_id, group=store.sweep, resume="allow")
        # the server has these steps already
        self._logged = self._run.step if self._run.resumed else 0
        self._known: set[tuple[Any, ...]] = set()
        self._rows = self._ended = 0
        for trials, history in _as_they_came(store):
            self.rows(trials, history)

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Log the trials that have ended and the mean of the epochs' numbers, with the trials it is over.

        Rows that were logged before are passed over.
        """
        trials, history = self._fresh(trials), self._fresh(history)
        self._rows += len(trials) + len(history)
        self._ended += len(trials)
        if self._rows <= self._logged or not (trials or history):
            return
        values: dict[str, list[float]] = {}
        for row in history:
            for name, value in _numbers(row).items():
                values.setdefault(f"mean/{name}", []).append(value)
        over = {"mean_over_trials": len({row["trial_id"] for row in history})} if history else {}
        means = {name: sum(some) / len(some) for name, some in values.items()}
        self._run.log({"trials": self._ended, **over, **means}, step=self._rows - 1)

    def _fresh(self, rows: Sequence[Row]) -> list[Row]:
        fresh = {key: row for row in rows if (key := _key(row)) not in self._known}
        self._known |= fresh.keys()
        return list(fresh.values())

    def close(self) -> None:
        """Log the tables, the report and the summary."""
        import wandb

        summary = summarise(self._store)
        told = {**_numbers(summary), **means_of(summary)}
        with _staged(self._store):
            for name, table in (("trials", self._store.latest_trials()), ("history", self._store.history())):
                told |= {f"{name}_rows": table.num_rows, f"{name}_table_rows": table.num_rows}
                most = wandb.Table.MAX_ARTIFACT_ROWS
                if table.num_rows > most:
                    logger.warning(
                        "W&B's table %s_table has the last %d of %d rows, because it keeps no more; all are in %s.",
                        name, most, table.num_rows, self._store.folder.path(name),
                    )  # fmt: skip
                    table, told[f"{name}_table_rows"] = table.slice(table.num_rows - most), most
                elif table.num_rows > wandb.Table.MAX_ROWS:
                    logger.warning(
                        "W&B's page shows %d of the %d rows of %s_table; all are in its artifact.",
                        wandb.Table.MAX_ROWS, table.num_rows, name,
                    )  # fmt: skip
                # W&B's tables hold numbers and text
                data = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
                shown = wandb.Table(columns=table.column_names, data=data, allow_mixed_types=True)
                self._run.log({f"{name}_table": shown})
            self._run.log({"report": wandb.Html(self._render(self._store), inject=False)})
            self._run.summary.update(told)
            self._run.finish()


class WandbTrials:
    """One W&B run for each trial, in a group named after the sweep's run, written when the trial has ended."""

    def __init__(self, store: ResultsStore, mode: str) -> None:
        self._store, self._mode, self._each = store, mode, _Each("W&B")
        self._history = _curves(store)

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Keep epochs until their trial ends; then write its run."""
        for row in history:
            self._history.setdefault(_attempt(row), {})[row["epoch"]] = row
        for row in trials:
            self._each(row["trial_id"], partial(self._write, row, self._history.pop(_attempt(row), {})))

    def _write(self, trial: Row, curve: Mapping[int, Row]) -> None:
        name = f"{trial['trial_id']}-{trial['attempt']}"
        identity = _short(f"{self._store.run_id}-{name}", WANDB_NAME)
        run = _wandb_run(self._store, self._mode, id=identity, name=_short(name, WANDB_NAME), group=self._store.run_id)
        for epoch, row in sorted(curve.items()):
            run.log(_numbers(row), step=epoch)
        run.summary.update({**_numbers(trial), "status": trial["status"]})
        run.finish(exit_code=int(trial["status"] == "failed"))

    def close(self) -> None:
        """Nothing is left: every trial's run is finished with the trial."""


class TensorBoard:
    """Event files under ``tensorboard/<trial_id>`` in the run's folder, an epoch a step: ``tensorboard --logdir``.

    A later attempt of a trial is beside the first one, in ``attempt-<n>``. Whoever writes of an attempt first replaces
    its file by what the store holds, so that no point is there twice, and no file is open between two reports.
    """

    def __init__(self, store: ResultsStore) -> None:
        if not store.folder.is_local:
            raise ValueError(f"TensorBoard's files need a local --results-dir, not {store.folder.location}.")
        self._root, self._each = Path(store.folder.root, "tensorboard"), _Each("TensorBoard")
        self._stored = _curves(store)
        self._written: dict[tuple[str, int], set[int]] = {}

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Write the epochs."""
        curves: dict[tuple[str, int], dict[int, Row]] = {}
        for row in history:
            curves.setdefault(_attempt(row), {})[row["epoch"]] = row
        for attempt, curve in curves.items():
            self._each(attempt[0], partial(self._write, attempt, curve))

    def _write(self, attempt: tuple[str, int], curve: Mapping[int, Row]) -> None:
        folder = self._root / _short(attempt[0], 200)
        folder = folder / f"attempt-{attempt[1]}" if attempt[1] > 1 else folder
        folder.mkdir(parents=True, exist_ok=True)
        if attempt not in self._written:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            curve = {**self._stored.pop(attempt, {}), **curve}
            self._written[attempt] = set()
        epochs = sorted(curve.keys() - self._written[attempt])
        self._written[attempt] |= curve.keys()
        _write_events(folder / "events.out.tfevents.0", [curve[epoch] for epoch in epochs])

    def close(self) -> None:
        """Nothing is left: every file is closed once it is written."""


class _Each:
    """Does something for one trial after another: one that fails is lost, and said; the third in a row is an error."""

    def __init__(self, name: str) -> None:
        self._name, self._lost, self._in_a_row = name, set[str](), 0

    def __call__(self, trial_id: str, act: Callable[[], None]) -> None:
        if trial_id in self._lost:
            return
        try:
            act()
            self._in_a_row = 0
        except Exception as error:
            self._lost.add(trial_id)
            self._in_a_row += 1
            if self._in_a_row == MOST_LOST:
                raise
            said = type(error).__name__, error
            logger.warning("%s lost the trial %s (%s: %s); its results are complete.", self._name, trial_id, *said)


def sinks_for(
    store: ResultsStore, wandb: str, per_trial: bool, tensorboard: bool, render: Render
) -> list[Callable[[], Sink]]:
    """Return what makes the sinks that the command line asks for; ``wandb`` is ``off``, ``offline`` or ``online``."""
    sinks: list[Callable[[], Sink]] = []
    if wandb != "off":
        sinks.append(lambda: WandbTrials(store, wandb) if per_trial else WandbSweep(store, wandb, render))
    if tensorboard:
        sinks.append(lambda: TensorBoard(store))
    return sinks


def means_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means of a run's summary for W&B's, each with what it is over."""
    known = {name: value for name, value in summary["means"].items() if value is not None}
    over = {f"mean_over/{name}": over_text(summary, name) for name in known}
    return {f"mean/{name}": value for name, value in known.items()} | over


@contextmanager
def _staged(store: ResultsStore) -> Iterator[None]:
    """Let W&B keep the files of artifacts, which it would put into the user's folder, beside its other files."""
    given = os.environ.get(DATA_VARIABLE)
    if given is not None:
        yield
        return
    os.environ[DATA_VARIABLE] = str(Path(_wandb_folder(store), "wandb"))
    try:
        yield
    finally:
        del os.environ[DATA_VARIABLE]


def _wandb_folder(store: ResultsStore) -> str:
    return store.folder.root if store.folder.is_local else str(Path.home())


def _wandb_run(store: ResultsStore, mode: str, **identity: str) -> Any:
    import wandb

    record = store.run() or {}
    if mode == "offline":
        # all of the run is written again: two folders of one run would be two halves, or twice the same
        for old in Path(_wandb_folder(store), "wandb").glob(f"offline-run-*-{glob.escape(identity['id'])}"):
            shutil.rmtree(old)
    return wandb.init(
        project=PROJECT, job_type=store.sweep, mode=mode,  # type: ignore[arg-type]
        dir=_wandb_folder(store), config=record.get("settings"), reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", init_timeout=CLOSE_S / 2, x_disable_stats=True),
        **identity,  # type: ignore[arg-type]
    )  # fmt: skip


def _as_they_came(store: ResultsStore) -> Iterator[tuple[list[Row], list[Row]]]:
    """Yield the rows that a store holds as they were handed over: those of one moment together."""
    epochs = [(row["recorded_at"], 0, row) for row in store.history().to_pylist()]
    ends = [(row["finished_at"], 1, row) for row in store.trials().to_pylist()]
    # rows of a store that was written by hand have no time
    ordered = sorted([*epochs, *ends], key=lambda item: (item[0] is not None and item[0].timestamp(), item[1]))
    for (_, kind), some in itertools.groupby(ordered, key=lambda item: item[:2]):
        rows = [row for *_, row in some]
        yield (rows, []) if kind else ([], rows)


def _curves(store: ResultsStore) -> dict[tuple[str, int], dict[int, Row]]:
    """Return the epochs that a store holds, by trial and attempt."""
    curves: dict[tuple[str, int], dict[int, Row]] = {}
    for row in store.history().to_pylist():
        curves.setdefault(_attempt(row), {})[row["epoch"]] = row
    return curves


def _attempt(row: Row) -> tuple[str, int]:
    return row["trial_id"], row["attempt"]


def _key(row: Row) -> tuple[Any, ...]:
    return (*_attempt(row), row["epoch"]) if "epoch" in row else _attempt(row)


def _short(text: str, limit: int) -> str:
    """Return a text as a name of letters, digits, ``.``, ``-`` and ``_`` of at most ``limit`` characters."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", text)
    if name == text and len(name) <= limit:
        return name
    return f"{name[: limit - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _write_events(file: Path, rows: Sequence[Row]) -> None:
    """Append rows to an event file of TensorBoard, each an event: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import scalar

    events = [] if file.exists() else [Event(file_version="brain.Event:2")]
    for row in rows:
        at = row.get("recorded_at")
        event = Event(step=row["epoch"], wall_time=at.timestamp() if at else time.time())
        for name, value in _numbers(row).items():
            event.summary.value.extend(scalar(name, value).value)
        events.append(event)
    with file.open("ab") as stream:
        for event in events:
            data = event.SerializeToString()
            length = struct.pack("<Q", len(data))
            sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
            stream.write(length + next(sums) + data + next(sums))


def _numbers(row: Row) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if name not in KEYS and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | None) else str(value)
