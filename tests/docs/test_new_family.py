"""The family of docs/new_family.md runs, is killed and goes on, in a copy of the project with its files alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from sweeps import results
from tests.sweeps.head import Head, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "new_family.md").read_text()
FILES = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
(COMMAND,) = re.findall(r"```sh\npython (.*?)\n```", PAGE)
METRICS = free_port()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of the page."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("sweeps", "search_spaces", "trainables", "dashboards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        path = folder / name
        assert not path.exists()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_metrics_report_interval_ms": "500"}
    options = ["--num-cpus=3", "--num-gpus=0", f"--metrics-export-port={METRICS}"]
    node = Head(tmp_path_factory.mktemp("home"), options, environment)
    try:
        node.wait()
        yield node
    finally:
        node.stop()


def scraped() -> str:
    """What Prometheus would read now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_the_page_is_the_whole_family_in_few_lines() -> None:
    assert sorted(FILES) == [
        "search_spaces/bandit.py",
        "sweeps/bandit.py",
        "trainables/bandit/family.py",
        "trainables/bandit/train.py",
    ]


@pytest.mark.slow
def test_the_family_is_killed_goes_on_and_is_seen_everywhere(
    project: Path, head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--results-dir", str(tmp_path), "--run-id", "r", "--address", head.address]
    command = [sys.executable, *shlex.split(COMMAND), *places]
    environment = head.environment | {"PYTHONPATH": str(project)}
    run = tmp_path / "bandit" / "r"

    def report(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=project, env=environment, capture_output=True, text=True)

    killed = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: killed.poll() is not None or any(run.glob("trials/*.parquet")), 120)
    killed.kill()
    killed.wait()
    before = pd.read_parquet(run / "trials")
    assert 0 < len(before) < 12, "the kill came too late"

    log = (tmp_path / "log").open("w+")
    again = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
    seen = ""
    while again.poll() is None:
        seen = (now if "ray_sweep_headline{" in (now := scraped()) else "") or seen
        time.sleep(0.3)
    printed = (tmp_path / "log").read_text()
    assert again.returncode == 0, printed

    trials, history = pd.read_parquet(run / "trials"), pd.read_parquet(run / "history")
    assert len(trials) == 12 and trials["trial_id"].is_unique and (trials["attempt"] == 1).all()
    assert set(before["trial_id"]) < set(trials["trial_id"])
    assert not history.duplicated(["trial_id", "attempt", "epoch"]).any()
    assert history.groupby("trial_id")["epoch"].max().to_dict() == trials.set_index("trial_id")["epochs"].to_dict()
    # a text and numbers of its own, declared or not
    assert trials["favourite"].str.match(r"arm \d$").all() and trials["metric/most_pulls"].dtype == "int64"
    assert history["favourite"].notna().all() and (trials["random_reward"] < trials["reward"].max()).all()

    # ASHA, on its own metric: who was stopped had less than the cutoff, and the best went on to the end
    stopped = trials[trials["status"] == "stopped"]
    assert len(stopped) and set(trials["status"]) == {"success", "stopped"}
    assert (stopped["reward"] < stopped["asha_cutoff"]).all()
    assert trials.loc[trials["reward"].idxmax(), "status"] == "success"

    assert re.search(r"reward *\| *\| *\d+\.\d %", printed) and re.search(r"reward of a random arm *\|", printed)
    assert re.search(r"best: bandit-\w+ \(reward \d+\.\d %\)", printed)
    assert 'column="reward"' in seen and 'column="random_reward"' in seen and 'family="bandit"' in seen
    assert re.search(r'ray_sweep_objective\{[^}]*metric="reward"', seen)

    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["note"] is None and record["family"]["metric"] == "reward"
    refused = report(*shlex.split(COMMAND), *places, "--note", "another")
    assert refused.returncode == 2 and "has note = null, but this command has" in refused.stderr

    # in the project itself, which has no such family
    assert results.main([str(run)]) == 0 and "reward of a random arm" in capsys.readouterr().out
    page = report("dashboards/report.py", str(run))
    assert page.returncode == 0, page.stderr
    shown = json.loads(
        re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', (run / "report.html").read_text())[0]
    )
    scores = {score["name"]: score for score in shown["runs"][0]["scores"]}
    assert scores["reward"]["label"] == "reward" and scores["reward"]["share"]
    assert scores["random_reward"]["mean"] == pytest.approx(trials["random_reward"].iloc[0])
    assert "metric/most_pulls" in scores and set(shown["runs"][0]["trials"]["favourite"]) <= {
        f"arm {n}" for n in range(10)
    }
