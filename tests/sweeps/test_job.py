"""A sweep as a submitted job: the real `ray` command line against a real head node that asks for a token."""

from __future__ import annotations

import json
import subprocess
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from tests.sweeps.head import RAY, Head, wait_for
from tests.sweeps.tiny import ROOT, SMALLEST, rows, save_tiny_champion

MEBIBYTE = 1 << 20


def test_the_upload_holds_the_code_and_no_results_caches_or_environments(tmp_path: Path) -> None:
    left_behind = (
        "results/a/b/trials/part-0.parquet",
        "wandb/offline-run-1/run.wandb",
        ".venv/bin/python",
        ".git/HEAD",
        ".mypy_cache/x.json",
        ".ruff_cache/x",
        ".pytest_cache/x",
        ".hypothesis/x",
        "sweeps/__pycache__/cli.pyc",
        "build/lib/x.py",
        "dist/x.whl",
        "ray_lora_sweeps.egg-info/PKG-INFO",
    )
    taken = ("sweeps/core/cli.py", "trainables/atomic_lora/base/champion.safetensors", "pyproject.toml")
    for name in (*left_behind, *taken):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text("content")
    # .gitignore would hide some of them too, but an export of the project has no .gitignore
    (tmp_path / "tree" / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    assert _uploaded(tmp_path / "tree", tmp_path / "a.zip") == {".rayignore", *taken}


def test_the_upload_is_small() -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "package.zip")
        names = _uploaded(ROOT, package)
        assert {"sweeps/atomic_lora.py", "trainables/atomic_lora/base/champion.safetensors"} <= names
        assert package.stat().st_size < 32 * MEBIBYTE


def _uploaded(tree: Path, package: Path) -> set[str]:
    """Return the names of the files that `ray job submit --working-dir` would upload."""
    create_package(str(tree), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


# ------------------------------------------------------------------------------------------------------------ real jobs


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    node = Head(tmp_path_factory.mktemp("home"), ["--num-cpus=2", "--num-gpus=0"], {"RAY_AUTH_MODE": "token"})
    try:
        # the jobs' server comes last
        wait_for(lambda: node.ray("job", "list", check=False).returncode == 0, 120)
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_champion(tmp_path_factory.mktemp("base"))


def sweep(base: Path, run_id: str, *more: str) -> list[str]:
    """The end of a `ray job submit` command line."""
    # by default a stopped job is killed after 3 seconds; the other one is a variable that every sweep sets as well
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "61"}
    environment = ["--runtime-env-json", json.dumps({"env_vars": variables})]
    fixed = ["--preset", "smoke", "--base", str(base), "--tasks", ",".join(SMALLEST), "--run-id", run_id]
    return [*environment, "--working-dir", ".", "--", "python", "sweeps/atomic_lora.py", *fixed, *more]


@pytest.mark.slow
def test_without_the_token_nothing_is_accepted(head: Head, tmp_path: Path) -> None:
    stranger = {**head.environment, "HOME": str(tmp_path), "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run([RAY, "job", "list"], env=stranger, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "token" in (done.stdout + done.stderr).lower()


@pytest.mark.slow
def test_a_stopped_job_ends_drained_and_the_same_command_finishes_it(head: Head, base: Path) -> None:
    epochs = 60
    command = sweep(base, "job", *(f"--set={name}={epochs}" for name in ("epochs", "patience")), "--set=report_every=5")
    head.ray("job", "submit", "--no-wait", "--submission-id", "first", *command)
    # not in the working directory, which is Ray's copy of the upload
    results = head.home / "results"
    checkpoints = results / "atomic_lora" / "job" / "checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("*.safetensors"))) == len(SMALLEST), 240)
    # the pool is on the Train page of Ray's dashboard
    token = {"Authorization": f"Bearer {(head.home / '.ray' / 'auth_token').read_text()}"}
    page = urllib.request.Request(f"{head.environment['RAY_API_SERVER_ADDRESS']}/api/train/v2/runs/v1", headers=token)
    with urllib.request.urlopen(page, timeout=20) as answer:
        [pool] = json.load(answer)["train_runs"]
    assert pool["name"].startswith("adapter-pool") and pool["status"] == "RUNNING"
    head.ray("job", "stop", "first")
    assert "Interrupted: run the same command with --run-id job" in head.ray("job", "logs", "first").stdout
    before = rows(results, "job", "history")
    assert set(before["task_id"]) == set(SMALLEST) and before["epoch"].max() < epochs
    assert len(list(checkpoints.glob("*.safetensors"))) == len(SMALLEST) and rows(results, "job").empty
    submitted = head.ray("job", "submit", *command).stdout
    # its progress is shown
    assert "4 of 4 adapters to do" in submitted and "4/4 done" in submitted
    assert "exact-match accuracy" in submitted and "succeeded" in submitted and f"results: {results}" in submitted
    trials, history = rows(results, "job"), rows(results, "job", "history")
    assert sorted(trials["task_id"]) == SMALLEST and (trials["status"] == "success").all()
    assert sorted(zip(history["task_id"], history["epoch"], strict=True)) == [
        (task_id, epoch) for task_id in SMALLEST for epoch in range(1, epochs + 1)
    ]
    # what was written before the stop is still the same
    both = before.merge(history, on=["trial_id", "epoch"], suffixes=("", "_after"))
    assert len(both) == len(before) and (both["eval_loss"] == both["eval_loss_after"]).all()
