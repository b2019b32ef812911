"""The lock of a run: refused while its holder lives, taken over when it is dead, on a disk and on an object store."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sweeps.store import lock
from sweeps.store.lock import Holder, RunLock
from trainables.common.errors import InputError
from trainables.common.folder import Folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lock, "DEAD_S", 0.5)
    monkeypatch.setattr(lock, "SETTLE_S", 0.1)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def left_by(folder: Folder, holder: Holder) -> None:
    folder.write(lock.FILE, json.dumps(asdict(holder)).encode())


def elsewhere(age_s: float) -> Holder:
    return replace(Holder.here(), host="another", machine="another", heartbeat=time.time() - age_s)


@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process  # type: ignore[misc]
    process.kill()
    process.wait()


def test_a_living_process_of_this_host_keeps_its_lock_and_a_dead_one_does_not(
    folder: Folder, sleeper: subprocess.Popen[bytes]
) -> None:
    left_by(folder, replace(Holder.here(), pid=sleeper.pid, began=lock._began(sleeper.pid) or 0))
    begun = time.monotonic()
    said = f"Process {sleeper.pid} on {socket.gethostname()} is at work on the run in .*; wait .* another --run-id"
    with pytest.raises(InputError, match=said):
        RunLock(folder).acquire()
    sleeper.kill()
    sleeper.wait()
    held = RunLock(folder)
    held.acquire()
    assert time.monotonic() - begun < 2, "nobody waits for a heartbeat of a process that is gone"
    assert json.loads(folder.read(lock.FILE) or b"")["pid"] == os.getpid()
    held.release()
    assert folder.read(lock.FILE) is None


def test_a_pid_that_came_again_is_not_the_holder(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    left_by(Folder(tmp_path), replace(Holder.here(), pid=sleeper.pid, began=1))
    held = RunLock(Folder(tmp_path))
    held.acquire()
    held.release()


@pytest.mark.parametrize("age_s", [0.0, 3600.0, -3600.0])
def test_a_holder_elsewhere_is_dead_when_its_heartbeat_stands_still_whatever_its_clock_says(
    folder: Folder, age_s: float
) -> None:
    left_by(folder, elsewhere(age_s))
    held = RunLock(folder)
    held.acquire()
    held.release()


@pytest.mark.parametrize("age_s", [0.0, 3600.0])
def test_a_holder_elsewhere_whose_heart_beats_keeps_its_lock(folder: Folder, age_s: float) -> None:
    other, over = elsewhere(age_s), threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            left_by(folder, replace(other, heartbeat=time.time() - age_s))

    left_by(folder, other)
    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(InputError, match="on another is at work on the run"):
            RunLock(folder).acquire()
    finally:
        over.set()
        heart.join()


def test_a_holder_that_stood_still_hears_that_its_lock_is_taken(folder: Folder) -> None:
    lost = threading.Event()
    held = RunLock(folder, lost.set)
    held.acquire()
    first = json.loads(folder.read(lock.FILE) or b"")["heartbeat"]
    time.sleep(0.3)
    assert json.loads(folder.read(lock.FILE) or b"")["heartbeat"] > first and not lost.is_set()
    left_by(folder, elsewhere(0))
    assert lost.wait(5)
    held.release()
    assert folder.read(lock.FILE) is not None, "it is another's"


def test_a_disk_without_locks_does_as_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    held, folder = RunLock(Folder(tmp_path)), Folder(tmp_path)
    held.acquire()
    held.release()
    # another one writes in the same moment, a little later
    monkeypatch.setattr(lock.time, "sleep", lambda _: left_by(folder, elsewhere(0)))
    with pytest.raises(InputError, match="on another is at work"):
        RunLock(folder).acquire()


def test_a_lock_that_nobody_can_read_holds_nobody_up(folder: Folder) -> None:
    folder.write(lock.FILE, b"")
    held = RunLock(folder)
    held.acquire()
    held.release()


def test_of_two_that_start_at_once_one_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from sweeps.store.lock import RunLock\n"
        "from trainables.common.folder import Folder\n"
        "held = RunLock(Folder(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n    held.acquire()\nexcept ValueError:\n    print('refused', flush=True)\n"
        "else:\n    print('held', flush=True)\n    sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    starts = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for start in starts:
        assert start.stdout.readline() == "ready\n"
    for start in starts:
        start.stdin.write("\n")
        start.stdin.flush()
    assert sorted(start.stdout.readline() for start in starts) == ["held\n", "refused\n", "refused\n"]
    for start in starts:
        start.communicate("\n")
    assert not (tmp_path / "run" / lock.FILE).exists(), "it ends with its process"
