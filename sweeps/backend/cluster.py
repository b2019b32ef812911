"""Connect a sweep to Ray: start a cluster of its own on this machine, or attach to one that was named.

A sweep never attaches to a cluster that merely happens to run on the machine: only `--address` or ``RAY_ADDRESS`` do
that. Several sweeps may start at once, each with its own cluster. Starting clusters of many machines is not covered
here: see ``cluster.yaml``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from sweeps.backend.ray_private import JOB_CONFIG_VARIABLE, dashboard_url, gpus_here, own_process_groups
from trainables.common.environment import TRAINING_ENVIRONMENT, keep_local_addresses_from_proxies
from trainables.common.errors import InputError

# the label that autoscalers, Ray's own and KubeRay's, put on every node, the head included
NODE_GROUP = "ray.io/node-group"
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sweeps", "search_spaces", "trainables")

# Memory of one worker of an ordinary trial on CPUs: about 1.3 GB of interpreter, torch and Ray Train, and its model.
TRIAL_WORKER_BYTES = 2 << 30

# the longest of the sockets in Ray's folder, and how long their paths may be
SOCKET = "/ray/session_2000-01-01_00-00-00_000000_1234567/sockets/plasma_store"
SOCKET_BYTES = 107

# read by the driver, Tune's trials, Train's controller and its workers, so it goes into this process and all others
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows go to Parquet; Tune's own loggers double the cost of a result
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # stop_on_signals handles it, and SIGTERM too
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the results store is the ledger, Tuner.restore is not used
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # why a trial failed is in its row, and in one line of progress
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the command line stay valid
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # or the dashboard's Train page answers with error 500
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    **TRAINING_ENVIRONMENT,
}


@dataclass(frozen=True)
class ClusterInfo:
    """What a sweep may use.

    Attributes:
        address: ``host:port`` of the cluster.
        local: Whether this process started it.
        num_gpus: GPUs to use.
        num_cpus: CPUs in the cluster.
        memory: Memory that Ray gives to tasks and actors, in bytes.
        nodes: Machines in the cluster.
        grows: Whether an autoscaler starts machines when something waits for them.
        state_api: Whether Ray's State API answers. Without it Train does not free the GPUs of a trial that is stopped.
        dashboard_url: Where the dashboard is, None where there is none.
    """

    address: str
    local: bool
    num_gpus: int
    num_cpus: int
    memory: int
    nodes: int
    grows: bool
    state_api: bool
    dashboard_url: str | None

    @property
    def cores(self) -> int:
        """CPUs to train on: a cluster that was started here has one more, for what does not compute."""
        return self.num_cpus - 1 if self.local else self.num_cpus

    def trials_at_once(self, workers_per_trial: int, trials: int) -> tuple[int, int]:
        """Return how many trials of an ordinary family run at once, and the CPU threads of each of their workers.

        As many run at once as there are GPUs for all of their workers, or else cores and memory. A trial that found no
        room would wait for its workers only for a while, and then fail.

        Args:
            workers_per_trial: Workers that train a trial together; 0 counts as one, the trial's own process.
            trials: Trials that there are to run.

        Raises:
            InputError: If the workers of one trial find no room, and no autoscaler may start more machines.
        """
        workers = max(1, workers_per_trial)
        room, what = (self.num_gpus, "GPUs") if self.num_gpus else (self.num_cpus, "CPUs")
        if workers > room and not self.grows:
            raise InputError(
                f"--workers-per-trial {workers} needs {workers} {what}, but the cluster has {room} to use; give {room} "
                "or less."
            )
        places = self.num_gpus or min(self.cores, self.memory // TRIAL_WORKER_BYTES)
        at_once = max(1, min(trials, places // workers))
        return at_once, max(1, self.cores // (at_once * workers))

    def pool_workers(self, worker_bytes: int) -> int:
        """Return one for each GPU, or one for each CPU but one as far as ``worker_bytes`` of memory are there for each.

        Two cores train more adapters with a worker each than with one worker of two threads (``docs/log.md``).
        """
        return self.num_gpus or max(1, min(self.num_cpus - 1, self.memory // worker_bytes))


@contextlib.contextmanager
def connect(
    address: str | None = None,
    num_gpus: int | None = None,
    num_cpus: int | None = None,
) -> Iterator[ClusterInfo]:
    """Connect to Ray for the length of a ``with`` block, and shut down or leave the cluster at its end.

    Within the block of another call, a cluster that is not named is the one of that block, which stays.

    Args:
        address: ``host:port``, ``auto`` or ``ray://...`` of a running cluster; ``local`` starts one whatever
            ``RAY_ADDRESS`` says; None starts one unless ``RAY_ADDRESS`` is set.
        num_gpus: GPUs to use, None for all that there are.
        num_cpus: CPUs of a cluster that is started here, None for all; ignored when attaching.

    Raises:
        InputError: If there are fewer GPUs than asked for, and no autoscaler that may start more, the address does not
            answer, this process is connected to another cluster, or Ray cannot start processes with this interpreter
            or keep its files where it is told to.
    """
    require_startable(address)
    if num_gpus is not None and num_gpus < 0:
        raise InputError(f"--num-gpus is {num_gpus}; give 0 to use the CPU, or the number of GPUs to use.")
    # RAY_ADDRESS is that of the cluster which the outer block started
    if _within and address in (None, "local"):
        yield _info(_within[-1], num_gpus)
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    before = dict(os.environ)
    aside: str | None = None
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    keep_local_addresses_from_proxies(_addresses(address))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if not local:
            _require_answer(address)
        if ray.is_initialized():
            raise InputError(
                "This process is connected to a Ray cluster already; end that with ray.shutdown(), or run the sweep in "
                "a process of its own."
            )
        try:
            if local:
                aside = _start(options, num_gpus, num_cpus)
            else:
                _attach(address, options)
            _within.append(local)
            try:
                yield _info(local, num_gpus)
            finally:
                _within.pop()
        finally:
            ray.shutdown()
            if aside:
                shutil.rmtree(aside, ignore_errors=True)
    finally:
        _restore_environment(before)


# whether this process started the cluster of the `connect` that it is within; empty outside
_within: list[bool] = []


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Set an event on SIGTERM, SIGHUP or Ctrl-C, for the length of a ``with`` block; a second one interrupts at once.

    Enter it after `connect`, because ``ray.init`` installs a SIGTERM handler of its own. Outside the main thread
    nothing is installed.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    # nohup has SIGHUP ignored
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]
    previous = [signal.signal(number, handle) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


def _start(options: dict[str, Any], num_gpus: int | None, num_cpus: int | None) -> str | None:
    """Start a cluster on this machine; return a folder to remove at the end, if one was needed."""
    _refuse_missing_gpus(num_gpus, gpus_here(), "this machine")
    _ensure_token()
    # nothing here is preempted, and the watcher is one more process for each Train run
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # one CPU for each pool worker and something left for the trials, or neither would ever start
    cpus = num_cpus or max(len(os.sched_getaffinity(0)), num_gpus or 1) + 1
    # Ray warns on the terminal about four times as many processes as it starts at once, by default as there are CPUs
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, cpus)))
    aside = _short_temp_dir()
    if aside:
        options["_temp_dir"] = aside
    # the cluster's processes inherit what is set here, at no cost; a runtime_env would keep Ray from using the workers
    # that it starts ahead
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # the State API looks for a cluster by itself, and fails when it finds two on one machine, unless it is told
    port = _free_port()
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    with own_process_groups():
        ray.init(address="local", num_cpus=cpus, **options)
    return aside


def require_startable(address: str | None) -> None:
    """Raise InputError where Ray could not start processes with this interpreter, or keep its files where it is told.

    Args:
        address: As for `connect`; a cluster that is there already keeps its files where it wants.
    """
    if re.search(r"\s", sys.executable):
        raise InputError(
            f"The Python interpreter is {sys.executable!r}, and Ray starts no worker from a path with white space; "
            "make the virtual environment in a folder without."
        )
    folder = os.environ.get("RAY_TMPDIR")
    local = (address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    if folder and local and (too_long := _too_long(folder)) > 0:
        raise InputError(
            f"RAY_TMPDIR is {len(os.fsencode(folder))} characters long, {too_long} more than Ray's sockets leave for "
            "it; choose a shorter one, such as /tmp."
        )


def _too_long(folder: str) -> int:
    return len(os.fsencode(f"{folder}{SOCKET}")) - SOCKET_BYTES


def _short_temp_dir() -> str | None:
    """Return a folder for Ray's files, to be removed by the caller, where their usual one does not do."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    files = Path(usual, "ray")
    if _too_long(usual) <= 0 and (not files.exists() or os.access(files, os.W_OK)):
        return None
    # that one is too long for sockets, or another user's
    return tempfile.mkdtemp(prefix="ray-", dir="/tmp")


