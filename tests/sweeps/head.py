"""A real head node for tests, on ports and with a home folder of its own, and nothing else's to stop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from tests.sweeps.tiny import ROOT

RAY = str(Path(sys.executable).with_name("ray"))
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")


class Head:
    """A head node of its own, started and asked through the `ray` command line.

    Args:
        folder: The home folder of whoever starts it.
        options: Of ``ray start``.
        environment: Variables besides those of this process, of which none of Ray's is passed on.
    """

    def __init__(self, folder: Path, options: Sequence[str], environment: Mapping[str, str]) -> None:
        # Ray's sockets need a short path
        self.home = folder
        self._temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        ports = {name: str(free_port()) for name in PORTS}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
            **environment,
        }
        self.address = f"127.0.0.1:{ports['port']}"
        subprocess.run([RAY, "get-auth-token", "--generate"], env=self.environment, check=True, capture_output=True)
        fixed = [f"--{name}={value}" for name, value in ports.items()]
        fixed += ["--head", "--block", f"--temp-dir={self._temp}", "--node-ip-address=127.0.0.1"]
        self._log = (folder / "ray-start.log").open("w")
        self._process = subprocess.Popen(
            [RAY, "start", *fixed, *options], env=self.environment, stdout=self._log, stderr=subprocess.STDOUT
        )

    def ray(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [RAY, *words], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300, **options
        )
        assert not check or done.returncode == 0, f"ray {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done

    def wait(self) -> None:
        """Wait until drivers can connect to it."""
        wait_for(lambda: "Ray runtime started" in Path(self._log.name).read_text(), 120)

    def stop(self) -> None:
        # `ray stop` would end every Ray on the machine; and asked to end, `ray start` waits half a minute for a head
        # that it has just ended
        for process in (*psutil.Process(self._process.pid).children(recursive=True), self._process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._temp, ignore_errors=True)


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """Call a function where no Ray is connected yet; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        executor.submit(function, *arguments).result()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.2)


def free_port() -> int:
    """Return a port that nobody listens on; Ray's own choices are fixed numbers, which another Ray may have."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
