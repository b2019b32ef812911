"""The prompted grid agent through the runner: rows beside their baselines, and bad input as one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from search_spaces.arc_efe import SPACE
from sweeps import arc_efe
from sweeps.core import cli
from sweeps.core.sweep import Sweep
from tests.trainables.arc_efe.tiny import save_language_model
from trainables.common.errors import InputError


def test_a_run_goes_on_with_its_language_model_in_another_folder_and_with_no_other(tmp_path: Path) -> None:
    first = save_language_model(tmp_path / "first")
    moved = shutil.copytree(tmp_path / "first", tmp_path / "moved")

    def sweep(lm: str) -> Sweep:
        parser = cli.common_parser(SPACE, "")
        cli.worker_options(parser)
        arc_efe.add_options(parser)
        words = ["--preset", "smoke", "--results-dir", str(tmp_path / "results"), "--run-id", "r", "--set", f"lm={lm}"]
        args = parser.parse_args(words)
        config, domains = SPACE.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
        return Sweep("arc_efe", SPACE, args, config, domains, arc_efe.prepare(args, config, domains).inputs)

    def job(sweep: Sweep) -> str:
        return sweep.job("arc_efe", vars(sweep.config), 0, 0).trial_id

    before, after = sweep(first), sweep(f"hf:{moved}")
    before.open_store()
    after.open_store()
    assert job(before) == job(after)
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    other = sweep(f"hf:{moved}")
    assert job(other) != job(before)
    with pytest.raises(InputError, match="has config.lm = "):
        other.open_store()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_sweep_leaves_complete_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = save_language_model(tmp_path / "lm")
    fixed = ["--preset", "smoke", "--num-gpus", "0", "--workers-per-trial", "0", "--set", f"lm={lm}"]
    place = ["--results-dir", str(tmp_path), "--run-id", "r"]
    assert arc_efe.main([*fixed, *place, "--sweep", "lm_training=ablate(lora)"]) == 0
    table = capsys.readouterr().out
    assert "exact without a prompt" in table and "cells by copying" in table
    folder = tmp_path / "arc_efe" / "r"
    trials, history = pd.read_parquet(folder / "trials"), pd.read_parquet(folder / "history")
    assert (trials["status"] == "success").all() and sorted(trials["lm_training"]) == ["frozen", "lora"]
    measured = ("exact_accuracy", "no_prompt_cell_accuracy", "copy_cell_accuracy", "prior_cell_accuracy")
    for column in (*measured, "change_recall", "score_before", "score_after", "hard_share", "memory_hits"):
        assert trials[column].notna().all(), column
    assert (trials.set_index("lm_training")["lm_grad_norm"] > 0).to_dict() == {"frozen": False, "lora": True}
    assert (history["term_grad_norm/bidirectional"] > 0).all() and (history["grad_norm/policy"] > 0).all()
    for trial in trials["trial_id"]:
        assert (folder / "models" / trial / "agent.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "weight_riks=0"], "did you mean 'weight_risk'"),
        (["--set", "prompt=json"], "prompt must be one of 'rule', 'plain', 'none', not 'json'"),
        (["--set", "max_side=1"], "No task has sides of at most 1 and two different pairs; raise max_side."),
        (["--set", "lm=gpt5"], "lm 'gpt5' is not one of smollm2, minilm; or write hf:NAME_OR_FOLDER"),
        (["--tasks", "smallest:0"], "--tasks smallest:0: give a number from 1 to 400"),
        (["--workers-per-trial", "2"], "--workers-per-trial is 2, but one agent trains on one device; give 0 or 1."),
        (["--data", "nowhere"], "--data 'nowhere' is not a data source"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run_main(arc_efe.main, ["--preset", "smoke", "--results-dir", str(tmp_path), *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
