"""The plain run keeps reports and the latest checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainables.common.context import PlainRun


def test_reports_are_kept_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run = PlainRun()
    metrics = {"epoch": 1, "loss": 0.5}
    run.report(metrics)
    metrics["epoch"] = 2
    run.report(metrics, Path("ignored, for there is no folder"))
    assert [report["epoch"] for report in run.reports] == [1, 2]
    assert [json.loads(line)["epoch"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    assert run.checkpoint() is None and run.device == "cpu" and (run.rank, run.world_size) == (0, 1)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_a_checkpoint_is_a_fresh_start(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()
    assert PlainRun(folder=folder).checkpoint() is None


def test_the_latest_checkpoint_is_what_the_next_run_finds(tmp_path: Path) -> None:
    for text in ("first", "second"):
        source = tmp_path / text
        source.mkdir()
        (source / "state").write_text(text)
        PlainRun(folder=tmp_path / "run").report({}, source)
    found = PlainRun(folder=tmp_path / "run").checkpoint()
    assert found is not None and (found / "state").read_text() == "second"


def test_calls_are_made_in_order() -> None:
    assert PlainRun().map(lambda item: item * 2, range(3)) == [0, 2, 4]
