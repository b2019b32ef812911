"""The `Run` that a family's training loop is given under Ray: a Ray Train worker, or a Tune trial by itself."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import ray.tune

from trainables.common.folder import Folder

T = TypeVar("T")
R = TypeVar("R")
TrainLoop = Callable[[dict[str, Any], Any], None]
# Tune mixes its own values into a result; under this key goes what the loop reported
REPORT = "report"


class TrainRun:
    """One worker of a Ray Train run.

    Attributes:
        rank: Index of the worker, 0 to ``world_size - 1``.
        world_size: Number of workers.
        device: ``cpu``, or ``cuda:<index>`` of the worker's own GPU.
    """

    def __init__(self) -> None:
        context = ray.train.get_context()
        self._copies = ExitStack()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = "cpu"
        if ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            from ray.train.torch import get_device

            self.device = str(get_device())

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        """Report metrics and, from rank 0, a directory to continue from. All workers must call it equally often.

        Raises:
            TypeError: If the metrics do not say which ``epoch`` they are of.
        """
        _require_epoch(metrics)
        kept = ray.train.Checkpoint.from_directory(checkpoint) if checkpoint and self.rank == 0 else None
        ray.train.report({**metrics, REPORT: dict(metrics)}, checkpoint=kept)

    def checkpoint(self) -> Path | None:
        """Return the directory that was reported last, None at a first start. It is there until the next report."""
        kept = ray.train.get_checkpoint()
        return Path(self._copies.enter_context(kept.as_directory())) if kept else None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``function(item)`` of each item, in order; each is a Ray task."""
        return spread(function, items)

    def close(self) -> None:
        """Remove local copies of checkpoints."""
        self._copies.close()


class TuneRun:
    """A Tune trial that trains by itself, on the one device that it was given.

    Args:
        folder: Where its checkpoints go; the same at every attempt.
        use_gpu: Whether it has a GPU.

    Attributes:
        rank, world_size: 0 and 1.
        device: ``cpu`` or ``cuda:0``.
    """

    rank = 0
    world_size = 1

    def __init__(self, folder: Folder, use_gpu: bool) -> None:
        self._folder, self._copies = folder, ExitStack()
        self.device = "cuda:0" if use_gpu else "cpu"

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        """Report metrics and a directory to continue from. Raises TypeError if they have no ``epoch``."""
        _require_epoch(metrics)
        if checkpoint:
            previous = self._latest()
            number = previous + 1 if previous is not None else 0
            self._folder.upload(checkpoint, f"checkpoint-{number}")
            # whoever reads the pointer finds the files complete
            self._folder.write("latest", str(number).encode())
            if previous is not None:
                old = self._folder.sub(f"checkpoint-{previous}")
                for name in old.names():
                    old.delete(name)
        ray.tune.report({**metrics, REPORT: dict(metrics)})

    def checkpoint(self) -> Path | None:
        """Return a local copy of the directory that was reported last, None at a first start."""
        number = self._latest()
        if number is None:
            return None
        local = Path(self._copies.enter_context(tempfile.TemporaryDirectory(prefix="checkpoint-")))
        kept = self._folder.sub(f"checkpoint-{number}")
        for name in kept.names():
            data = kept.read(name)
            if data is not None:
                (local / name).write_bytes(data)
        return local

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``function(item)`` of each item, in order; each is a Ray task."""
        return spread(function, items)

    def close(self) -> None:
        """Remove local copies of checkpoints."""
        self._copies.close()

    def _latest(self) -> int | None:
        number = self._folder.read("latest")
        return None if number is None else int(number)


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
