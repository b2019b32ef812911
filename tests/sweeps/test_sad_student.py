"""SAD students through the runner: complete rows under Ray, and bad input as one sentence with exit code 2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from sweeps import sad_student
from sweeps.core.cli import run_main
from tests.trainables.common.tiny_package import installed
from tests.trainables.sad_student.models import save_tiny

SMOKE = ["--preset", "smoke", "--num-gpus", "0", "--workers-per-trial", "0"]
pytestmark = installed("smollm2")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_sweep_over_losses_leaves_complete_rows(tmp_path: Path) -> None:
    teacher = save_tiny(tmp_path / "teacher")
    place = ["--results-dir", str(tmp_path / "results"), "--run-id", "r", "--teacher-cache", str(tmp_path / "cache")]
    more = ["--teacher", teacher, "--student", "layers:1", "--sweep", "loss=grid(sad, guided)"]
    assert sad_student.main([*SMOKE, *place, *more]) == 0
    folder = tmp_path / "results" / "sad_student" / "r"
    trials, history = pd.read_parquet(folder / "trials"), pd.read_parquet(folder / "history")
    assert trials["loss"].tolist() == trials["config/loss"].tolist() and set(trials["status"]) == {"success"}
    for who in ("expert", "random", "teacher", "untrained"):
        assert trials[f"{who}_success_rate"].between(0, 1).all()
    for column in ("success_rate", "test_success_rate", "kl_reasoning", "kl_action", "token_accuracy_action"):
        assert trials[column].notna().all(), column
    assert (trials["teacher_tokens"] > 0).all() and (trials["trained_parameters"] > 0).all()
    assert {"success_rate_hops", "tokens_per_second", "grad_norm/q_proj", "lr"} <= set(history.columns)
    for trial in trials["trial_id"]:
        assert (folder / "models" / trial / "episode.json").is_file()
        assert (folder / "models" / trial / "student" / "model.safetensors").is_file()
    # what the teacher said is kept, and asked for once
    assert len(list((tmp_path / "cache").glob("targets-*.parquet"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "nowhere"], "No causal language model can be loaded from 'nowhere'"),
        (["--student", "layers:99"], "--student layers:99: the teacher has only"),
        (["--student", "minilm"], "Teacher and student have different vocabularies"),
        (["--set", "trajectories=3"], "trajectories is 3, fewer than the 8 of one step"),
        (
            ["--set", "reasoning_weight=0", "--set", "action_weight=0", "--set", "loss=sad"],
            "nothing that a student writes",
        ),
        (["--set", "depth=round:1:2"], "depth cannot be read: 'round:1:2' is not a schedule"),
        (
            ["--set", "loss=sda"],
            "loss must be one of 'ce', 'token_kd', 'sad', 'guided', not 'sda'; did you mean 'sad'?",
        ),
        (["--set", "mixture=1"], "mixture is 1.0 but must be above 0 and below 1"),
        (["--trajectories", "none.jsonl"], "none.jsonl cannot be read"),
        (["--teacher-server", "http://127.0.0.1:9/v1"], "The teacher at http://127.0.0.1:9/v1/models did not answer"),
        (["--server-command", "true"], "--server-command needs --teacher-server"),
        pytest.param(
            ["--environment", "textworld"],
            "--environment textworld needs the package textworld; install it",
            marks=pytest.mark.skipif(find_spec("textworld") is not None, reason="TextWorld is installed"),
        ),
        (["--workers-per-trial", "3"], "--workers-per-trial 3 cannot share a batch_size of 4 evenly"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        place = ["--results-dir", str(tmp_path), "--teacher", "smollm2"]
        run_main(sad_student.main, ["--preset", "smoke", *place, *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())
