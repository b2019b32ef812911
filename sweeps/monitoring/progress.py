"""Live progress of a long sweep: a panel in a terminal, plain lines elsewhere and always in the run's log.

It shows counts, pace, time left, and the best and worst trial so far by what its family orders trials by. It only
listens: what a trial's metrics mean is declared by the family, and the closing table is printed from the results store.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.monitoring.pace import Cost, Pace
from sweeps.monitoring.streams import SteadyStream
from trainables.common.family import EVAL_LOSS, UNKNOWN, Family

LINE_SECONDS = 10.0
REFRESH_SECONDS = 0.25
SHOWN_TRIALS = 8


class Progress:
    """Counts trials and shows them. Safe to call from several threads; starts none.

    Args:
        total: Number of trials of the whole sweep, those of earlier sessions included.
        already_done: Number of trials that earlier sessions finished; they do not count towards the pace.
        log_path: Local file that plain lines are appended to, or None.
        stream: Where the panel (if it is a terminal) or plain lines (if not) go; None means ``sys.stderr``.
        family: What is trained: how trials are called, ordered, and which metric is shown beside the losses.
        clock: Returns seconds; replaced in tests.

    Raises:
        OSError: If the log cannot be opened.
    """

    def __init__(
        self,
        total: int,
        already_done: int = 0,
        log_path: str | Path | None = None,
        stream: TextIO | None = None,
        family: Family = UNKNOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._already_done, self._family, self._clock = total, already_done, family, clock
        self._stream = stream if stream is not None else sys.stderr
        self._lock = threading.RLock()
        self._running: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self._finished: dict[str, str] = {}
        self._standings: dict[str, tuple[tuple[float, ...], str]] = {}
        self._began = self._last_line = self._last_refresh = clock()
        self._pace = Pace(total - already_done, clock)
        self._counted = 0
        self._closed = False
        self._log: SteadyStream | None = None
        if log_path is not None:
            log = open(log_path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by `close`
            self._log = SteadyStream(log, str(log_path))
        self._live: Live | None = None
        if self._stream.isatty():
            # refreshed from tick() and the events, so that no thread redraws while another one prints
            self._live = Live(self._panel(), console=Console(file=self._stream), auto_refresh=False)
            self._live.start()
        now = datetime.now(UTC)
        self._write(f"{now:%Y-%m-%d %H:%M:%S} UTC, {total - already_done} of {total} {family.noun} to do")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def expect(self, costs: Mapping[str, Cost]) -> None:
        """Take note of trials and of what they cost, before their first report."""
        with self._lock:
            self._pace.expect(costs)

    def count_running(self, running: int) -> None:
        """Note how many trials are in training. Where nobody counts them, those that have reported are shown."""
        with self._lock:
            self._counted = running
            if running:
                self._pace.begin()

    def trial_progress(self, trial_id: str, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Note what a running trial reported; reports that arrive after its end are ignored.

        Args:
            trial_id: The trial.
            epoch: Epochs that it has trained.
            metrics: Shown are ``train_loss``, ``eval_loss`` and the family's metric. Where nobody counts trials in
                training, the first report's ``seconds`` say when training began.
        """
        with self._lock:
            self._pace.begin(metrics.get("seconds") or 0.0)
            if trial_id not in self._finished:
                self._running[trial_id] = (epoch, dict(metrics))
                self._pace.reach(trial_id, epoch)
            self.tick()

    def trial_finished(self, trial_id: str, status: str, metrics: Mapping[str, Any]) -> None:
        """Note the end of a trial.

        Args:
            trial_id: The trial.
            status: ``success``, ``stopped`` or ``failed``.
            metrics: Of its row; read are ``early_stopped``, ``error`` and the columns that the family orders trials by.
        """
        with self._lock:
            self._running.pop(trial_id, None)
            self._pace.begin(metrics.get("seconds") or 0.0)
            self._pace.end(trial_id)
            early = status == "success" and metrics.get("early_stopped")
            self._finished[trial_id] = "stopped" if early else status
            standing = self._family.standing(metrics)
            if standing is not None and status != "failed":
                self._standings[trial_id] = standing, self._family.standing_text(metrics)
            if status == "failed":
                reason = " ".join(str(metrics.get("error") or "no reason given").split())
                self._write(f"failed: {trial_id}: {reason}", above_panel=True)
            self.tick()

    def tick(self) -> None:
        """Redraw the panel or write a line where one is due. Call it now and then while nothing happens."""
        with self._lock:
            now = self._clock()
            if self._closed:
                return
            if self._live is not None and now - self._last_refresh >= REFRESH_SECONDS:
                self._last_refresh = now
                self._live.update(self._panel(), refresh=True)
            if now - self._last_line >= LINE_SECONDS:
                self._last_line = now
                self._write(self.line())

    def close(self) -> None:
        """Show the final state, end the panel and close the log. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._write(self.line())
            if self._live is not None:
                self._live.update(self._panel(), refresh=True)
                self._live.stop()
            if self._log is not None:
                self._log.close()

    def line(self) -> str:
        """Return the state as one plain line."""
        with self._lock:
            return ", ".join(_said(self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        statuses = list(self._finished.values())
        failed, stopped = statuses.count("failed"), statuses.count("stopped")
        done = self._already_done + len(statuses) - failed
        epochs = [epoch for epoch, _ in self._running.values()]
        reached = f" (epoch {min(epochs)} to {max(epochs)})" if any(epochs) else ""
        pace, left, noun = self._pace.per_hour, self._pace.seconds_left, self._family.noun
        facts = [
            ("done", f"{done}/{self._total}"),
            ("running" + reached, f"{self.in_training}"),
            ("stopped early", f"{stopped}"),
            ("failed", f"{failed}"),
            (f"{noun} per hour", f"{pace:.0f}") if pace else ("", f"no {noun} have ended yet"),
            ("", f"waiting for {self._pace.waiting_for}") if math.isnan(left) else ("left", _duration(left)),
        ]
        for name, pick in (("best", max), ("worst", min)) if self._standings else ():
            trial_id = pick(self._standings, key=self._standings.__getitem__)
            facts.append(("", f"{name} {trial_id} {self._standings[trial_id][1]}"))
        return facts

    @property
    def in_training(self) -> int:
        """Trials in training."""
        return max(self._counted, len(self._running))

    def pace(self) -> tuple[float, float]:
        """Return the trials that end in an hour of training, and the seconds until all have ended: see `Pace`."""
        with self._lock:
            return self._pace.per_hour, self._pace.seconds_left

    def _panel(self) -> Group:
        ended = self._already_done + len(self._finished)
        facts = _said(self._facts())
        counts, pace = Text(", ".join(facts[:4])), Text(", ".join(facts[4:6]))
        bar = Table.grid()  # a bar by itself does not end its line
        bar.add_row(ProgressBar(total=max(self._total, 1), completed=ended, width=60))
        rows: list[Any] = [bar, counts, pace]
        rows += [Text(fact, style="dim") for fact in facts[6:]]
        if self._running:
            shown = tuple(dict.fromkeys(("train_loss", EVAL_LOSS, self._family.metric)))
            heads = (name.replace("_", " ") for name in shown)
            table = Table("trial", "epoch", *heads, box=None, header_style="dim")
            for trial_id, (epoch, metrics) in list(self._running.items())[:SHOWN_TRIALS]:
                table.add_row(trial_id, str(epoch), *(_number(metrics.get(name)) for name in shown))
            rows.append(table)
            if len(self._running) > SHOWN_TRIALS:
                rows.append(Text(f"and {len(self._running) - SHOWN_TRIALS} more", style="dim"))
        return Group(*rows)

    def _write(self, text: str, above_panel: bool = False) -> None:
        line = f"[{_duration(self._clock() - self._began)}] {text}\n"
        if self._log is not None and not self._log.closed:
            self._log.write(line)
        if self._live is None:
            self._stream.write(line)
            self._stream.flush()
        elif above_panel:
            self._live.console.print(Text(text, style="red"))


def _said(facts: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{value} {name}" if name else value for name, value in facts]


def _duration(seconds: float) -> str:
    """Return hours, minutes and seconds, as in ``1:02:03``."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""
