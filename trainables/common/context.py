"""The context that a family's training loop is handed, and its plainest implementation.

A loop is written once, ``train_loop(config, run)``. Under Ray Train or Ray Tune the sweep hands it another `Run`; in a
plain process (measuring, debugging, unit tests) it gets a `PlainRun`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Run(Protocol):
    """What a training loop knows of the world.

    Attributes:
        rank: Index of this worker among ``world_size``.
        world_size: Number of workers that train together.
        device: A torch device string, ``cpu`` or ``cuda:<i>``.
    """

    rank: int
    world_size: int
    device: str

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        """Report metrics of an epoch and, optionally, a directory to keep as the latest checkpoint."""

    def checkpoint(self) -> Path | None:
        """Return the directory of the latest checkpoint, there until the next report, or None at a fresh start."""

    def recall(self, metrics: Mapping[str, Any]) -> None:
        """Take the row of the epoch that a loop with checkpoints of its own goes on from.

        Such a loop was perhaps killed when the checkpoint was written and the epoch not reported yet.
        """

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``function(item)`` of each item, in order; on a cluster the calls run side by side on its machines.

        Function, items and results must be picklable. An exception of a call is raised here.
        """


class PlainRun:
    """A `Run` in a plain process: reports are kept in ``reports`` and printed, checkpoints copied under ``folder``."""

    rank = 0
    world_size = 1

    def __init__(self, device: str = "cpu", folder: Path | None = None) -> None:
        self.device = device
        self.folder = folder
        self.reports: list[dict[str, Any]] = []

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        self.reports.append(dict(metrics))
        print(json.dumps(dict(metrics), default=str), flush=True)
        if checkpoint is not None and self.folder is not None:
            shutil.copytree(checkpoint, self.folder, dirs_exist_ok=True)

    def checkpoint(self) -> Path | None:
        return self.folder if self.folder is not None and any(self.folder.glob("*")) else None

    def recall(self, metrics: Mapping[str, Any]) -> None:
        """There is nobody who would want to know."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        return [function(item) for item in items]
