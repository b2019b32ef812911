"""Files of benchmarks' numbers, with what they depend on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def circumstances(device: str = "cpu") -> dict[str, Any]:
    """Return the command of this process, the commit, the date, the hardware and PyTorch's version."""
    here = Path(__file__).parent
    if device == "cuda":
        import torch

        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"{platform.machine()}, {os.cpu_count()} cores, no GPU used"
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True).stdout.strip(),
        "date": str(date.today()),
        "hardware": hardware,
        "torch": version("torch"),
    }


def record(file: str | None, found: Mapping[str, Any], device: str = "cpu") -> None:
    """Write what was found, after its circumstances, as JSON; None: write nothing."""
    if file:
        Path(file).write_text(json.dumps({**circumstances(device), **found}, indent=2) + "\n")
