"""What the project uses of Ray without a promise is still where it was."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest
import ray.train
import ray.train.torch

from sweeps.backend.cluster import ROOT, ClusterInfo
from sweeps.backend.ray_private import (
    JOB_CONFIG_VARIABLE,
    dashboard_url,
    data_parallel_trainer,
    gpus_here,
    session_folder,
    without_datasets,
)


def test_no_other_module_uses_what_ray_keeps_private() -> None:
    private = re.compile(r"ray\._private|ray\.train\.v2|\b_internal\b")
    files = [
        file for top in ("sweeps", "search_spaces", "trainables", "dashboards") for file in (ROOT / top).rglob("*.py")
    ]
    assert [file.name for file in files if private.search(file.read_text())] == ["ray_private.py"]


def test_a_submitted_job_finds_its_configuration_in_this_variable() -> None:
    assert JOB_CONFIG_VARIABLE == "RAY_JOB_CONFIG_JSON_ENV_VAR"


def test_hidden_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_here() == 0


def test_the_trainer_without_a_process_group_is_the_one_below_torchs() -> None:
    trainer = data_parallel_trainer(train_loop_per_worker=print, scaling_config=ray.train.ScalingConfig(num_workers=1))
    assert type(trainer) in ray.train.torch.TorchTrainer.__mro__
    assert ray.train.FailureConfig(max_failures=3, controller_failure_limit=2).controller_failure_limit == 2


def test_a_train_run_starts_no_process_for_datasets() -> None:
    scaling = ray.train.ScalingConfig(num_workers=1)
    whole = ray.train.torch.TorchTrainer(print, scaling_config=scaling)
    kinds = [type(callback).__name__ for callback in whole._create_default_callbacks()]
    for trainer in (
        without_datasets(whole),
        data_parallel_trainer(train_loop_per_worker=print, scaling_config=scaling),
    ):
        left = [type(callback).__name__ for callback in trainer._create_default_callbacks()]
        assert "DatasetsCallback" in kinds and left == [kind for kind in kinds if kind != "DatasetsCallback"]


@pytest.mark.slow
def test_a_connected_process_knows_the_dashboard_and_the_sessions_folder(cluster: ClusterInfo) -> None:
    assert Path(session_folder()).is_dir()
    with urllib.request.urlopen(f"http://{dashboard_url()}/", timeout=20) as answer:
        assert answer.status == 200
