"""Tests of the command that makes data sets; re-ARC's own generators draw."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweeps import datasets
from trainables import arc

TASKS = "007bbfb7,3c9b0459,d511f180"


def write(file: Path, *options: str) -> int:
    return datasets.main(["re-arc", "--examples", "12", "--tasks", TASKS, "--out", str(file), *options])


def test_the_file_holds_distinct_checked_examples_and_says_where_they_are_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.parquet"
    assert write(file, "--processes", "2") == 0
    out = capsys.readouterr().out
    assert "3/3 tasks" in out and "36 examples of 3 tasks" in out
    metadata = pq.read_schema(file).metadata
    assert metadata[b"seed"] == b"0" and b"MIT" in metadata[b"licence"] and b"reasoning-gym 0" in metadata[b"source"]
    pairs = arc.read_pairs(file)
    assert list(pairs) == sorted(TASKS.split(","))
    _, verifiers = datasets.re_arc_programs()
    for task_id, own in pairs.items():
        assert len({arc.grid_key(pair.input) for pair in own}) == len(own) == 12
        for pair in own:
            grid = tuple(map(tuple, pair.input.tolist()))
            assert verifiers[task_id](grid) == tuple(map(tuple, pair.output.tolist()))
    task = arc.load_tasks(f"re-arc:{file}")["007bbfb7"]
    assert (len(task.train), len(task.validation), len(task.test), len(task.official)) == (10, 1, 1, 1)


def test_the_seed_alone_decides_what_is_drawn(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two", "other")]
    for file, options in zip(files, (("--processes", "1"), ("--processes", "3"), ("--seed", "1")), strict=True):
        assert write(file, *options) == 0
    one, two, other = ([p.input.tolist() for p in arc.read_pairs(f)["007bbfb7"]] for f in files)
    assert one == two != other


def test_low_difficulties_make_small_grids(tmp_path: Path) -> None:
    sizes = []
    for name, difficulty in (("small", "0.1"), ("large", "1")):
        assert write(tmp_path / name, "--difficulties", difficulty) == 0
        sizes.append(sum(pair.input.size for pair in arc.read_pairs(tmp_path / name)["d511f180"]))
    assert 3 * sizes[0] < sizes[1]


def test_a_task_with_few_different_inputs_ends(tmp_path: Path) -> None:
    drawn = datasets.draw_examples("d511f180", 60, 0, (0.001,))
    assert 0 < len(drawn.pairs) < 60
    assert drawn.left_out["drawn before"] >= datasets.FRUITLESS_DRAWS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "nothing", "--out", "pairs"], "--tasks names 'nothing', of which re-ARC has no generator"),
        (["--out", "absent/pairs"], "there is no folder absent; make it first"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert datasets.main(["re-arc", "--examples", "1", *options]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize("difficulties", ["0", "2", "a", ""])
def test_a_difficulty_out_of_range_is_refused(difficulties: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        datasets.main(["re-arc", "--examples", "1", "--difficulties", difficulties, "--out", "pairs"])
    assert "above 0 and at most 1" in capsys.readouterr().err


def test_without_the_package_the_line_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert datasets.main(["re-arc", "--examples", "1", "--out", "pairs"]) == 2
    assert "pip install --no-deps reasoning-gym" in capsys.readouterr().err
