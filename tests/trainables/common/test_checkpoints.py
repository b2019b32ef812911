"""Checkpoints: complete or absent, the last and the best kept, another identity refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainables.common.checkpoints import CheckpointMeta, Checkpoints, best_of, require_same
from trainables.common.errors import InputError
from trainables.common.folder import Folder


def _kept(folder: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("step-")) for file in folder.glob("*.pt"))


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(tmp_path), keep=2)
    for step, metric in ((10, None), (20, 0.9), (30, 0.4), (40, 0.9), (50, None), (60, 0.1), (70, None)):
        checkpoints.save(CheckpointMeta(step, metric, {"width": 8}), {"weights": torch.full((2,), float(step))})
    assert _kept(tmp_path) == [40, 60, 70]
    notes = checkpoints.notes()
    assert [note.step for note in notes] == [40, 60, 70]
    best = best_of(notes)
    assert best == CheckpointMeta(40, 0.9, {"width": 8})
    assert torch.equal(checkpoints.load(best)["weights"], torch.full((2,), 40.0))
    assert best_of([CheckpointMeta(1, None, {})]) is None


def test_a_half_written_checkpoint_does_not_exist(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder(tmp_path), keep=2)
    checkpoints.save(CheckpointMeta(10, None, {}), {"step": 10})
    # killed between the state and its note
    (tmp_path / "step-000000020.pt").write_bytes(b"half")
    assert [note.step for note in checkpoints.notes()] == [10]
    checkpoints.save(CheckpointMeta(20, None, {}), {"step": 20})
    assert checkpoints.load(checkpoints.notes()[-1]) == {"step": 20}


@pytest.mark.parametrize("suffix", ["pt", "json"])
@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"\0" * len(d)])
def test_where_the_newest_is_damaged_the_one_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    checkpoints = Checkpoints(Folder(tmp_path), keep=1)
    assert checkpoints.newest({"width": 8}) is None
    for step in (10, 20, 30):
        checkpoints.save(CheckpointMeta(step, None, {"width": 8}), {"step": step})
    assert checkpoints.newest({"width": 8}) == (CheckpointMeta(30, None, {"width": 8}), {"step": 30})
    file = tmp_path / f"step-000000030.{suffix}"
    file.write_bytes(damage(file.read_bytes()))
    assert checkpoints.newest({"width": 8}) == (CheckpointMeta(20, None, {"width": 8}), {"step": 20})
    assert f"{file} is damaged" in caplog.text
    with pytest.raises(InputError, match="made with width = 8, but this run has 9"):
        checkpoints.newest({"width": 9})


def test_another_identity_is_refused_by_name() -> None:
    note = CheckpointMeta(10, None, {"width": 8, "betas": [0.9, 0.95]})
    require_same(note, {"width": 8, "betas": (0.9, 0.95)}, "here")
    with pytest.raises(InputError, match="in here was made with width = 8, but this run has 16; give the same setting"):
        require_same(note, {"width": 16, "betas": (0.9, 0.95)}, "here")
    with pytest.raises(InputError, match="made with depth = null, but this run has 2"):
        require_same(note, {"width": 8, "betas": (0.9, 0.95), "depth": 2}, "here")


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (b"", "not valid JSON"),
        (b"null", "holds null"),
        (b"{}", "holds an empty object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"step": 1, "metric": null}', "an object with 'step', 'metric'"),
    ],
)
def test_a_note_that_says_nothing_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, note: bytes, said: str
) -> None:
    (tmp_path / "step-000000001.json").write_bytes(note)
    assert Checkpoints(Folder(tmp_path), 2).notes() == []
    assert "step-000000001.json" in caplog.text and said in caplog.text
