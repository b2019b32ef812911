from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from datetime import datetime

import pytest
from pydantic import PositiveFloat, PositiveInt

from search_spaces.space import Preset, SearchSpace
from sweeps.core.arc_options import parse_tasks, read_taxonomy, task_options
from sweeps.core.cli import common_parser, new_run_id, run_main, worker_options
from sweeps.settings import spaces
from trainables.common.errors import InputError
from trainables.common.family import Family


@dataclass(frozen=True)
class Toy:
    rank: PositiveInt = 16
    """LoRA rank r; what more than 99% of all adapters have is ``small``, and a line of documentation may be long."""
    lr: PositiveFloat = 0.1
    """Learning rate."""


PRESETS = {"smoke": Preset("tiny"), "full": Preset("all")}
SPACE = SearchSpace(Family("toy"), Toy, PRESETS, groups={"adapter": "rank", "training": "lr"})
IDS = ["007bbfb7", "00d62c1b", "017c7c7b", "025d127b"]
SIZES = dict(zip(IDS, (90, 40, 40, 10), strict=True))


@pytest.fixture
def parser():
    parser = common_parser(SPACE, "Trains a toy.")
    task_options(parser)
    worker_options(parser)
    return parser


def test_relative_results_of_a_submitted_job_are_in_the_home_folder(parser, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    given = {"results": "~/results", "/shared/r": "/shared/r", "s3://b/r": "s3://b/r", "~/r": "~/r"}
    assert {text: parser.parse_args(["--results-dir", text]).results_dir for text in given} == given
    assert parser.parse_args([]).results_dir == "~/results"


def test_defaults(parser):
    args = vars(parser.parse_args([]))
    assert len(args.pop("run_id")) == len("20250131-235959-1a2b")
    assert args == {
        "num_gpus": None,
        "preset": "full",
        "num_samples": 1,
        "sets": [],
        "sweeps": [],
        "config": None,
        "results_dir": "results",
        "address": None,
        "seed": 0,
        "wandb": "off",
        "wandb_per_trial": False,
        "tensorboard": False,
        "tasks": None,
        "data": None,
        "base": None,
        "slots": "auto",
        "taxonomy": None,
        "workers_per_trial": 1,
        "search": "random",
    }


def test_every_option_is_read(parser):
    text = (
        "--num-gpus 0 --preset smoke --num-samples 4 --set rank=8 --set lr=1 --sweep rank=4,8 --config a.yaml "
        "--slots 32 --results-dir s3://b/r --run-id my.run-1 --address auto --seed 3 --wandb offline --tasks all "
        "--data re-arc:/d --base b.safetensors --taxonomy t.json --workers-per-trial 0"
    )
    args = parser.parse_args(text.split())
    assert (args.num_gpus, args.num_samples, args.slots, args.seed, args.workers_per_trial) == (0, 4, 32, 3, 0)
    assert args.sets == ["rank=8", "lr=1"] and args.sweeps == ["rank=4,8"]
    assert args.run_id == "my.run-1" and args.results_dir == "s3://b/r"
    # the next parser starts from nothing again
    assert common_parser(SPACE, "").parse_args([]).sets == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--num-gpus -1", ["--num-gpus", "'-1' must be a whole number of at least 0"]),
        ("--num-gpus two", ["'two' must be a whole number"]),
        ("--num-samples 0", ["'0' must be a whole number of at least 1"]),
        ("--num-samples 1.5", ["'1.5'"]),
        ("--slots 0", ["--slots", "'0' must be a whole number of at least 1, or auto"]),
        ("--slots many", ["'many'", "or auto"]),
        ("--seed -1", ["--seed"]),
        (f"--seed {2**32}", ["--seed", "'4294967296' must be a whole number of at most 4294967295"]),
        (f"--seed {2**64}", ["--seed", "of at most 4294967295"]),
        ("--seed " + "9" * 5000, ["--seed", "must be a whole number"]),
        (f"--num-samples {2**64}", ["--num-samples", "at most"]),
        ("--results-dir /a=b/results", ["--results-dir", "'/a=b/results' has a '=' in its path"]),
        ("--results-dir s3://bucket/a=b/results?region=c", ["has a '=' in its path"]),
        ("--results-dir /dev/null/results", ["--results-dir", "is no folder: /dev/null is a file"]),
        ("--workers-per-trial -1", ["--workers-per-trial"]),
        ("--preset smok", ["'smok' is not one of smoke, full; did you mean 'smoke'?"]),
        ("--wandb of", ["'of' is not one of off, offline, online; did you mean 'off'"]),
        ("--run-id ../x", ["--run-id", "'../x' must be a folder's name"]),
        ("--run-id " + "x" * 101, ["folder's name"]),
        ("--num-gpu 1", ["unrecognized arguments: --num-gpu 1; did you mean '--num-gpus'"]),
        ("--resultsdir=x", ["did you mean '--results-dir'"]),
        ("--set", ["--set", "expected one argument"]),
        ("rank=8", ["unrecognized arguments: rank=8", "--help"]),
    ],
)
def test_bad_options_exit_with_2_and_one_line(parser, capsys, arguments, parts):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


def test_the_folder_that_a_relative_results_folder_lies_in_counts(parser, tmp_path, monkeypatch, capsys):
    (tmp_path / "run=1").mkdir()
    monkeypatch.chdir(tmp_path / "run=1")
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "has a '=' in its path" in capsys.readouterr().err
    assert parser.parse_args(["--results-dir", "s3://bucket/results?region=c"]).results_dir.endswith("?region=c")


