"""What every sweep keeps, whichever driver trains its trials: a stub family through the runner, on one Ray.

How a sweep is stopped and killed: test_ending.py. What real families add: their own tests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.sweeps.stub_sweep import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def rows(folder: Path) -> pd.DataFrame:
    """Return the last attempt of each trial, in the order in which they ended."""
    trials = pd.read_parquet(folder / "stub" / "r" / "trials").sort_values("finished_at")
    return trials.drop_duplicates("trial_id", keep="last")


def score(quality: float, epoch: int) -> float:
    return -quality * (1 + 1 / epoch)


def statuses(trials: pd.DataFrame) -> dict[float, set[str]]:
    """Return how the trials of each quality ended."""
    return {quality: set(ended["status"]) for quality, ended in trials.groupby("config/quality")}


@pytest.mark.parametrize("kind", ["pool", "ordinary"])
def test_a_sweep_is_judged_fails_in_part_is_finished_and_is_extended(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "stub" / "r"
    run.mkdir(parents=True)
    (run / "fails-1.0").touch()
    grid = "quality=grid(1.0, 2.0)"
    assert main(kind, tmp_path, ["--sweep", grid], good_first=True, epoch_s=0.2) == 1
    first = rows(tmp_path)
    assert len(first) == (4 if kind == "pool" else 2) and statuses(first)[1.0] == {"failed"}
    # a pool may begin with the worse, which is then alone at its rungs
    assert statuses(first)[2.0] <= ({"stopped", "success"} if kind == "pool" else {"stopped"})
    failed = first[first["config/quality"] == 1.0]
    assert failed["error"].notna().all() and failed["traceback"].notna().all()
    assert (failed["stop_reason"] == "error").all()
    # with one configuration more, the command finishes what failed and trains that one, and nothing else
    (run / "fails-1.0").unlink()
    more = ["--sweep", "quality=grid(1.0, 2.0, 1.9)"]
    assert main(kind, tmp_path, more, good_first=True, epoch_s=0.2) == 0
    both = rows(tmp_path)
    second, added = both[both["config/quality"] != 1.9], both[both["config/quality"] == 1.9]
    assert statuses(second) == statuses(first) | {1.0: {"success"}}
    assert (second["attempt"] == 1 + (second["config/quality"] == 1.0)).all()
    assert {*second[second["attempt"] == 1]["finished_at"]} == {*first[first["status"] != "failed"]["finished_at"]}
    # it is judged by the rungs of all before it
    assert len(added) == len(failed) and (added["status"] == "stopped").all() and (added["stop_reason"] == "asha").all()
    # the driver may hear of rung 5 too late to stop a pool's trial there
    early = added[added["rung"] == 5]["asha_cutoff"]
    assert np.allclose(early, np.percentile([score(quality, 5) for quality in (1.0, 2.0)], 200 / 3))
    assert added["asha_cutoff"].notna().all()
    history = pd.read_parquet(run / "history")
    assert not history.duplicated(["trial_id", "attempt", "epoch"]).any()
    assert main(kind, tmp_path, more, good_first=True, epoch_s=0.2) == 0
    assert rows(tmp_path)["finished_at"].max() == both["finished_at"].max(), "nothing was left to do"


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
