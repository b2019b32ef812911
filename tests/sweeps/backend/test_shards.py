"""Shards are built as a stream on Ray Data, and a build that lost some goes on with those."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_a_build_resumes_at_the_missing_shards(tmp_path: Path) -> None:
    data = tmp_path / "data"
    size = ["--set", "train_puzzles=4000", "--set", "held_out_puzzles=500", "--dataset-dir", str(data)]
    command = [sys.executable, str(ROOT / "sweeps" / "recursive_reasoner.py"), "--preset", "smoke", "--num-gpus", "0"]
    command += ["--dataset", "sudoku6", "--results-dir", str(tmp_path / "results"), *size]

    def run(*more: str) -> list[str]:
        process = subprocess.run([*command, *more], capture_output=True, text=True, timeout=280)
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    first = run("--dataset-only")
    files = {file.name: file.read_bytes() for file in data.glob("*.parquet")}
    assert len(files) >= 3 and len(first) == len(files) + 1
    assert not (tmp_path / "results").exists()
    (data / "shard-000001.parquet").unlink()
    again = run("--dataset-only")
    assert len(again) == 2 and again[0].startswith("shard 1 (1 of 1)") and again[1] == first[-1]
    assert {file.name: file.read_bytes() for file in data.glob("*.parquet")} == files
