"""The agents through the runner: all five phases in one trial, phases that trials share, and bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sweeps import reasoning_agents
from sweeps.core.cli import run_main
from tests.sweeps.tiny import ROOT
from trainables.common.errors import InputError
from trainables.reasoning_agents import games, needs


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_trial_goes_through_five_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--preset", "smoke", "--num-gpus", "0", "--workers-per-trial", "0"]
    assert reasoning_agents.main([*fixed, "--results-dir", str(tmp_path), "--run-id", "r"]) == 0
    table = capsys.readouterr().out
    assert "HRM: steps found (criterion 70 %)" in table and "criteria met, of 5" in table
    folder = tmp_path / "reasoning_agents" / "r"
    trial, history = pd.read_parquet(folder / "trials").iloc[0], pd.read_parquet(folder / "history")
    assert trial["status"] == "success"
    for name in ("hrm_accuracy", "hrm_rule_accuracy", "refinements", "retrieval_precision", "mcts_win_rate",
                 "router_accuracy", "single_regret", "shuffled_regret", "system_accuracy", "criteria_met"):  # fmt: skip
        assert trial[name] >= 0, name
    stages = ["retrieval", "hrm", "trm", "tuning", "selfplay", "router", "evaluation"]
    assert history.sort_values("epoch")["stage"].tolist() == stages
    assert history["phase_metric"].notna().all() and set(history["phase"]) == {1, 2, 3, 4, 5}
    assert (history["grad_norm/lora"].dropna() > 0).all() and history["grad_norm/score_head"].notna().any()
    names = [path.name.split("-")[0] for path in (tmp_path / "reasoning_agents-phases").iterdir()]
    assert sorted(names) == ["index", *(f"phase{number}" for number in range(1, 6))]
    assert (folder / "models" / trial["trial_id"] / "shown.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phases", "6"], "--phases 6: there is no phase 6 among 1 (pre-training), 2 (instruction tuning)"),
        (["--phases", "4-5"], "Phase 4 (meta-controller) needs phase 1 (pre-training), which was never finished"),
        (["--set", "game=go"], "game is 'go', which is too large to solve"),
        (["--set", "game=chess2"], "game is 'chess2', which OpenSpiel cannot load"),
        (
            ["--backbone", "smollm2"],
            "--backbone smollm2 is no encoder but continues text; give an encoder such as minilm",
        ),
        (["--backbone", "minilmm"], "--backbone minilmm is neither a folder with a config.json nor a name of the hub"),
        (["--set", "epochs=8"], "epochs is 8 but must be 3 and a multiple of 4, such as 7"),
        (["--set", "router=mpl"], "router must be one of 'mlp', 'logistic', 'knn', not 'mpl'; did you mean 'mlp'?"),
        (["--set", "overlap=200"], "chunk_size is 256 but must be at least twice the overlap"),
        (["--workers-per-trial", "2"], "a trial of reasoning agents trains in one worker"),
        (["--preset", "smoek"], "'smoek' is not one of smoke, demo, full; did you mean 'smoke'?"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(games, "MOST_STATES", 2000)
    with pytest.raises(SystemExit) as end:
        run_main(reasoning_agents.main, ["--preset", "smoke", "--results-dir", str(tmp_path), *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(needs.PACKAGES, "nowhere_to_be_found", "nowhere==1.0")
    with pytest.raises(
        InputError, match=r"run 'pip install nowhere==1.0', or install this project with its extra \[agents\]"
    ):
        needs.require_packages()


def test_the_driver_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, sweeps.reasoning_agents; print(sorted({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert process.stdout.strip() == "[]", process.stderr
