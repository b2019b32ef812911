"""A pool over several machines, pretended on this one by Ray itself, each with a pretended GPU.

The pool's loop is a stub: there is no CUDA behind these GPUs. What is tested is who gets the jobs when a machine dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from sweeps.backend.asha import Unit
from sweeps.backend.cluster import connect
from sweeps.backend.pool.driver import run_pool_sweep
from sweeps.backend.pool.workers import AdapterPool
from tests.sweeps.head import free_port, in_own_process
from tests.sweeps.stub_pool import make_job
from trainables.common.errors import InputError
from trainables.common.jobs import Report

pytestmark = pytest.mark.slow

EPOCHS = 40


class Deadline:
    """Stops a sweep that would wait for ever for a machine."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def is_set(self) -> bool:
        return time.monotonic() > self._at


@contextmanager
def machines() -> Iterator[Cluster]:
    """A head without GPUs and two machines with one each; in a process of its own, which ends with them."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # Train tries in vain for this long, a minute by default, to start a worker on the machine that is gone
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    arguments = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, num_gpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def test_the_sweep_finishes_on_the_other_machine_when_one_is_gone_and_an_autoscaler_may_start_more(
    tmp_path: Path,
) -> None:
    in_own_process(sweep_while_a_machine_goes, tmp_path)


def sweep_while_a_machine_goes(folder: Path) -> None:
    with machines() as nodes:
        with pytest.raises(InputError, match="--num-gpus is 3, but the cluster has 2"):
            with connect(nodes.address, num_gpus=3):
                pass
        _sweep(nodes, folder)
        # what `ray up` and KubeRay tell a node; no autoscaler is here
        os.environ["RAY_NODE_TYPE_NAME"] = "more"
        nodes.add_node(num_cpus=1, num_gpus=0)
        with connect(nodes.address, num_gpus=3) as info:
            assert (info.nodes, info.num_gpus, info.grows) == (3, 3, True)


def _sweep(nodes: Cluster, folder: Path) -> None:
    class RemovesANode(list[Report]):
        """Keeps the reports, and ends a machine once both have reported."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()
            self.removed: list[object] = []

        def on_reports(self, reports: Sequence[Report]) -> None:
            self.extend(reports)
            self.seen.update(str(report.metrics["node"]) for report in reports if "node" in report.metrics)
            if len(self.seen) == 2 and nodes.worker_nodes and not self.removed:
                self.removed.append(next(iter(nodes.worker_nodes)))
                nodes.remove_node(self.removed[0], allow_graceful=False)

        def on_counts(self, counts: Mapping[str, int]) -> None:
            pass

    reports = RemovesANode()
    units = [Unit(f"job-{i}", [make_job(f"job-{i}", epochs=EPOCHS)]) for i in range(10)]
    with connect(nodes.address) as info:
        assert (info.nodes, info.num_gpus, info.grows, info.local) == (3, 2, False, False)
        settings = {"slots": 3, "epoch_s": 0.05, "names_node": True}
        outcome = run_pool_sweep(
            units,
            AdapterPool("tests.sweeps.stub_pool:loop", settings, num_workers=2, elastic=True, use_gpu=True),
            reports,
            metric="eval_loss",
            should_stop=Deadline(300),
            backlog=12,
            storage_path=str(folder),
        )
    assert len(reports.removed) == 1 and len(reports.seen) == 2, (
        "there was a worker on each machine, and one of them died"
    )
    assert outcome.counts["unfinished"] == 0 and outcome.counts["workers"] == 1
    last = [(report.trial_id, report.status) for report in reports if report.status != "running"]
    assert sorted(last) == sorted((unit.name, "success") for unit in units)
    for unit in units:
        epochs = {row["epoch"] for report in reports if report.trial_id == unit.name for row in report.history}
        assert epochs == set(range(1, EPOCHS + 1))
