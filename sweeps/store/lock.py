"""The lock of a run: one process at a time writes its rows.

``lock.json`` in the run's folder names the holder: its host, its pid there, and a heartbeat that it renews, so the lock
works on object stores and on disks that machines share. It is taken over when its holder is dead: on the same host when
the process is gone, on another one when the heartbeat stands still.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trainables.common.errors import InputError
from trainables.common.folder import Folder

log = logging.getLogger(__name__)

FILE = "lock.json"
# seconds between two heartbeats, after which a holder on another host counts as dead, and after which, where no disk
# keeps them apart, of two that write the lock at once the later one has written
HEARTBEAT_S = 10.0
DEAD_S = 60.0
SETTLE_S = 1.0


@dataclass(frozen=True)
class Holder:
    """Who has a lock.

    Attributes:
        host: Its host name.
        machine: What no other machine or container of that name has.
        pid: Its process there.
        began: When that process began, in the kernel's ticks: pids come again.
        token: Of this lock.
        heartbeat: Seconds since 1970 of its last sign of life.
    """

    host: str
    machine: str
    pid: int
    began: int
    token: str
    heartbeat: float

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _began(pid) or 0, uuid.uuid4().hex, time.time())

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this host, in the same container."""
        return (self.host, self.machine) == (socket.gethostname(), _machine())

    @property
    def is_gone(self) -> bool:
        """Whether its process, one of this host, has ended."""
        return _began(self.pid) != self.began


class RunLock:
    """The lock of a run's folder, held from `acquire` to `release`.

    Args:
        folder: The run's folder.
        on_lost: Called where another process has taken the lock over, which happens to one that stood still.
    """

    def __init__(self, folder: Folder, on_lost: Callable[[], None] = lambda: None) -> None:
        self._folder, self.on_lost = folder, on_lost
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock.

        A holder on another host whose heartbeat is recent is watched until it gives one more, or none for a minute.

        Raises:
            InputError: If a living process holds it.
            OSError: If the folder cannot be written.
        """
        self._own = Holder.here()
        began, seen = time.monotonic(), None
        while True:
            with _alone(self._folder) as alone:
                holder = self._holder()
                if holder is None or self._is_dead(holder, seen, time.monotonic() - began):
                    self._write()
                    break
            if seen is None:
                log.warning(
                    "The run is held by a process of %s: waiting up to %.0f s to see whether it lives.",
                    holder.host, DEAD_S,
                )  # fmt: skip
            seen = holder
            time.sleep(min(1.0, HEARTBEAT_S / 4))
        if not alone:
            time.sleep(SETTLE_S)
            holder = self._holder()
            if holder and holder.token != self._own.token:
                raise self._refusal(holder)
        atexit.register(self.release)
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock up; where it is not held any more nothing happens."""
        atexit.unregister(self.release)
        if self._thread is None or self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        holder = self._holder()
        if holder and holder.token == self._own.token:
            self._folder.delete(FILE)

    def _is_dead(self, holder: Holder, seen: Holder | None, watched_s: float) -> bool:
        """Whether a holder is no more; False where that is not known yet. Raises InputError where it lives."""
        if holder.is_here:
            if holder.is_gone or holder.pid == os.getpid():
                return True
            raise self._refusal(holder)
        if seen and (holder.token, holder.heartbeat) != (seen.token, seen.heartbeat):
            raise self._refusal(holder)
        # clocks differ: it is watched for a while, however old its heartbeat is said to be
        old = time.time() - holder.heartbeat > DEAD_S
        return watched_s > DEAD_S or (old and watched_s > 2 * HEARTBEAT_S)

    def _refusal(self, holder: Holder) -> InputError:
        return InputError(
            f"Process {holder.pid} on {holder.host} is at work on the run in {self._folder.location}; wait for its "
            "end, or choose another --run-id."
        )

    def _holder(self) -> Holder | None:
        data = self._folder.read(FILE)
        try:
            return None if data is None else Holder(**json.loads(data))
        except (ValueError, TypeError):
            # nobody can say who left it
            log.warning("%s cannot be read and is replaced.", self._folder.path(FILE))
            return None

    def _write(self) -> None:
        self._own = replace(self._own, heartbeat=time.time())
        self._folder.write(FILE, json.dumps(asdict(self._own)).encode())

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                holder = self._holder()
                if holder is None or holder.token != self._own.token:
                    if holder is None or not (holder.is_here and holder.pid == self._own.pid):
                        log.warning("The lock of the run is gone, or another process has taken it over: stopping.")
                        self.on_lost()
                    return
                self._write()
            except OSError as error:
                # the next heartbeat may come through
                log.warning("The lock of the run could not be renewed: %s", error)


@contextlib.contextmanager
def _alone(folder: Folder) -> Iterator[bool]:
    """Keep other processes from looking and writing at the same time; yield whether the disk knows how."""
    if not folder.is_local:
        yield False
        return
    Path(folder.root).mkdir(parents=True, exist_ok=True)
    with Path(folder.root, ".lock").open("w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
        except OSError as error:
            # some disks that machines share know no locks
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            yield False
            return
        yield True


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """Return when a process of this host began; None where there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        # another user's
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        # a system without it knows no more than whether there is one
        return 0
    fields = stat.rpartition(")")[2].split()
    # a zombie has ended, though nobody has asked for its exit code
    return None if fields[0] == "Z" else int(fields[19])
