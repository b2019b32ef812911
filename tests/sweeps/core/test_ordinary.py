"""Ordinary trials through the runner: how many train at once, their times, and how they end."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from search_spaces.recursive_reasoner import SPACE
from sweeps.backend.cluster import ClusterInfo
from sweeps.core import cli
from sweeps.core.ordinary import run_trials
from sweeps.core.sweep import Inputs, Sweep
from tests.sweeps import stub_sweep
from trainables.common.errors import InputError

# ----------------------------------------------------------------------------------------------------- how many at once


def info(**changes: Any) -> ClusterInfo:
    gpus = {"num_gpus": 0, "num_cpus": 17, "memory": 64 << 30, "local": True} | changes
    rest = {"address": "", "nodes": 1, "grows": False, "state_api": True, "dashboard_url": None}
    return ClusterInfo(**gpus, **rest)


@pytest.mark.parametrize(
    ("cluster", "workers", "trials", "at_once", "threads"),
    [
        # 8 trials of 4 GPUs each on 8 GPUs run two by two
        (info(num_gpus=8, num_cpus=33), 4, 8, 2, 4),
        (info(num_gpus=8, num_cpus=33), 1, 3, 3, 10),
        (info(num_gpus=2), 0, 5, 2, 8),
        # a trial that needs more than there is waits for an autoscaler
        (replace(info(num_gpus=2), grows=True), 4, 5, 1, 4),
        (info(), 0, 40, 16, 1),
        (info(), 1, 3, 3, 5),
        (info(), 2, 40, 8, 1),
        (info(), 1, 1, 1, 16),
        (info(memory=9 << 30), 1, 40, 4, 4),
        (info(local=False, num_cpus=2), 2, 3, 1, 1),
        (info(num_cpus=2), 1, 3, 1, 1),
    ],
)
def test_as_many_trials_run_at_once_as_have_room(
    cluster: ClusterInfo, workers: int, trials: int, at_once: int, threads: int
) -> None:
    assert cluster.trials_at_once(workers, trials) == (at_once, threads)


@pytest.mark.parametrize(("gpus", "what"), [(2, "GPUs"), (0, "CPUs")])
def test_a_trial_whose_workers_find_no_room_is_refused(gpus: int, what: str) -> None:
    cluster = ClusterInfo("head:6379", False, gpus, 2, 64 << 30, 1, False, True, None)
    with pytest.raises(InputError, match=f"--workers-per-trial 4 needs 4 {what}, but the cluster has 2"):
        cluster.trials_at_once(4, 8)
    # an autoscaler may start more machines
    assert replace(cluster, grows=True).trials_at_once(4, 8)[0] == 1


# ------------------------------------------------------------------------------------------- on a machine of two CPUs


def meet(settings: dict[str, Any], run: Any) -> None:
    """Train nothing: wait until as many trials have begun as should train at once."""
    folder = Path(settings["folder"]).parent
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(settings["folder"]).name
    (folder / f"{own}.{os.getpid()}.{run.rank}").touch()
    deadline = time.monotonic() + 100
    while len(list(folder.glob("*.*.*"))) < settings["together"]:
        if time.monotonic() > deadline:
            raise TimeoutError("The other trials did not begin.")
        time.sleep(0.05)
    epochs = settings["config"]["epochs"]
    for epoch in range(1, epochs + 1):
        # the later a report comes, the worse it is
        metrics = {"epoch": epoch, "seconds": 2.0, "eval_loss": 1.0, "exact_accuracy": 1e9 / time.time()}
        run.report(metrics | {"threads": torch.get_num_threads(), "world_size": run.world_size})


def sweep_of(tmp_path: Path, *more: str) -> Sweep:
    parser = cli.common_parser(SPACE, "")
    cli.worker_options(parser)
    place = ["--results-dir", str(tmp_path), "--run-id", "r", "--num-gpus", "0"]
    args = parser.parse_args(["--preset", "smoke", *place, *more])
    config, domains = SPACE.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
    return Sweep("recursive_reasoner", SPACE, args, config, domains, Inputs("f0"))


def rows(tmp_path: Path, kind: str = "trials") -> pd.DataFrame:
    return pd.read_parquet(tmp_path / "recursive_reasoner" / "r" / kind)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_cores_train_two_trials_at_once_and_one_that_is_complete_is_a_success_whatever_asha_says(
    tmp_path: Path,
) -> None:
    # all but the first report of a rung are below its cut
    more = ["--num-samples", "2", "--sweep", "epochs=grid(1, 2)", "--set", "eval_every=1"]
    sweep = sweep_of(tmp_path, "--workers-per-trial", "0", *more)
    assert run_trials(sweep, meet, {"together": 2}) == 0
    trials, history = rows(tmp_path), rows(tmp_path, "history")
    assert len(trials) == 4 and (history["threads"] == 1).all()
    # epochs of 2 s; who begins 100 s before the other ends still began in this session
    assert (trials["seconds"] == 2.0 * trials["epochs"]).all()
    finished = trials["finished_at"] - trials["started_at"]
    assert (finished >= pd.Timedelta(seconds=2)).all()
    complete = trials["epochs"] == trials["config/epochs"]
    assert complete.sum() >= 2
    assert trials["status"].tolist() == ["success" if whole else "stopped" for whole in complete]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_trials_of_two_workers_take_turns(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "--workers-per-trial", "2", "--num-samples", "2")
    assert run_trials(sweep, meet, {"together": 2}) == 0
    assert set(rows(tmp_path)["status"]) <= {"success", "stopped"} and len(rows(tmp_path)) == 2
    assert (rows(tmp_path, "history")["world_size"] == 2).all()
    done = rows(tmp_path).query("status == 'success'")["trial_id"]
    left = {folder.name for folder in (tmp_path / "recursive_reasoner" / "r" / "checkpoints").iterdir()}
    assert len(done) and not left & set(done), "a finished trial goes on from nothing"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_report_that_does_not_fit_fails_its_own_trial_alone(tmp_path: Path) -> None:
    sweep = ["--sweep", "says=ablate(text, no_epoch)", "--set", "epochs=3"]
    assert stub_sweep.main("ordinary", tmp_path, sweep) == 1
    trials = pd.read_parquet(tmp_path / "stub" / "r" / "trials").set_index("config/says")
    assert trials["status"].to_dict() == {"score": "success", "text": "failed", "no_epoch": "failed"}
    # one says what is wrong after it has trained, the other is stopped by its first report
    assert "'score' of trials holds double" in trials.loc["text", "error"] and trials.loc["text", "epochs"] == 3
    assert "A report must have 'epoch'" in trials.loc["no_epoch", "error"]
    assert "stub_sweep.py" in trials.loc["no_epoch", "traceback"]
    history = pd.read_parquet(tmp_path / "stub" / "r" / "history")
    assert history["trial_id"].nunique() == 2
