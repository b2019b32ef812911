"""A trial that is killed again and again while the driver stores nothing: what its last session hands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from sweeps.backend.runs import EARLIER, REPORT, TuneRun
from trainables.common.folder import Folder


class Killed(BaseException):
    """As SIGKILL: no ``except Exception`` sees it."""


class DyingRun(TuneRun):
    """Dies just before its report number ``last``: checkpoints of the loop's own are written by then."""

    def __init__(self, folder: Folder, last: int | None) -> None:
        super().__init__(folder, False)
        self._left = last

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        if self._left == 0:
            raise Killed
        self._left = None if self._left is None else self._left - 1
        super().report(metrics, checkpoint)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]


def rows_after_kills(
    loop: Callable[[dict[str, Any], Any], None],
    settings: Mapping[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    deaths: Sequence[int] = (1, 1),
    between: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return the rows that the last session of a trial hands on, in order.

    Args:
        loop: ``train_loop(settings, run)``.
        settings: Its settings.
        folder: Of the trial.
        monkeypatch: Takes the place of Tune.
        deaths: Reports that each session but the last makes.
        between: Called after each death.
    """
    for last in (*deaths, None):
        rows: list[dict[str, Any]] = []
        monkeypatch.setattr(tune, "report", lambda told, rows=rows: rows.extend([*told[EARLIER], told[REPORT]]))
        run = DyingRun(Folder(folder / "kept"), last)
        if last is None:
            loop(dict(settings), run)
        else:
            with pytest.raises(Killed):
                loop(dict(settings), run)
            between()
        run.close()
    return rows


def cut_newest(folder: Path) -> None:
    """Cut the file that was written last in half, as a disk may that lost power."""
    newest = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
