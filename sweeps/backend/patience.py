"""How long a sweep waits for its first worker, and what it says meanwhile."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import ray

from sweeps.backend.ray_private import session_folder
from trainables.common.errors import SurroundingsError

log = logging.getLogger(__name__)

# seconds without a worker after which it is said why, and after which the sweep ends; an autoscaler takes minutes
SAY_S, END_S, GROWING_END_S = 60.0, 300.0, 1800.0
# an error in the logs of Ray's own programs, with its time, and one in what other programs say
OWN_ERROR = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ E ")
OTHERS_ERROR = re.compile(r"error|not found|no such file|cannot|denied|killed", re.IGNORECASE)
# errors that every cluster's logs hold
USUAL = re.compile(r"metric|opentelemetry|open_telemetry|prometheus", re.IGNORECASE)
# how old an error may be to be the reason, in seconds, and how much of the end of a log is read, in bytes
RECENT_S, TAIL_BYTES = 600.0, 200_000


class Patience:
    """Says after a minute without a worker why there is none; ends the sweep after some minutes, or without a machine.

    Args:
        grows: Whether an autoscaler may have to start machines first.
        clock: Returns seconds.
    """

    def __init__(self, grows: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._end_s, self._clock = (GROWING_END_S if grows else END_S), clock
        self._since, self._said = clock(), False
        self._counted = self._since

    def look(self, waiting: bool) -> None:
        """Take note of whether work waits while no worker is there.

        Raises:
            SurroundingsError: If that has lasted too long, or the cluster has no machine any more.
        """
        waited = self._clock() - self._since
        if self._clock() - self._counted > SAY_S:
            self._counted = self._clock()
            # workers that went with it are not always told of
            if not machines_left():
                raise SurroundingsError("Ray has lost its last machine.")
        if not waiting:
            self._since, self._said = self._clock(), False
        elif waited > self._end_s:
            raise SurroundingsError(
                f"No worker has started for {waited / 60:.0f} minutes ({why_no_worker()}): see to that first."
            )
        elif waited > SAY_S and not self._said:
            self._said = True
            log.warning("No worker has started for %.0f s: %s.", waited, why_no_worker())


def machines_left() -> int:
    """Return how many of the cluster's machines Ray takes for alive; it notices the end of one within a minute."""
    return sum(node["Alive"] for node in ray.nodes())


def why_no_worker() -> str:
    """Return what Ray knows of it: the last line of its logs that tells of trouble, or that nothing is free."""
    logs = Path(session_folder(), "logs")
    told = last_trouble(logs) if logs.is_dir() else None
    if told:
        return f"Ray's log says: {told}"
    free, there = ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)
    if free < 1:
        return f"{free:g} of the cluster's {there:g} CPUs are free, others use the rest"
    return f"Ray's logs in {logs} tell of no trouble"


def last_trouble(logs: Path) -> str | None:
    """Return the last line of trouble in a session's logs: of what starts workers first, then those of workers."""
    files = [*logs.glob("worker-*.err"), *logs.glob("python-core-worker-*.log")]
    newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[:10]
    for file in (*(logs / name for name in ("raylet.err", "raylet.out")), *newest):
        if not file.exists() or time.time() - file.stat().st_mtime > RECENT_S:
            continue
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
        told = [line for line in lines if _tells(line, file.suffix) and not USUAL.search(line)]
        if told:
            return f"{' '.join(told[-1].split())[:300]} ({file.name})"
    return None


def _tells(line: str, suffix: str) -> bool:
    own = OWN_ERROR.match(line)
    if own:
        return (datetime.now() - datetime.fromisoformat(own[1])).total_seconds() < RECENT_S
    return suffix == ".err" and not line.startswith("[") and OTHERS_ERROR.search(line) is not None
