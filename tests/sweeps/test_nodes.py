"""A pool over several machines, pretended on this one by Ray itself, each with a pretended GPU.

The pool's loop is a stub: there is no CUDA behind these GPUs. What is tested is who gets the jobs when a machine dies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster

from sweeps.cluster import connect
from sweeps.pool import run_pool_sweep
from tests.sweeps.head import Head
from tests.sweeps.stub_pool import make_job
from trainables.errors import InputError
from trainables.jobs import Report

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head without GPUs and two machines with one each."""
    kept = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # Train tries in vain for this long, a minute by default, to start a worker on the machine that is gone
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": True})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, num_gpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(kept)


def test_the_sweep_finishes_on_the_other_machine_when_one_is_gone(nodes: Cluster, tmp_path: Path) -> None:
    reports: list[Report] = []
    seen: set[str] = set()

    def on_reports(new: list[Report]) -> None:
        reports.extend(new)
        seen.update(str(report.metrics["node"]) for report in new if "node" in report.metrics)
        if len(seen) == 2 and nodes.worker_nodes and not removed:
            removed.append(next(iter(nodes.worker_nodes)))
            nodes.remove_node(removed[0], allow_graceful=False)

    removed: list[object] = []
    units = [[make_job(f"job-{i}", epochs=60)] for i in range(16)]
    with connect(nodes.address) as info:
        assert (info.nodes, info.num_gpus, info.grows, info.local) == (3, 2, False, False)
        outcome = run_pool_sweep(
            units,
            pool_loop="tests.sweeps.stub_pool:loop",
            pool_settings={"slots": 3, "epoch_s": 0.1},
            num_workers=info.num_gpus,
            elastic=True,
            use_gpu=True,
            on_reports=on_reports,
            max_concurrent=4,
            lookahead=8,
            storage_path=str(tmp_path),
        )
    assert len(removed) == 1 and len(seen) == 2, "there was a worker on each machine, and one of them died"
    assert outcome.counts["unfinished"] == 0 and outcome.counts["workers"] == 1
    last = [(report.trial_id, report.status) for report in reports if report.status != "running"]
    assert sorted(last) == sorted((unit[0].trial_id, "success") for unit in units)
    for unit in units:
        epochs = {row["epoch"] for report in reports if report.trial_id == unit[0].trial_id for row in report.history}
        assert epochs == set(range(1, 61))


def test_gpus_that_no_autoscaler_will_start_are_refused(nodes: Cluster) -> None:
    with pytest.raises(InputError, match="--num-gpus is 3, but the cluster has 2"), connect(nodes.address, num_gpus=3):
        pass


AUTOSCALED = {
    "cluster_name": "pretended",
    "max_workers": 1,
    # as in the configuration that Ray's own tests of its autoscaler use
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "available_node_types": {
        "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    "head_node_type": "head",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
}


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[Head]:
    """A head without GPUs whose autoscaler starts a machine with one when it is asked for."""
    (tmp_path / "cluster.yaml").write_text(json.dumps(AUTOSCALED))
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        # as `ray up` starts a head
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": "head",
    }
    options = ["--num-cpus=1", "--num-gpus=0", f"--autoscaling-config={tmp_path / 'cluster.yaml'}"]
    head = Head(tmp_path, options, environment)
    try:
        head.wait()
        yield head
    finally:
        ray.shutdown()
        head.stop()


def test_a_sweep_that_asks_for_gpus_waits_for_the_machine_that_the_autoscaler_starts(
    autoscaled: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    reports: list[Report] = []
    with connect(autoscaled.address, num_gpus=1) as info:
        assert (info.nodes, info.num_gpus, info.grows) == (1, 1, True) and "GPU" not in ray.cluster_resources()
        run_pool_sweep(
            [[make_job("job", epochs=10)]],
            pool_loop="tests.sweeps.stub_pool:loop",
            pool_settings={"slots": 1, "epoch_s": 0.01},
            num_workers=info.num_gpus,
            elastic=True,
            use_gpu=True,
            on_reports=reports.extend,
            storage_path=str(tmp_path / "storage"),
        )
        (gpu,) = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")]
    assert reports[-1].status == "success" and {report.metrics["node"] for report in reports} == {gpu}
