"""Pre-training through the runner, as an ordinary family: in the Tune trial itself, and as a Ray Train run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from trainables.atomic_lora.model import load_champion

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_pre_training_leaves_rows_and_a_base(tmp_path: Path) -> None:
    fixed = ["--preset", "smoke", "--num-gpus", "0", "--set", "epochs=2"]
    place = ["--results-dir", str(tmp_path), "--run-id", "c"]
    command = [sys.executable, str(ROOT / "sweeps" / "champion.py"), *fixed, *place]
    process = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr
    folder = tmp_path / "champion" / "c"
    trial = pd.read_parquet(folder / "trials").iloc[0]
    assert trial["status"] == "success" and trial["epochs"] == 2
    history = pd.read_parquet(folder / "history")
    assert history["epoch"].tolist() == [1, 2] and (history["grad_norm/context_encoder"] > 0).all()
    assert not list((folder / "checkpoints").iterdir()), "a finished trial goes on from nothing"
    assert load_champion(next(folder.glob("models/*/champion.safetensors"))).config.width == 32
