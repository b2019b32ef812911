"""What a trial keeps until its row is stored: every epoch's row, and the newest directory that is whole."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from sweeps.backend import runs
from sweeps.backend.runs import EARLIER, REPORT, TrialFolder, TuneRun
from trainables.common.folder import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "trial") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_the_first_row_of_a_process_brings_the_rows_of_the_processes_before(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "BLOCK_ROWS", 3)
    rows = [{"epoch": epoch, "loss": np.float32(1 / epoch), "best": math.nan, "says": "a"} for epoch in range(1, 12)]
    first = TrialFolder(folder)
    assert [first.keep(row) for row in rows[:8]] == [[]] * 8
    # the checkpoint is of epoch 6, and what follows is trained again
    second = TrialFolder(folder)
    (earlier, *later) = [second.keep(row) for row in rows[6:10]]
    assert [row["epoch"] for row in earlier] == [1, 2, 3, 4, 5, 6] and later == [[]] * 3
    assert earlier[2]["loss"] == float(np.float32(1 / 3)) and math.isnan(earlier[2]["best"])
    # of an epoch that was trained twice the later row counts; one that was never reported comes with the next
    third = TrialFolder(folder)
    third.recall({**rows[9], "says": "b"})
    assert [(row["epoch"], row["says"]) for row in third.keep(rows[10])] == [
        *((e, "a") for e in range(1, 10)),
        (10, "b"),
    ]


@pytest.mark.parametrize("damage", [lambda d: d[:1], lambda d: b"", lambda d: b"\0" * len(d)])
@pytest.mark.parametrize("file", ["checkpoint-000002/state", "checkpoint-000002.json"])
def test_where_the_newest_checkpoint_is_damaged_the_one_before_is_taken(
    folder: Folder, tmp_path: Path, file: str, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    kept, source = TrialFolder(folder), tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / "state").write_text(f"state {number}")
        kept.save(source, {"epoch": number + 1})
    assert folder.names() == ["checkpoint-000001.json", "checkpoint-000002.json"], "no more than two are kept"

    def loaded() -> str | None:
        local = tmp_path / uuid.uuid4().hex
        local.mkdir()
        return (local / "state").read_text() if TrialFolder(folder).load(local) is not None else None

    assert loaded() == "state 2"
    folder.write(file, damage(folder.read(file) or b""))
    assert loaded() == "state 1" and "checkpoint-000002 is damaged" in caplog.text
    folder.write("checkpoint-000001/state", b"")
    assert loaded() is None


def test_a_row_is_kept_before_it_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(metrics: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "report", killed)
    with pytest.raises(KeyboardInterrupt):
        TuneRun(Folder(tmp_path), False).report({"epoch": 1, "loss": 0.5})
    told: list[dict[str, object]] = []
    monkeypatch.setattr(tune, "report", told.append)
    TuneRun(Folder(tmp_path), False).report({"epoch": 2, "loss": 0.25})
    assert told == [
        {"epoch": 2, "loss": 0.25, REPORT: {"epoch": 2, "loss": 0.25}, EARLIER: [{"epoch": 1, "loss": 0.5}]}
    ]
