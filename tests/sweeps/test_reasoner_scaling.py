"""Accuracy against thinking time, through the command: its rows, what they must agree with, and bad input."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from search_spaces.recursive_reasoner import SMOKE_VALUES
from sweeps.core import cli
from sweeps.reasoner_scaling import FILE, main
from sweeps.store.store import ResultsStore
from tests.dashboards.stores import new_store, reasoner, trial
from trainables.common.context import PlainRun
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import load_dataset
from trainables.recursive_reasoner.train import train_loop

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultsStore, dict[str, dict[str, float]]]:
    """Return a run of three reasoners that were really trained, on mazes and 4x4 Sudoku, and their last rows."""
    store = new_store(tmp_path_factory.mktemp("results"), sweep="recursive_reasoner", dataset_dir=None)
    rows, last = [], {}
    for name, dataset, halting in (("maze", "maze", "bce"), ("fixed", "sudoku4", "fixed"), ("dqn", "sudoku4", "dqn")):
        config = ReasonerConfig(**{**SMOKE_VALUES, "epochs": 1, "halting": halting, "direct_baseline": False})
        run, folder = PlainRun(), store.folder.sub(f"models/{name}").location
        settings = {"config": dataclasses.asdict(config), "dataset": dataset, "data_seed": 0, "dataset_dir": None}
        train_loop({**settings, "seed": 0, "folder": folder, "checkpoint": None}, run)
        found = load_dataset(dataset, config)
        last[name] = run.reports[-1]
        row = reasoner(name, last[name]["exact_accuracy"], last[name]["mean_steps"], dataset=dataset, halting=halting)
        rows.append({**row, "data_fingerprint": found.fingerprint})
    store.append(rows)
    return store, last


def test_rows_hold_every_way_to_think_and_agree_with_the_training(
    trained: tuple[ResultsStore, dict[str, dict[str, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, last = trained
    options = ["--steps", "6", "--trajectories", "2,3", "--noise", "0.1,0.5", "--symmetries", "2", "--puzzles", "32"]
    assert main([store.folder.location, *options]) == 0
    assert "best_score" in capsys.readouterr().out
    rows = pd.read_parquet(f"{store.folder.location}/{FILE}")
    assert set(rows["trial_id"]) == {"maze", "fixed", "dqn"}
    assert set(rows["most_steps"]) == {1, 2, 3, 4, 6}
    everything = {"steps", "halting", "best_score", "first_to_halt", "symmetry_votes"}
    methods = rows.groupby("trial_id")["method"].agg(set)
    assert methods["maze"] == methods["dqn"] == everything
    assert methods["fixed"] == everything - {"halting", "first_to_halt"}, "a rule that never halts has none to be first"
    assert set(rows.loc[rows["trial_id"] == "maze", "level"]) == {"as trained", "harder"}
    for name, level in (("maze", "as trained"), ("fixed", "as trained")):
        own = rows[(rows["trial_id"] == name) & (rows["level"] == level)]
        as_trained = own[(own["method"] == "steps") & (own["most_steps"] == 3)].iloc[0]
        # the held-out puzzles of the last row are these, and their steps are the same
        assert as_trained["exact_accuracy"] == pytest.approx(last[name]["exact_at_step/3"])
        assert as_trained["flops_per_puzzle"] == pytest.approx(
            3 * last[name]["flops_per_puzzle"] / last[name]["mean_steps"]
        )
        assert as_trained["train_cpu_minutes"] == pytest.approx(last[name]["cpu_seconds"] / 60)
    ruled = rows[(rows["trial_id"] == "maze") & (rows["method"] == "halting") & (rows["most_steps"] == 3)].iloc[0]
    assert ruled["token_accuracy"] == pytest.approx(last["maze"]["token_accuracy"], abs=1e-6)
    assert ruled["steps"] == pytest.approx(last["maze"]["mean_steps"])
    spent = rows[rows["method"].isin(["best_score", "symmetry_votes"])]
    assert (spent["steps"] == spent["most_steps"] * spent["trajectories"]).all()
    first = rows[rows["method"] == "first_to_halt"]
    assert (first["steps"] <= first["most_steps"] * first["trajectories"]).all() and (first["steps"] >= 2).all()
    assert rows[rows["dataset"] == "maze"]["valid_accuracy"].notna().all()
    assert rows[rows["dataset"] != "maze"]["valid_accuracy"].isna().all()
    assert (rows["exact_accuracy"] <= rows["token_accuracy"]).all() and (rows["seconds_per_puzzle"] > 0).all()
    assert np.allclose(
        rows["flops_per_puzzle"] / rows["steps"], rows.groupby("trial_id")["flops_per_puzzle"].transform("min")
    )


def test_the_same_command_writes_the_same_rows(trained: tuple[ResultsStore, dict[str, dict[str, float]]]) -> None:
    store, _ = trained
    measured = []
    for seed in ("3", "3", "4"):
        main(
            [
                store.folder.location,
                "--trial",
                "maze",
                "--steps",
                "3",
                "--noise",
                "1",
                "--puzzles",
                "16",
                "--seed",
                seed,
            ]
        )
        rows = pd.read_parquet(f"{store.folder.location}/{FILE}").drop(columns=["seconds_per_puzzle", "seed"])
        assert set(rows["trial_id"]) == {"maze"}
        measured.append(rows)
    assert measured[0].equals(measured[1]) and not measured[0].equals(measured[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "nobody"], "--trial nobody is no successful trial of"),
        (["--noise", "0.1,-1"], "--noise is '0.1,-1' but must be above 0, or 0."),
        (["--trajectories", "1"], "--trajectories is '1' but must be at least 2, or 0."),
        (["--symmetries", "four"], "--symmetries is 'four' but must be numbers with commas between them"),
        (["--steps", "0"], "--steps is 0 but must be at least 1."),
        (["--puzzles", "0"], "--puzzles is 0 but must be at least 1."),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    message: str,
    trained: tuple[ResultsStore, dict[str, dict[str, float]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run_main(main, [trained[0].folder.location, *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_runs_without_reasoners_or_with_other_puzzles_are_refused(
    tmp_path: Path, trained: tuple[ResultsStore, dict[str, dict[str, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    other = new_store(tmp_path, "pool")
    other.append([trial("t0")])
    empty = new_store(tmp_path, "empty", sweep="recursive_reasoner")
    empty.append([reasoner("gone", 0.5, 2.0)])
    changed = new_store(tmp_path, "changed", sweep="recursive_reasoner")
    changed.append([reasoner("maze", 0.5, 2.0, dataset="maze")])
    weights = trained[0].folder.read("models/maze/reasoner.pt")
    assert weights is not None
    changed.folder.write("models/maze/reasoner.pt", weights)
    old = torch.load(io.BytesIO(weights), weights_only=True)
    old["config"]["ponder"] = 1
    older, damaged = (new_store(tmp_path, name, sweep="recursive_reasoner") for name in ("older", "damaged"))
    for store in (older, damaged):
        store.append([reasoner("maze", 0.5, 2.0, dataset="maze")])
    buffer = io.BytesIO()
    torch.save(old, buffer)
    older.folder.write("models/maze/reasoner.pt", buffer.getvalue())
    damaged.folder.write("models/maze/reasoner.pt", weights[:5000])
    for store, message in (
        (older, "models/maze/reasoner.pt: it holds settings that this version does not know: ponder; measure it"),
        (damaged, "models/maze/reasoner.pt: it is damaged; train it again."),
        (other, "is a run of atomic_lora; give one of recursive_reasoner."),
        (empty, "holds no trained reasoner (models/TRIAL/reasoner.pt); finish the run."),
        (changed, "have fingerprint f0, but this version draws"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.run_main(main, [store.folder.location])
        assert end.value.code == 2 and message in capsys.readouterr().err
