"""Ordinary trials through the runner: how many train at once, their times, and how they end."""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.util.state import list_actors

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
    """Train nothing: wait until as many trials have begun as should train at once.

    Of each checkpoint it is the epoch that is kept. With ``settings["breaks_at"]`` the first worker that comes to this
    epoch breaks.
    """
    folder = Path(settings["folder"]).parent
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(settings["folder"]).name
    (folder / f"{own}.{os.getpid()}.{run.rank}").touch()
    deadline = time.monotonic() + 100
    while len(list(folder.glob("*.*.*"))) < settings["together"]:
        if time.monotonic() > deadline:
            raise TimeoutError("The other trials did not begin.")
        time.sleep(0.05)
    # the first worker has reported before the second looks where to go on, if that is not kept from it
    time.sleep(run.rank)
    kept = run.checkpoint()
    first = int((kept / "epoch").read_text()) + 1 if kept else 1
    for epoch in range(first, settings["config"]["epochs"] + 1):
        if epoch == settings.get("breaks_at") and run.rank == 0 and not (folder / "broken").exists():
            (folder / "broken").write_text(own)
            raise RuntimeError(f"broke in epoch {epoch}")
        # the later a report comes, the worse it is
        metrics = {"epoch": epoch, "seconds": 2.0, "eval_loss": 1.0, "exact_accuracy": 1e9 / time.time()}
        metrics |= {"threads": torch.get_num_threads(), "world_size": run.world_size, "began_at": first}
        with tempfile.TemporaryDirectory() as state:
            Path(state, "epoch").write_text(str(epoch))
            run.report(metrics, Path(state) if run.rank == 0 else None)


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
def test_train_runs_of_two_workers_take_turns_and_go_on_from_their_checkpoints(
    cluster: ClusterInfo, tmp_path: Path
) -> None:
    assert cluster.state_api
    sweep = sweep_of(tmp_path, "--workers-per-trial", "2", "--num-samples", "2", "--set", "epochs=4")
    assert run_trials(sweep, meet, {"together": 2, "breaks_at": 3}) == 0
    trials, history = rows(tmp_path), rows(tmp_path, "history")
    assert set(trials["status"]) <= {"success", "stopped"} and len(trials) == 2 and (trials["attempt"] == 1).all()
    assert (history["world_size"] == 2).all()
    epochs = history.sort_values("epoch").groupby("trial_id")["epoch"].agg(list).to_dict()
    assert epochs == {name: list(range(1, last + 1)) for name, last in trials.set_index("trial_id")["epochs"].items()}
    done = trials.query("status == 'success'")["trial_id"]
    run = tmp_path / "recursive_reasoner" / "r"
    left = {folder.name for folder in (run / "checkpoints").iterdir()}
    assert len(done) and not left & set(done), "a finished trial goes on from nothing"

    # the first is on the Train page of Ray's dashboard, with the attempt that failed and the one that went on
    broken = (run / "models" / "broken").read_text()
    assert history[history["trial_id"] == broken].sort_values("epoch")["began_at"].tolist() == [1, 1, 3, 3]
    headers = get_auth_headers_if_auth_enabled({})
    request = urllib.request.Request(f"{cluster.dashboard_url}/api/train/v2/runs/v1", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        [shown] = [shown for shown in json.load(answer)["train_runs"] if shown["name"].endswith(f"-r-{broken}")]
    assert shown["status"] == "FINISHED"
    assert [attempt["status"] for attempt in shown["attempts"]] == ["ERRORED", "FINISHED"]
    started = {actor.class_name for actor in list_actors(address=cluster.address, limit=10_000)}
    assert "RayTrainWorker" in started and "DatasetManager" not in started


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
