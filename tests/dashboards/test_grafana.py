"""The Grafana dashboards on real data: a real Ray, a real sweep, a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.monitoring.metrics import COUNTERS, GAUGES
from tests.sweeps.tiny import save_tiny_champion

ROOT = Path(__file__).resolve().parents[2]
BOARDS = sorted((ROOT / "dashboards" / "grafana").glob("*.json"))


def panels(board: Path) -> list[dict[str, Any]]:
    return list(json.loads(board.read_text())["panels"])


def queries() -> list[tuple[str, str, str]]:
    """Every query as (board, panel, PromQL), with Grafana's variables filled in as for "All"."""
    filled = []
    for board in BOARDS:
        for panel in panels(board):
            for target in panel["targets"]:
                query = re.sub(r"\$(sweep|family)\b", ".*", target["expr"]).replace("$__rate_interval", "30s")
                filled.append((board.stem, panel["title"], query))
    return filled


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_a_board_has_no_angular_panel_and_no_overlap(board: Path) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in panels(board):
        assert panel["type"] in ("timeseries", "stat")
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not own & cells
        cells |= own


def test_every_metric_is_drawn_and_every_drawn_metric_exists() -> None:
    exported = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
    drawn = {name for _, _, query in queries() for name in re.findall(r"\bray_sweep_\w+", query)}
    assert drawn == exported


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster, a sweep that runs on it, and, where there is one, a Prometheus that watches both."""
    folder = tmp_path_factory.mktemp("watched")
    # sockets need a short path
    ray_folder = Path("/tmp") / f"ray-{os.getpid()}-watched"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_metrics_report_interval_ms": "1000", "HOME": str(folder)}
    ports = {"gcs": free_port(), "dashboard": free_port(), "prometheus": free_port()}
    script = f"""
import sys
from ray.cluster_utils import Cluster
head = dict(num_cpus=2, num_gpus=0, include_dashboard=True, dashboard_port={ports["dashboard"]})
head |= dict(gcs_server_port={ports["gcs"]}, temp_dir={str(ray_folder)!r})
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
    processes = []
    try:
        cluster = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        processes.append(cluster)
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        # one slot: some tasks have ended while others go on
        settings = [word for setting in ("epochs=30", "patience=30", "report_every=2") for word in ("--set", setting)]
        sweep = subprocess.Popen(
            [sys.executable, str(ROOT / "sweeps" / "atomic_lora.py"), "--preset", "smoke", "--tasks", "smallest:100",
             "--base", str(save_tiny_champion(folder)), "--slots", "1", *settings, "--address", address,
             "--results-dir", str(folder / "results"), "--run-id", "watched"],
            env=environment, stdout=subprocess.DEVNULL, stderr=(folder / "sweep.log").open("w"),
        )  # fmt: skip
        processes.append(sweep)
        if shutil.which("prometheus"):
            config = (ROOT / "dashboards" / "prometheus.yml").read_text()
            config = config.replace("/tmp/ray/", f"{ray_folder}/").replace("10s", "1s")
            (folder / "prometheus.yml").write_text(config)
            processes.append(subprocess.Popen(
                ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address=127.0.0.1:{ports['prometheus']}", "--log.level=error"],
            ))  # fmt: skip
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()} | {"log": str(folder / "sweep.log")}
    finally:
        for process in reversed(processes[1:]):
            process.terminate()
        for process in processes[1:]:
            process.wait(60)
        if processes:
            processes[0].communicate("")
        shutil.rmtree(ray_folder, ignore_errors=True)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus (apt install prometheus)")
def test_every_query_of_every_panel_returns_data(watched: dict[str, str]) -> None:
    # no GPU: what Ray says of GPUs is empty
    waiting = [query for query in queries() if not re.search("ray_node_(gpus|gram)", query[2])]
    assert len(waiting) >= 20
    # rows come once sixteen adapters are evaluated together, beside whatever else the machine does
    deadline = time.monotonic() + 300
    while waiting and time.monotonic() < deadline:
        time.sleep(1)
        missing = []
        for query in waiting:
            try:
                answer = get(f"{watched['prometheus']}/api/v1/query?{urllib.parse.urlencode({'query': query[2]})}")
            except urllib.error.URLError:  # it starts
                missing.append(query)
                continue
            values = [float(series["value"][1]) for series in answer["data"]["result"]]
            if not any(value == value for value in values):
                missing.append(query)
        waiting = missing
    assert not waiting, Path(watched["log"]).read_text()[-3000:]
