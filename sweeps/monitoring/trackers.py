"""Weights & Biases and TensorBoard as views of the rows: one background thread writes to them while the sweep runs.

Rows come here as they go to the store. A tracker that fails or does not answer is dropped with a warning: it neither
slows nor fails a sweep, and at the end it gets a limited time to finish. The record is the Parquet store: ``python -m
sweeps.trackers`` makes W&B runs from it later, or again.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from sweeps.store.store import ResultsStore
from sweeps.store.summary import over_text, summarise

logger = logging.getLogger(__name__)

PROJECT = "arc-sweeps"
# what a tracker may take after the sweep's last row, in seconds
CLOSE_S = 60.0
# variables that name W&B's folders of artifacts and of its own log, and what they are called beside its other files
FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}
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

    W&B keeps `wandb.Table.MAX_ARTIFACT_ROWS` rows of a table and shows `wandb.Table.MAX_ROWS`. Of a longer one the last
    rows are logged, with a warning; the summary has the rows of each table, and those that W&B has.

    Args:
        store: The run's results.
        mode: ``offline`` (written beside the results, or to the home folder for remote ones) or ``online``.
        render: Makes the report of the run, an HTML page.
    """

    def __init__(self, store: ResultsStore, mode: str, render: Render) -> None:
        self._store, self._render = store, render
        self._run = _wandb_run(store, mode, id=store.run_id, name=store.run_id, group=store.sweep, resume="allow")
        self._ended = 0

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Log the trials that have ended and the mean of the epochs' numbers, with the trials it is over."""
        self._ended += len(trials)
        values: dict[str, list[float]] = {}
        for row in history:
            for name, value in _numbers(row).items():
                values.setdefault(f"mean/{name}", []).append(value)
        over = {"mean_over_trials": len({row["trial_id"] for row in history})} if history else {}
        means = {name: sum(some) / len(some) for name, some in values.items()}
        self._run.log({"trials": self._ended, **over, **means})

    def close(self) -> None:
        """Log the tables, the report and the summary."""
        import wandb

        summary = summarise(self._store)
        told = {**_numbers(summary), **means_of(summary)}
        with _beside(self._store):
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
        self._store, self._mode = store, mode
        self._history: dict[str, list[Row]] = {}

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Keep epochs until their trial ends; then write its run."""
        for row in history:
            self._history.setdefault(row["trial_id"], []).append(row)
        for row in trials:
            name = f"{row['trial_id']}-{row['attempt']}"
            identity = f"{self._store.run_id}-{name}"
            run = _wandb_run(self._store, self._mode, id=identity, name=name, group=self._store.run_id)
            for epoch in self._history.pop(row["trial_id"], []):
                run.log(_numbers(epoch))
            run.summary.update({**_numbers(row), "status": row["status"]})
            run.finish(exit_code=int(row["status"] == "failed"))

    def close(self) -> None:
        """Nothing is left: every trial's run is finished with the trial."""


class TensorBoard:
    """Event files under ``tensorboard/<trial_id>`` in the run's folder, an epoch a step: ``tensorboard --logdir``."""

    def __init__(self, store: ResultsStore) -> None:
        if not store.folder.is_local:
            raise ValueError(f"TensorBoard's files need a local --results-dir, not {store.folder.location}.")
        self._root = Path(store.folder.root, "tensorboard")
        self._writers: dict[str, Any] = {}

    def rows(self, trials: Sequence[Row], history: Sequence[Row]) -> None:
        """Write the epochs; a trial's file is open until it ends."""
        from tensorboardX import SummaryWriter

        for row in history:
            if row["trial_id"] not in self._writers:
                self._writers[row["trial_id"]] = SummaryWriter(str(self._root / row["trial_id"]))
            for name, value in _numbers(row).items():
                self._writers[row["trial_id"]].add_scalar(name, value, row["epoch"])
        for row in trials:
            if row["trial_id"] in self._writers:
                self._writers.pop(row["trial_id"]).close()

    def close(self) -> None:
        """Close the files of trials that have not ended."""
        for writer in self._writers.values():
            writer.close()


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
def _beside(store: ResultsStore) -> Iterator[None]:
    """Let W&B keep what it would put into the user's folders, such as files of artifacts, beside its other files."""
    own = {name: str(Path(_wandb_folder(store), "wandb", place)) for name, place in FOLDERS.items()}
    chosen = {name: place for name, place in own.items() if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            del os.environ[name]


def _wandb_folder(store: ResultsStore) -> str:
    return store.folder.root if store.folder.is_local else str(Path.home())


def _wandb_run(store: ResultsStore, mode: str, **identity: str) -> Any:
    import wandb

    record = store.run() or {}
    with _beside(store):
        return wandb.init(
            project=PROJECT, job_type=store.sweep, mode=mode,  # type: ignore[arg-type]
            dir=_wandb_folder(store), config=record.get("settings"), reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=CLOSE_S / 2, x_disable_stats=True),
            **identity,  # type: ignore[arg-type]
        )  # fmt: skip


def _numbers(row: Row) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if name not in KEYS and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | None) else str(value)
