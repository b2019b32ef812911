"""Ordinary families in the Tune trial, continued from the last checkpoint. As Ray Train runs: core/test_ordinary.py."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import Searcher

from sweeps.backend.asha import Decision, GroupedASHA
from sweeps.backend.cluster import ClusterInfo
from sweeps.backend.trials import InOrder, Training, TrialEnd, run_ordinary


def train_loop(config: dict[str, Any], run: Any) -> None:
    kept = run.checkpoint()
    first = json.loads((kept / "state.json").read_text())["epoch"] + 1 if kept else 1
    for epoch in range(first, config["epochs"] + 1):
        if epoch == config.get("breaks_at") and first == 1:
            raise RuntimeError(f"broke in epoch {epoch}")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps({"epoch": epoch}))
            metrics = {"epoch": epoch, "eval_loss": config["quality"] / epoch, "world_size": run.world_size}
            run.report(metrics, Path(folder) if run.rank == 0 else None)


def test_a_trial_without_workers_leaves_no_copies_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of Tune, which would only take the reports."""
    epochs: list[int] = []
    monkeypatch.setattr(tune, "report", lambda metrics: epochs.append(metrics["epoch"]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    training = Training(train_loop, "run", str(tmp_path / "checkpoints"), 0, use_gpu=False)
    for last in (2, 4):
        training.train("t", {"epochs": last, "quality": 1.0})
    assert epochs == [1, 2, 3, 4]
    assert not list((tmp_path / "scratch").iterdir())
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["t"]


class Heard:
    """The `TrialListener` that keeps everything."""

    def __init__(self, trial_ids: Iterable[str]) -> None:
        self.reports: dict[str, list[dict[str, Any]]] = {trial_id: [] for trial_id in trial_ids}
        self.ends: list[TrialEnd] = []
        self.ticks = 0

    def on_report(self, trial_id: str, metrics: dict[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
        self.reports[trial_id].append(metrics)

    def on_trial_end(self, end: TrialEnd) -> None:
        self.ends.append(end)

    def on_tick(self) -> None:
        self.ticks += 1


def run_trials(
    trials: list[tuple[str, dict[str, Any]]],
    tmp_path: Path,
    max_failures: int = 2,
    asha: GroupedASHA | None = None,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, TrialEnd]]:
    heard = Heard(trial_id for trial_id, _ in trials)
    training = Training(train_loop, "run", str(tmp_path), workers_per_trial=0, use_gpu=False, max_failures=max_failures)
    assert run_ordinary(trials, training, heard, metric="eval_loss", asha=asha)
    # the first comes while a trial's process starts, long before its report
    assert len(heard.ends) == len(trials) and heard.ticks
    return heard.reports, {end.trial_id: end for end in heard.ends}


def test_trials_are_given_out_in_turn_and_a_trial_id_that_comes_again_gets_none() -> None:
    search = InOrder({"unit": name} for name in "ab")
    given = [search.suggest(name) for name in ("tune-0", "tune-0", "tune-1", "tune-2")]
    assert given == [{"unit": "a"}, None, {"unit": "b"}, Searcher.FINISHED]


@pytest.mark.slow
def test_in_the_tune_trial(cluster: ClusterInfo, tmp_path: Path) -> None:
    trials = [(f"t{i}", {"epochs": 4, "quality": 1.0, "breaks_at": 3 if i else 0}) for i in range(2)]
    reports, ends = run_trials(trials, tmp_path, max_failures=1)
    for trial_id in ("t0", "t1"):  # t1 broke once and went on from its checkpoint
        assert [metrics["epoch"] for metrics in reports[trial_id]] == [1, 2, 3, 4]
        assert ends[trial_id].status == "success" and ends[trial_id].metrics["epoch"] == 4
    assert reports["t0"][0] == {"epoch": 1, "eval_loss": 1.0, "world_size": 1}

    # the same trial with more epochs, in a new run of the same name
    reports, _ = run_trials([("t0", {"epochs": 6, "quality": 1.0})], tmp_path)
    assert [metrics["epoch"] for metrics in reports["t0"]] == [5, 6]


@pytest.mark.slow
def test_failure_and_asha(cluster: ClusterInfo, tmp_path: Path) -> None:
    trials = [("good", {"epochs": 9, "quality": 1.0}), ("bad", {"epochs": 9, "quality": 5.0})]
    trials.append(("broken", {"epochs": 9, "quality": 1.0, "breaks_at": 1}))
    trials.append(("diverged", {"epochs": 9, "quality": math.nan}))
    scheduler = GroupedASHA(metric="eval_loss", mode="min", max_t=9, grace_period=3)
    _, ends = run_trials(trials, tmp_path, asha=scheduler, max_failures=0)
    statuses = {"good": "success", "bad": "stopped", "broken": "failed", "diverged": "failed"}
    assert {name: end.status for name, end in ends.items()} == statuses
    assert ends["bad"].decision == Decision(3, 5 / 3, 1 / 3, True)
    assert ends["diverged"].error == "eval_loss is nan in epoch 1: the training diverged."
    assert "broke in epoch 1" in str(ends["broken"].error)
    assert "in train_loop" in str(ends["broken"].traceback)
