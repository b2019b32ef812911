"""What a run's numbers depend on besides its settings: the code, the libraries and the machine. Needs no Ray."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = ("ray", "torch", "transformers", "peft", "pyarrow")


def libraries() -> dict[str, str | None]:
    """Return the versions of the libraries that results depend on; None for one that is not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """Return what a program prints, or None where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code() -> dict[str, Any] | None:
    """Return the project's commit and whether files differ from it; None outside a git repository."""
    here = str(Path(__file__).parent)
    commit = _output("git", "-C", here, "rev-parse", "--verify", "HEAD")
    return commit and {"commit": commit, "dirty": bool(_output("git", "-C", here, "status", "--porcelain"))} or None


def hardware() -> dict[str, Any]:
    """Return the processor's model, cores, bytes of memory, and the GPUs' models."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus.splitlines() if gpus else [],
    }
