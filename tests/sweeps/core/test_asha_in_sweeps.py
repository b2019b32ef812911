"""What ASHA does to a sweep, seen by its rows: any metric and direction, whole panels, and rungs after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.sweeps.stub_sweep import main

pytestmark = pytest.mark.slow


def rows(folder: Path) -> pd.DataFrame:
    """Return the last attempt of each trial, in the order in which they ended."""
    trials = pd.read_parquet(folder / "stub" / "r" / "trials").sort_values("finished_at")
    return trials.drop_duplicates("trial_id", keep="last")


def score(quality: float, epoch: int) -> float:
    return -quality * (1 + 1 / epoch)


def test_a_pool_sweep_is_judged_on_its_own_metric_and_its_rungs_are_there_after_a_restart(tmp_path: Path) -> None:
    sweep = ["--sweep", "quality=grid(1.0, 1.5, 2.0)"]
    assert main("pool", tmp_path, sweep) == 0
    first = rows(tmp_path)
    assert len(first) == 6 and {*first["status"]} == {"success", "stopped"}
    assert (first["rung"].isin([5, 15]) & (first["stop_reason"] == "asha")).equals(first["status"] == "stopped")
    # as good as the best; its cutoff at rung 5 is that of the three before it, at 15 that of those that got there
    assert main("pool", tmp_path, ["--sweep", "quality=grid(1.0, 1.5, 2.0, 1.9)"]) == 0
    added = rows(tmp_path)[lambda t: ~t["trial_id"].isin(first["trial_id"])]
    cutoff = -np.percentile([-score(quality, 5) for quality in (1.0, 1.5, 2.0)], 100 / 3)
    assert len(added) == 2 and (added["rung"] == 5).all() and (added["status"] == "stopped").all()
    assert np.allclose(added["asha_cutoff"], cutoff)


def test_a_resumed_panel_is_judged_as_a_whole_and_so_are_those_after_it(tmp_path: Path) -> None:
    run = tmp_path / "stub" / "r"
    run.mkdir(parents=True)
    (run / "fails-b").touch()
    # task a has ended in epoch 6 when b fails in epoch 8; of b it is known that it passed rung 5
    search = ["--sweep", "quality=uniform(0.5, 2.0)"]
    assert main("panel", tmp_path, [*search, "--num-samples", "1"], last={"a": 6}) == 1
    assert {*zip(rows(tmp_path)["task_id"], rows(tmp_path)["status"], strict=True)} == {
        ("a", "success"),
        ("b", "failed"),
    }
    (run / "fails-b").unlink()
    assert main("panel", tmp_path, [*search, "--num-samples", "1"], last={"a": 6}) == 0
    done = rows(tmp_path)
    assert {*done["status"]} == {"success"} and len(done) == 2
    # the second configuration has the whole panel of the first before it
    assert main("panel", tmp_path, [*search, "--num-samples", "2"], last={"a": 6}) == 0
    quality = done["config/quality"].iloc[0]
    second = rows(tmp_path)[lambda t: ~t["trial_id"].isin(done["trial_id"])]
    cutoffs = {5: score(quality, 5), 15: (score(quality, 6) + score(quality, 15)) / 2}
    assert len(second) == 2
    judged = second[second["rung"].notna()]
    assert len(judged) and np.allclose(judged["asha_cutoff"], judged["rung"].map(cutoffs))


def test_an_ordinary_sweep_stores_rung_and_cutoff(tmp_path: Path) -> None:
    assert main("ordinary", tmp_path, ["--sweep", "quality=grid(1.0, 2.0)"], good_first=True) == 0
    done = rows(tmp_path).set_index("config/quality")
    assert done["status"].to_dict() == {1.0: "success", 2.0: "stopped"}
    assert done["rung"].to_dict() == {1.0: 15, 2.0: 5} and done["stop_reason"].to_dict() == {1.0: "epochs", 2.0: "asha"}
    assert np.isclose(done.loc[2.0, "asha_cutoff"], score(1.0, 5))
