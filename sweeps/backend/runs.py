"""The `Run` that a family's training loop is given under Ray: a Ray Train worker, or a Tune trial by itself."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.collective
import ray.tune

from trainables.common.folder import Folder

T = TypeVar("T")
R = TypeVar("R")
TrainLoop = Callable[[dict[str, Any], Any], None]
# Tune mixes its own values into a result; under this key goes what the loop reported
REPORT = "report"
# and under this the rows of earlier epochs, with the first report of a process
EARLIER = "earlier"
# rows of a file in a trial's folder
BLOCK_ROWS = 100

log = logging.getLogger(__name__)


class TrialFolder:
    """What a trial keeps in a folder of its own until its row is stored: the rows of its epochs, and where to go on.

    What the driver has heard may not be in the store yet when it is killed, so every row is here before it is reported.
    Rows are in ``rows-<block>-<0 or 1>.json``, written in turn: where the newest is damaged, the other lacks the last
    row. A directory to go on from is ``checkpoint-<n>`` and, written after it, ``checkpoint-<n>.json`` with the digests
    of its files and the row of its epoch. The last two are kept: where the newest is damaged, the one before is taken.

    Args:
        folder: The same at every attempt. One process at a time writes.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._earlier: dict[int, Mapping[str, Any]] | None = None  # rows by epoch that were not handed on yet
        self._block: list[Mapping[str, Any]] = []
        self._blocks = 0

    def keep(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Write down the row of an epoch; return the rows of earlier epochs that were not returned before."""
        self.recall(row)
        earlier = self._earlier or {}
        self._earlier = {}
        return [kept for epoch, kept in sorted(earlier.items()) if epoch < row["epoch"]]

    def recall(self, row: Mapping[str, Any]) -> None:
        """Write down the row of an epoch that an earlier process reported, or was about to."""
        if self._earlier is None:
            self._earlier = {}
            for name in self._names("rows-", ".json"):
                self._blocks = int(name.split("-")[1]) + 1
                try:
                    self._earlier |= {old["epoch"]: old for old in json.loads(self._folder.read(name) or b"")}
                except (ValueError, TypeError, KeyError) as error:
                    log.warning("%s is damaged (%s): its rows are in other files.", self._folder.path(name), error)
        if len(self._block) == BLOCK_ROWS:
            self._block, self._blocks = [], self._blocks + 1
        self._block.append(row)
        self._earlier[row["epoch"]] = row
        name = f"rows-{self._blocks:06d}-{len(self._block) % 2}.json"
        self._folder.write(name, json.dumps(self._block, default=_plain).encode())

    def save(self, checkpoint: Path, row: Mapping[str, Any]) -> None:
        """Keep a directory as the latest to go on from, with the row of its epoch."""
        numbers = self._numbers()
        name = f"checkpoint-{numbers[-1] + 1 if numbers else 0:06d}"
        self._folder.upload(checkpoint, name)
        digests = {file.name: _digest(file.read_bytes()) for file in checkpoint.iterdir() if file.is_file()}
        # whoever reads this finds the files complete
        note = {"files": digests, "row": row}
        self._folder.write(f"{name}.json", json.dumps(note, default=_plain).encode())
        for number in numbers[:-1]:
            old = f"checkpoint-{number:06d}"
            self._folder.delete(f"{old}.json")
            for file in self._folder.sub(old).names():
                self._folder.delete(f"{old}/{file}")

    def load(self, local: Path) -> dict[str, Any] | None:
        """Copy the newest directory that is whole into ``local`` and return the row of its epoch; None without one."""
        for number in reversed(self._numbers()):
            name = f"checkpoint-{number:06d}"
            try:
                note = json.loads(self._folder.read(f"{name}.json") or b"")
                files = {file: self._folder.read(f"{name}/{file}") for file in note["files"]}
                if not all(data is not None and _digest(data) == note["files"][file] for file, data in files.items()):
                    raise ValueError("its files are not those that were written")
            except (ValueError, TypeError, KeyError) as error:
                log.warning("%s is damaged (%s): going on from the one before.", self._folder.path(name), error)
                continue
            for file, data in files.items():
                (local / file).write_bytes(data or b"")
            return dict(note["row"])
        return None

    def _numbers(self) -> list[int]:
        names = self._names("checkpoint-", ".json")
        return [int(name[len("checkpoint-") : -len(".json")]) for name in names]

    def _names(self, prefix: str, suffix: str) -> list[str]:
        return [name for name in self._folder.names(suffix) if name.startswith(prefix)]


class _KeptRun:
    """A `Run` whose rows and checkpoints are kept in the trial's folder."""

    rank, world_size, device = 0, 1, "cpu"

    def __init__(self, folder: Folder | None) -> None:
        self._kept = TrialFolder(folder) if folder else None
        self._copies = ExitStack()

    def _reported(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> dict[str, Any]:
        """Write down what is reported; return what goes to the driver."""
        _require_epoch(metrics)
        earlier: list[Mapping[str, Any]] = []
        if self._kept and self.rank == 0:
            earlier = self._kept.keep(metrics)
            if checkpoint:
                self._kept.save(checkpoint, metrics)
        return {**metrics, REPORT: dict(metrics), EARLIER: earlier}

    def checkpoint(self) -> Path | None:
        """Return a copy of the latest directory that was reported and can be read, None at a first start."""
        if self._kept is None:
            return None
        local = Path(self._copies.enter_context(tempfile.TemporaryDirectory(prefix="checkpoint-")))
        row = self._kept.load(local)
        if row is None:
            return None
        self.recall(row)
        return local

    def recall(self, metrics: Mapping[str, Any]) -> None:
        """Take the row of the epoch that the loop goes on from, in case it was written but not reported."""
        if self._kept and metrics and self.rank == 0:
            self._kept.recall(metrics)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``function(item)`` of each item, in order; each is a Ray task."""
        return spread(function, items)

    def close(self) -> None:
        """Remove local copies of checkpoints."""
        self._copies.close()


class TrainRun(_KeptRun):
    """One worker of a Ray Train run.

    Args:
        folder: Of the trial, where rows and checkpoints are kept; None where nothing is reported.

    Attributes:
        rank: Index of the worker, 0 to ``world_size - 1``.
        world_size: Number of workers.
        device: ``cpu``, or ``cuda:<index>`` of the worker's own GPU.
    """

    def __init__(self, folder: Folder | None = None) -> None:
        super().__init__(folder)
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        if ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            from ray.train.torch import get_device

            self.device = str(get_device())

    def checkpoint(self) -> Path | None:
        """Return a copy of the latest directory, the same on all workers, which must all call it equally often."""
        local = super().checkpoint()
        if self._kept and self.world_size > 1:
            # or a slow worker would go on from what a fast one has reported since
            ray.train.collective.barrier()
        return local

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        """Report metrics and, from rank 0, a directory to continue from. All workers must call it equally often.

        Raises:
            TypeError: If the metrics do not say which ``epoch`` they are of.
        """
        ray.train.report(self._reported(metrics, checkpoint))


class TuneRun(_KeptRun):
    """A Tune trial that trains by itself, on the one device that it was given.

    Args:
        folder: Of the trial, where rows and checkpoints are kept.
        use_gpu: Whether it has a GPU.

    Attributes:
        rank, world_size: 0 and 1.
        device: ``cpu`` or ``cuda:0``.
    """

    def __init__(self, folder: Folder, use_gpu: bool) -> None:
        super().__init__(folder)
        self.device = "cuda:0" if use_gpu else "cpu"

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        """Report metrics and a directory to continue from. Raises TypeError if they have no ``epoch``."""
        ray.tune.report(self._reported(metrics, checkpoint))


def spread(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``function(item)`` of each item, in order; the calls are Ray tasks, spread over the machines.

    The tasks reserve no CPU: trials hold all CPUs, and would wait for each other without end.

    Raises:
        Exception: What a call raised.
    """
    remote = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(function)
    try:
        return ray.get([remote.remote(item) for item in items])
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    # a number of numpy or torch
    return value.item() if hasattr(value, "item") else str(value)


def _require_epoch(metrics: Mapping[str, Any]) -> None:
    # here the loop that made the report fails, with its own traceback
    epoch = metrics.get("epoch")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
        raise TypeError(f"A report must have 'epoch', the whole number of epochs trained from 1, but it has {epoch!r}.")


def use_threads(count: int) -> None:
    """Let this process compute with ``count`` CPU threads, at most one for each core of its machine.

    Ray sets one for each CPU reserved, which is mostly one.
    """
    count = min(count, len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
