"""What a run remembers of its options, and which of them a later session may change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeps.core import cli
from sweeps.core.session import close
from sweeps.core.sweep import Inputs, Sweep
from sweeps.store.store import ResultsStore
from tests.sweeps.stub_sweep import SPACE
from trainables.common.errors import InputError
from trainables.common.jobs import Job


def sweep(folder: Path, *argv: str) -> Sweep:
    parser = cli.common_parser(SPACE, "")
    cli.worker_options(parser)
    parser.add_argument("--teacher")
    parser.add_argument("--place", default="here")
    args = parser.parse_args(["--results-dir", str(folder), "--run-id", "r", *argv])
    config, domains = SPACE.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
    return Sweep("stub", SPACE, args, config, domains, Inputs("f0", extendable=["place"]))


def test_every_option_is_remembered_and_those_that_are_not_extendable_stay(tmp_path: Path) -> None:
    store = sweep(tmp_path, "--teacher", "large", "--set", "epochs=3").open_store()
    settings = json.loads((Path(store.folder.root) / "run.json").read_text())["settings"]
    assert settings["teacher"] == "large" and settings["place"] == "here" and settings["tensorboard"] is False
    assert settings["config"]["epochs"] == 3 and not {"sets", "sweeps"} & settings.keys()
    sweep(tmp_path, "--teacher", "large", "--set", "epochs=3", "--place", "there", "--tensorboard").open_store()
    with pytest.raises(InputError, match='has teacher = "large", but this command has null'):
        sweep(tmp_path, "--set", "epochs=3").open_store()


def test_a_run_from_before_an_option_was_remembered_goes_on_without_it(tmp_path: Path) -> None:
    store = sweep(tmp_path).open_store()
    file = Path(store.folder.root) / "run.json"
    record = json.loads(file.read_text())
    for name in ("teacher", "tensorboard", "results_dir"):
        del record["settings"][name]
    del record["family"]
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match='has teacher = not set, but this command has "large"'):
        sweep(tmp_path, "--teacher", "large").open_store()
    assert sweep(tmp_path).open_store().family == SPACE.family


def test_trials_without_a_row_are_told_and_are_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = sweep(tmp_path)
    store: ResultsStore = one.open_store()
    store.append([{"trial_id": "a", "attempt": 1, "status": "success"}])
    jobs = [Job(name, name, 0, {}) for name in "abc"]
    assert close(one, store, False, jobs[:1]) == 0
    assert close(one, store, False, jobs) == 1
    assert "No result came of 2 trials, such as b" in capsys.readouterr().err