def test_help_names_every_preset(parser):
    text = parser.format_help()
    assert "smoke: tiny; full: all" in " ".join(text.split())
    assert text.startswith("usage:") and "Trains a toy." in text


@pytest.mark.parametrize("columns", [80, 120])
def test_help_lists_the_settings_below_their_headings(parser, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, _, text = parser.format_help().partition("\n\nsettings and their defaults, adapter:\n")
    assert max(map(len, text.splitlines())) in range(columns - 20, columns)
    words = " ".join(text.split())
    assert words.startswith("rank=16 LoRA rank r; what more than 99% of all adapters have is small, and")
    assert "be long (whole number, at least 1) settings and their defaults, training: lr=0.1 Learning rate" in words
    assert words.endswith("(number, above 0)")


@pytest.mark.parametrize("columns", [80, 120])
def test_help_of_every_sweep_has_all_of_its_settings_within_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, space in spaces():
        _, *lines = common_parser(space, "").format_help().partition("\nsettings and their defaults")[2].splitlines()
        assert max(map(len, lines)) < columns, name
        listed = [line.split("=")[0].strip() for line in lines if line.startswith("  ") and not line.startswith("   ")]
        assert listed == [item.name for item in fields(space.config)], name


def test_options_of_a_group_are_absent_elsewhere():
    assert isinstance(common_parser(SPACE, ""), argparse.ArgumentParser)
    assert not hasattr(common_parser(SPACE, "").parse_args([]), "tasks")


def _fail(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "stderr"),
    [
        (lambda argv: None, 0, ""),
        (lambda argv: 1, 1, ""),
        (lambda argv: len(argv), 2, ""),
        (_fail(InputError("rank is 0\nbut must be 1.")), 2, "error: rank is 0 but must be 1.\n"),
        (_fail(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_exit_codes(capsys, main, code, stderr):
    with pytest.raises(SystemExit) as caught:
        run_main(main, ["a", "b"])
    assert caught.value.code == code
    assert capsys.readouterr().err == stderr


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(_fail(ZeroDivisionError()))


def test_run_ids_are_sortable_and_distinct():
    when = datetime(2025, 1, 31, 23, 59, 59)
    assert new_run_id(when).startswith("20250131-235959-")
    assert len({new_run_id(when) for _ in range(20)}) > 15


def test_tasks_by_name_and_by_size():
    assert parse_tasks("all", IDS, SIZES) == tuple(IDS)
    assert parse_tasks("smallest:3", IDS, SIZES) == ("025d127b", "00d62c1b", "017c7c7b")
    assert parse_tasks(" 025d127b, 007bbfb7,025d127b,", IDS, SIZES) == ("025d127b", "007bbfb7")
    assert parse_tasks("panel:2", IDS, SIZES, panel=lambda count: tuple(IDS[:count])) == ("007bbfb7", "00d62c1b")


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte-order mark"])
@pytest.mark.parametrize(
    "content", ["# chosen\n017c7c7b\n\n007bbfb7 # first\n017c7c7b\n", json.dumps(["017c7c7b", "007bbfb7", "017c7c7b"])]
)
def test_tasks_from_a_file(tmp_path, content, mark):
    path = tmp_path / "ids.txt"
    path.write_text(mark + content, encoding="utf-8")
    assert parse_tasks(str(path), IDS, SIZES) == ("017c7c7b", "007bbfb7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("007bbfb8", "--tasks 007bbfb8 names the unknown task '007bbfb8'; the nearest are 007bbfb7, "),
        ("007bbfb7,zzz,yyy", r"unknown task 'zzz' \(and 1 more\); the nearest are "),
        ("", "names no task; write all, smallest:N"),
        (",", "names no task"),
        ("smallest:0", "give a number from 1 to 4 after 'smallest:'"),
        ("smallest:5", "from 1 to 4"),
        ("smallest:x", "from 1 to 4"),
        ("panel:2", "only searches have panels; use smallest:2"),
        ("missing.txt", r"--tasks missing.txt cannot be read"),
        ("some/where", "cannot be read"),
        ("/", "cannot be read"),
    ],
)
def test_bad_tasks_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_tasks(text, IDS, SIZES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no task"),
        (b"# nothing\n", "names no task"),
        (b"[]", "names no task"),
        (b"[1, 2]", "one JSON list of task ids"),
        (b'{"a": 1}', "one JSON list of task ids"),
        (b'["017c7c7b"', "not valid JSON"),
        (b"007bbfb9\n", "the file names the unknown task '007bbfb9'; the nearest are 007bbfb7"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5_000 + b"]", "thousands of digits"),
        (b"[null]", "one JSON list of task ids"),
    ],
)
def test_bad_task_files_are_refused(tmp_path, content, message):
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        parse_tasks(str(path), IDS, SIZES)


def test_taxonomy(tmp_path):
    path = tmp_path / "categories.json"
    assert read_taxonomy(None) == {}
    path.write_text('{"007bbfb7": "C1"}')
    assert read_taxonomy(str(path)) == {"007bbfb7": "C1"}
    for content, message in (("[]", "one JSON object"), ('{"a": 1}', "one JSON object"), ("{", "not valid JSON")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_taxonomy(str(path))
    with pytest.raises(InputError, match="--taxonomy .*none.json cannot be read"):
        read_taxonomy(str(tmp_path / "none.json"))
