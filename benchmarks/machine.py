"""Files of benchmarks' numbers, with what they depend on."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from sweeps.store.provenance import code, hardware, libraries
from trainables.common.environment import environment_without_ray


def circumstances() -> dict[str, Any]:
    """Return the command of this process, the date, the code (None outside a git repository), the machine and the
    libraries' versions."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": str(date.today()),
        "code": code(),
        "hardware": hardware(),
        "versions": libraries(),
    }


def end_with_parent() -> None:
    """Have this process, which another one started by ``multiprocessing``, end when that one does, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def as_worker() -> None:
    """Start this process anew in the environment of a sweep's workers, unless it has it."""
    environment = {**os.environ, **environment_without_ray()}
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def record(file: str | None, found: Mapping[str, Any]) -> None:
    """Write what was found, after its circumstances, as JSON; None: write nothing."""
    if file:
        Path(file).write_text(json.dumps({**circumstances(), **found}, indent=2) + "\n")
