"""Shards: pure functions of their plan, checked when they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sweeps.backend.shards import build
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.puzzles.kinds import Kind
from trainables.puzzles.puzzles import Puzzles
from trainables.puzzles.shards import Plan
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import load_dataset

PLAN = Plan(Kind("sudoku4", 4), seed=3, shard_size=20)


def test_a_shard_reads_as_it_was_drawn(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    first = PLAN.write(folder, 1)
    assert PLAN.missing(folder, 3) == [0, 2]
    puzzles = PLAN.read(folder, 1)
    drawn = PLAN.kind.generate(20, np.random.default_rng([3, 1]))
    for name in ("inputs", "targets", "difficulty", "classes", "ids"):
        assert (getattr(puzzles, name) == getattr(drawn, name)).all(), name
    content = (tmp_path / "shard-000001.parquet").read_bytes()
    assert PLAN.write(folder, 1) == first and (tmp_path / "shard-000001.parquet").read_bytes() == content
    assert PLAN.write(folder, 2) != first


def test_a_shard_of_a_mixture_says_what_its_puzzles_are_shown_as(tmp_path: Path) -> None:
    plan = Plan(Kind("mixed", 4), seed=3, shard_size=20)
    plan.write(Folder(tmp_path), 0)
    ids = plan.read(Folder(tmp_path), 0).ids
    assert (ids == plan.kind.generate(20, np.random.default_rng([3, 0])).ids).all() and set(ids) == {0, 1, 2}


def test_a_shard_that_is_damaged_missing_or_of_another_plan_is_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(InputError, match=r"shard-000000.parquet is missing; build it with --dataset-only"):
        PLAN.read(folder, 0)
    PLAN.write(folder, 0)
    with pytest.raises(InputError, match="holds 20 sudoku4 of side 4, seed 3, shard 0, not 20 .* seed 4, shard 0"):
        replace(PLAN, seed=4).read(folder, 0)
    file = tmp_path / "shard-000000.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match="cannot be read .*; delete it and build it again"):
        PLAN.read(folder, 0)


@pytest.mark.parametrize(
    "damage",
    [lambda d: d[:-50], lambda d: b"", lambda d: d[:200] + b"\0" * 100 + d[300:]],
    ids=["cut", "empty", "changed"],
)
def test_a_damaged_shard_is_missing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder, file = Folder(tmp_path), tmp_path / "shard-000001.parquet"
    for index in range(3):
        PLAN.write(folder, index)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert PLAN.missing(folder, 3) == [1]
    PLAN.write(folder, 1)
    assert PLAN.missing(folder, 3) == [] and file.read_bytes() == whole


def test_a_folder_of_another_plan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    # the first shards are damaged, and only a later one says what the folder holds
    PLAN.write(Folder(tmp_path), 2)
    (tmp_path / "shard-000000.parquet").write_bytes(b"")
    (tmp_path / "plan.txt").write_text("sudoku4 of side 4, seed 3\n")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputError, match="holds 20 sudoku4 of side 4, seed 3, shard 2, not 20 .* seed 4, shard 2"):
        build(replace(PLAN, seed=4), str(tmp_path), 2)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_changed_puzzles_do_not_have_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainables.puzzles import shards

    monkeypatch.setattr(shards, "fingerprint", lambda puzzles: "0" * 16)
    PLAN.write(Folder(tmp_path), 0)
    monkeypatch.undo()
    with pytest.raises(InputError, match="does not have the fingerprint it was written with"):
        PLAN.read(Folder(tmp_path), 0)


def test_there_are_shards_enough_for_what_is_asked(tmp_path: Path) -> None:
    config = ReasonerConfig(train_puzzles=60, held_out_puzzles=20, maze_side=9)
    plan = Plan(Kind("maze", 9), seed=0)
    shards = plan.shards_for(60, 20)
    for index in range(shards):
        plan.write(Folder(tmp_path), index)
    dataset = load_dataset("maze", config, 0, str(tmp_path))
    assert (len(dataset.train), len(dataset.held_out)) == (60, 20)
    assert not set(dataset.train.classes.tolist()) & set(dataset.held_out.classes.tolist())
    drawn = Puzzles.concatenate([plan.read(Folder(tmp_path), index) for index in range(shards)])
    assert {row.tobytes() for row in dataset.train.inputs} <= {row.tobytes() for row in drawn.inputs}
    assert Plan(Kind("sudoku9", 9), 0).shards_for(100_000, 2_000) >= 100_000 / 2048 * 8 / 7
