"""A sweep of an ordinary family whose loop reports what it should not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.sweeps.stub_sweep import main


@pytest.mark.slow
def test_a_report_that_does_not_fit_fails_its_own_trial_alone(tmp_path: Path) -> None:
    assert main("ordinary", tmp_path, ["--sweep", "says=ablate(text, no_epoch)", "--set", "epochs=3"]) == 1
    trials = pd.read_parquet(tmp_path / "stub" / "r" / "trials").set_index("config/says")
    assert trials["status"].to_dict() == {"score": "success", "text": "failed", "no_epoch": "failed"}
    # one says what is wrong after it has trained, the other is stopped by its first report
    assert "'score' of trials holds double" in trials.loc["text", "error"] and trials.loc["text", "epochs"] == 3
    assert "A report must have 'epoch'" in trials.loc["no_epoch", "error"]
    assert "stub_sweep.py" in trials.loc["no_epoch", "traceback"]
    history = pd.read_parquet(tmp_path / "stub" / "r" / "history")
    assert history["trial_id"].nunique() == 2
