"""Shards are built as a stream on Ray Data, and a build that lost some goes on with those."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps import recursive_reasoner


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_build_resumes_at_the_missing_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    size = ["--set", "train_puzzles=4000", "--set", "held_out_puzzles=500", "--dataset-dir", str(data)]
    words = ["--preset", "smoke", "--num-gpus", "0", "--dataset", "sudoku6", "--dataset-only"]
    words += ["--results-dir", str(tmp_path / "results"), *size]

    def build() -> list[str]:
        assert recursive_reasoner.main(words) == 0
        return capsys.readouterr().out.splitlines()

    first = build()
    files = {file.name: file.read_bytes() for file in data.glob("*.parquet")}
    assert len(files) >= 3 and len(first) == len(files) + 1
    assert not (tmp_path / "results").exists()
    (data / "shard-000001.parquet").unlink()
    again = build()
    assert len(again) == 2 and again[0].startswith("shard 1 (1 of 1)") and again[1] == first[-1]
    assert {file.name: file.read_bytes() for file in data.glob("*.parquet")} == files