def _addresses(address: str) -> list[str]:
    """Return the hosts that a cluster's processes reach each other at, as far as they are known before it is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return [ray.util.get_node_ip_address(), *([host.strip("[]")] if host and port.isdecimal() else [])]


def in_job() -> bool:
    """Whether ``ray job submit`` started this process: its working directory is Ray's copy, removed after the job."""
    return JOB_CONFIG_VARIABLE in os.environ


def _attach(address: str, options: dict[str, Any]) -> None:
    # Ray refuses a variable that the job's own runtime environment sets as well
    job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    names = (*ENVIRONMENT, "no_proxy", "NO_PROXY")
    runtime_env: dict[str, Any] = {"env_vars": {n: os.environ[n] for n in names if n not in given}}
    if not in_job():
        # a submitted job brings its working directory; without one the other machines get the code from here
        runtime_env["py_modules"] = [str(ROOT / name) for name in PACKAGES]
    with _answering(address):
        ray.init(address=address, runtime_env=runtime_env, **options)


def _require_answer(address: str) -> None:
    # Ray itself tries for many minutes
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        with _answering(address):
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _answering(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(
            f"No Ray cluster answers at {address!r} ({error}); leave --address out to start one, and set "
            "RAY_AUTH_MODE=token if it is there and asks for a token."
        ) from error


def _info(local: bool, num_gpus: int | None) -> ClusterInfo:
    resources = ray.cluster_resources()
    there = int(resources.get("GPU", 0))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    grows = any(NODE_GROUP in node["Labels"] for node in nodes)
    if not grows:
        _refuse_missing_gpus(num_gpus, there, "this machine" if local else "the cluster")
    context = ray.get_runtime_context()
    url = dashboard_url()
    return ClusterInfo(
        address=context.gcs_address,
        local=local,
        num_gpus=there if num_gpus is None else num_gpus,
        num_cpus=int(resources.get("CPU", 0)),
        memory=int(resources.get("memory", 0)),
        nodes=len(nodes),
        grows=grows,
        state_api=_state_api_answers(context.gcs_address),
        dashboard_url=f"http://{url}" if url else None,
    )


def _refuse_missing_gpus(asked: int | None, there: int, where: str) -> None:
    if asked is not None and asked > there:
        raise InputError(f"--num-gpus is {asked}, but {where} has {there}; give {there} or less, or leave it out.")


def _state_api_answers(address: str) -> bool:
    from ray.util.state import list_nodes

    try:
        return bool(list_nodes(address=address, timeout=20))
    except Exception as error:
        logging.getLogger(__name__).warning("Ray's State API does not answer: %s", error)
        return False


def _ensure_token() -> None:
    """Provide the token that clusters started by ``ray.init`` ask for, before Ray does.

    Ray writes ``~/.ray/auth_token`` without a lock: of two first starts at once, one is locked out of its own cluster.
    And it fails where the home folder cannot be written.
    """
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() and os.access(token, os.R_OK):
        return
    aside = token.with_name(f".auth_token-{os.getpid()}")
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(secrets.token_hex(32))
        aside.chmod(0o600)
        try:
            os.link(aside, token)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
