"""The script that a GPU runs, in tiny sizes on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_step_of_the_script_passes(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", "benchmarks/gpu.sh", "cpu", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("canvas/run", "batching-cpu", "adapters-cpu", "job-cpu", "unseen-cpu"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["hardware"]
