"""The reasoner through the runner: rows, restarts, and bad input as one sentence with exit code 2."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from sweeps import recursive_reasoner
from sweeps.core.cli import run_main
from trainables.common.errors import InputError
from trainables.puzzles.kinds import KINDS


def _words(folder: Path, *arguments: str) -> list[str]:
    return ["--preset", "smoke", "--num-gpus", "0", "--results-dir", str(folder), "--run-id", "r", *arguments]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_sweep_over_halting_rules_leaves_complete_rows_and_can_be_extended(tmp_path: Path) -> None:
    swept = ["--workers-per-trial", "0", "--sweep", "halting=fixed,bce,dqn"]
    for samples in (2, 4):
        assert recursive_reasoner.main(_words(tmp_path, *swept, "--num-samples", str(samples))) == 0
    folder = tmp_path / "recursive_reasoner" / "r"
    trials, history = pd.read_parquet(folder / "trials"), pd.read_parquet(folder / "history")
    assert len(trials) == 4 and trials["trial_id"].is_unique and (trials["attempt"] == 1).all()
    assert set(trials["status"]) <= {"success", "stopped"} and (trials["status"] == "success").any()
    done = trials[trials["status"] == "success"]
    assert (done["dataset"] == "sudoku4").all() and (done["planner"] == "none").all()
    assert done["halting"].tolist() == done["config/halting"].tolist()
    for column in ("token_accuracy", "exact_accuracy", "mean_steps", "metric/flops_per_puzzle"):
        assert done[column].notna().all(), column
    for name in ("direct_exact_accuracy", "majority_token_accuracy", "metric/puzzles_per_second"):
        assert (done[name] >= 0).all(), name
    assert (history["grad_norm/network"] > 0).all() and history["exact_accuracy"].notna().all()
    assert {"halted_at_step/3", "exact_at_step/1", "answer_loss", "lr"} <= set(history.columns)
    for trial in done["trial_id"]:
        assert (folder / "models" / trial / "reasoner.pt").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_optuna_with_asha_goes_on_after_a_kill_and_when_it_is_extended(tmp_path: Path) -> None:
    # epochs 1 and 3 have no evaluation
    length = ["--set", "epochs=4", "--set", "eval_every=2", "--set", "direct_baseline=false"]
    swept = ["--sweep", "halting=fixed,bce", "--sweep", "lr=loguniform(1e-5, 1e-2)", *length]
    search = ["--workers-per-trial", "0", "--search", "optuna", *swept]
    folder = tmp_path / "recursive_reasoner" / "r"
    script = [sys.executable, str(Path(recursive_reasoner.__file__))]
    killed = subprocess.Popen([*script, *_words(tmp_path, *search, "--num-samples", "2")])
    deadline = time.monotonic() + 120
    while (
        not list(folder.glob("models/*/checkpoints/*.json")) and killed.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    begun = list(json.loads((folder / "search.json").read_text()))
    assert not list(folder.glob("trials/*.parquet")), "the kill came too late to show anything"
    for samples in (2, 3):
        assert recursive_reasoner.main(_words(tmp_path, *search, "--num-samples", str(samples))) == 0
        trials = pd.read_parquet(folder / "trials")
        assert len(trials) == samples and trials["trial_id"].is_unique and (trials["attempt"] == 1).all()
        assert set(trials["status"]) <= {"success", "stopped"}
        assert set(begun) <= set(trials["config_hash"]), "what was begun is finished"
    assert trials["config/lr"].between(1e-5, 1e-2).all() and trials["config/lr"].is_unique
    history = pd.read_parquet(folder / "history")
    assert history.groupby("epoch")["exact_accuracy"].count()[[1, 3]].sum() == 0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_trial_as_a_ray_train_run_and_another_that_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # relative paths mean the driver's folder and not the workers'
    monkeypatch.chdir(tmp_path)
    results = Path("results")
    shards = ["--dataset", "maze", "--dataset-dir", "shards"]
    assert recursive_reasoner.main(_words(results, "--workers-per-trial", "1", *shards)) == 0
    assert sorted(file.suffix for file in Path("shards").iterdir()) == [".parquet", ".txt"]
    folder = results / "recursive_reasoner" / "r"
    first = pd.read_parquet(folder / "trials").iloc[0]
    assert (first["status"], first["dataset"], first["epochs"]) == ("success", "maze", 2)
    (trial,) = (folder / "models").iterdir()
    again = ["--workers-per-trial", "0", *shards, "--checkpoint", str(trial), "--run-id", "again"]
    assert recursive_reasoner.main(_words(results, *again)) == 0
    other = pd.read_parquet(results / "recursive_reasoner" / "again" / "trials").iloc[0]
    assert (other["exact_accuracy"], other["token_accuracy"]) == (first["exact_accuracy"], first["token_accuracy"])
    with pytest.raises(InputError, match="was made with width = 16, but this run has 32"):
        recursive_reasoner.main(_words(results, *again, "--run-id", "wider", "--set", "width=32"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_mixture_from_shards_leaves_a_row_with_the_accuracy_of_each_modality(tmp_path: Path) -> None:
    shards = ["--dataset-dir", str(tmp_path / "shards")]
    mixed = ["--workers-per-trial", "0", "--dataset", "mixed", "--set", "halting=bce", *shards]
    assert recursive_reasoner.main(_words(tmp_path, *mixed)) == 0
    folder = tmp_path / "recursive_reasoner" / "r"
    trial, history = pd.read_parquet(folder / "trials").iloc[0], pd.read_parquet(folder / "history")
    assert (trial["status"], trial["dataset"]) == ("success", "mixed")
    assert trial["direct_token_accuracy"] > 0 and (history["reconstruction_loss"] > 0).all()
    for name in ("text", "image", "grid"):
        assert history[f"exact_accuracy/{name}"].notna().all() and (history[f"grad_norm/{name}_encoder"] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "batch_size=100"], "batch_size is 100, more than the 64 puzzles of train_puzzles"),
        (["--dataset", "sudoku5"], f"--dataset 'sudoku5' is not one of {', '.join(KINDS)}; did you mean"),
        (["--set", "givens=0.2"], "givens is 0.2, at most 3 of the 16 cells of sudoku4; give 0.25 or more."),
        (["--set", "halting=bec"], "halting must be one of 'fixed', 'bce', 'dqn', not 'bec'; did you mean 'bce'?"),
        (["--search", "optuna"], "A search needs something to search: give --num-samples of at least 2"),
        (["--search", "optnua"], "'optnua' is not one of random, optuna; did you mean 'optuna'?"),
        (
            ["--search", "optuna", "--sweep", "ema=grid(0, 0.9)"],
            "ema is swept with grid(...) or ablate(...), which try",
        ),
        (["--dataset", "mixed", "--set", "front_end=tokens"], "front_end is tokens, but the puzzles of this dataset"),
        (["--dataset", "mixed", "--num-samples", "2", "--sweep", "front_end=capsules,tokens"], "front_end is tokens"),
        (["--checkpoint", "nowhere"], f"--checkpoint {Path('nowhere').absolute()} holds no checkpoint"),
        (["--wandb-per-trial"], "--wandb-per-trial says how to log to W&B, but --wandb is off; give --wandb offline"),
        (["--workers-per-trial", "3"], "--workers-per-trial 3 cannot share a batch_size of 16 evenly"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        run_main(recursive_reasoner.main, ["--preset", "smoke", "--results-dir", str(tmp_path), *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
