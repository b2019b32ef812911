"""Connecting to Ray: refusals, signals, and two clusters on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from sweeps.backend.cluster import ROOT, connect, stop_on_signals
from trainables.common.errors import InputError


def test_a_signal_sets_the_flag_and_a_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 5)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_negative_number_of_gpus_is_refused() -> None:
    with pytest.raises(InputError, match="--num-gpus is -1"), connect("local", num_gpus=-1):
        pass


def test_more_gpus_than_there_are_are_refused_and_nothing_is_left() -> None:
    before = dict(os.environ)
    with pytest.raises(InputError, match=r"--num-gpus is 99, but this machine has \d+"), connect("local", num_gpus=99):
        pass
    assert not ray.is_initialized() and dict(os.environ) == before


def test_an_address_without_a_cluster_is_refused() -> None:
    with pytest.raises(InputError, match="127.0.0.1:1"), connect("127.0.0.1:1"):
        pass


@pytest.mark.slow
def test_two_clusters_started_at_once_in_a_new_home(tmp_path: Path) -> None:
    script = """
import os, ray, sys
from sweeps.backend.cluster import connect
with connect("local", num_gpus=0, num_cpus=1) as info:
    @ray.remote(num_cpus=0)
    def look():
        import sweeps.backend.pool.broker
        from ray.util.state import list_nodes
        return len(list_nodes())
    print(info.address, flush=True)
    sys.stdin.readline()  # until the other one runs as well
    print(ray.get(look.remote()), info.state_api, info.nodes, info.pool_workers(1))
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    try:
        addresses = {process.stdout.readline() for process in processes if process.stdout}
        assert len(addresses) == 2
        for process in processes:
            assert process.communicate("go\n", timeout=60)[0].split() == ["1", "True", "1", "1"]
            assert process.returncode == 0
    finally:
        for process in processes:
            process.kill()
