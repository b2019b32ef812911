"""Connecting to Ray: refusals, signals, and two clusters on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import ray

from sweeps.backend import cluster
from sweeps.backend.cluster import ROOT, ClusterInfo, connect, stop_on_signals
from trainables.common.environment import keep_local_addresses_from_proxies
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


def test_a_terminal_that_hangs_up_stops_a_sweep_unless_nohup_has_it_ignored() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.wait(5)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("space", [" ", "\t"])
def test_an_interpreter_that_ray_cannot_start_workers_with_is_refused(
    monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    monkeypatch.setattr(sys, "executable", f"/home/my{space}work/.venv/bin/python")
    with pytest.raises(InputError, match="white space; make the virtual environment in a folder without"):
        with connect("local", num_gpus=0):
            pass


def test_a_folder_too_long_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 85)
    with pytest.raises(InputError, match=r"RAY_TMPDIR is 90 characters long, \d+ more than .*; choose a shorter one"):
        with connect("local", num_gpus=0):
            pass
    # nobody asked for this one, so a shorter one is taken
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 85)
    taken = cluster._short_temp_dir()
    assert taken is not None and len(taken) < 30
    os.rmdir(taken)
    monkeypatch.delenv("TMPDIR")


def test_this_machine_and_the_cluster_are_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    for _ in range(2):
        keep_local_addresses_from_proxies(cluster._addresses("ray://10.1.2.3:10001"))
    for host in ("localhost", "127.0.0.1", "10.1.2.3", "intranet.example", ray.util.get_node_ip_address()):
        assert urllib.request.proxy_bypass_environment(host), host
        assert os.environ["no_proxy"].split(",").count(host) == 1 == os.environ["NO_PROXY"].split(",").count(host)
    assert not urllib.request.proxy_bypass_environment("huggingface.co")


def test_a_negative_number_of_gpus_is_refused() -> None:
    with pytest.raises(InputError, match="--num-gpus is -1"), connect("local", num_gpus=-1):
        pass


def test_more_gpus_than_there_are_are_refused_and_nothing_is_left() -> None:
    before, connected = dict(os.environ), ray.is_initialized()
    with pytest.raises(InputError, match=r"--num-gpus is 99, but this machine has \d+"), connect("local", num_gpus=99):
        pass
    assert ray.is_initialized() == connected and dict(os.environ) == before


def test_an_address_without_a_cluster_is_refused() -> None:
    with pytest.raises(InputError, match="127.0.0.1:1"), connect("127.0.0.1:1"):
        pass


@pytest.mark.slow
def test_within_a_connection_a_sweep_uses_it_and_leaves_it(
    cluster: ClusterInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # as the outer call sets it
    for address in (None, "local"):
        with connect(address) as again:
            assert again == cluster
    with pytest.raises(InputError, match="connected to a Ray cluster already"), connect(cluster.address):
        pass
    assert ray.is_initialized()


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
    # neither may be asked for what is on this machine
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy"), "http://127.0.0.1:1")
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **proxies}
    environment = {name: value for name, value in environment.items() if name.lower() != "no_proxy"}
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
