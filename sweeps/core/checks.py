"""What a run needs, checked before it costs anything: what is there, what is missing, and how to fix it.

Every sweep goes through the parts that it needs before it starts: `results` and `wandb` before it connects, `machines`
where it uses GPUs or more than one machine. ``python -m sweeps.preflight`` goes through all of them.

What is not checked: machines that an autoscaler has not started yet, and whether the memory of a GPU is enough.
"""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.backend import cluster
from sweeps.backend.ray_private import session_folder
from sweeps.store.store import open_folder
from trainables.common.errors import InputError
from trainables.common.folder import Folder, remove_empty

GIBIBYTE = 1 << 30
# a full sweep of 400 adapters writes less; Ray itself stops storing objects on a disk that is 95 % full
FREE_BYTES = GIBIBYTE
FULL = 0.95
# how a place that is a Python package begins
PACKAGE = "package:"
# asks every GPU to compute: a driver that is too old lets torch count them all the same
ASK_TORCH = """
import torch
count = torch.cuda.device_count()
for index in range(count):
    torch.zeros(1, device=f"cuda:{index}").add(1).item()
print(count)
"""


@dataclass(frozen=True)
class Check:
    """One thing that a run needs.

    Attributes:
        name: What it is.
        found: What is there.
        missing: What is wrong and how to fix it, in one sentence; empty where nothing is.
    """

    name: str
    found: str
    missing: str = ""


@dataclass(frozen=True)
class Machine:
    """What `look` saw on one machine.

    Attributes:
        name: Host name.
        nvidia: Name and driver of each GPU that ``nvidia-smi`` lists.
        torch_gpus: GPUs on which torch computes; None where nobody asked.
        torch_error: Why it does not.
        full: Share of the disk with Ray's files that is in use, 0 to 1.
        results_error: Why the results cannot be reached from here, None where they can.
        absent: What of the places is not there.
    """

    name: str
    nvidia: tuple[str, ...]
    torch_gpus: int | None
    torch_error: str
    full: float
    results_error: str | None
    absent: tuple[str, ...]


def require(*checks: Check) -> None:
    """Raise InputError for the first thing that is missing."""
    for check in checks:
        if check.missing:
            raise InputError(check.missing)


def startable(address: str | None) -> Check:
    """Whether Ray can start processes with this interpreter, and keep its files where it is told to."""
    try:
        cluster.require_startable(address)
    except InputError as error:
        return Check("Python", sys.executable, str(error))
    return Check("Python", sys.executable)


def results(location: str) -> Check:
    """Write a file to the folder of all results, read it and delete it, and the folder too where it was not there."""
    try:
        folder = open_folder(location)
    except InputError as error:
        return Check("results", location, str(error))
    made = folder.absent()
    try:
        _write_and_delete(folder, f"preflight-{uuid.uuid4().hex}")
        free = shutil.disk_usage(folder.root).free if folder.is_local else 0
    except Exception as error:  # what an unwritable place raises depends on the file system
        missing = f"The results folder {folder.location} cannot be written ({error}); choose another --results-dir."
        return Check("results", location, missing)
    finally:
        remove_empty(made)
    if not folder.is_local:
        return Check("results", f"{folder.location}: written, read and deleted")
    found = f"{folder.location}: written, read and deleted, {free / GIBIBYTE:.0f} GiB free"
    if free < FREE_BYTES:
        return Check("results", found, f"The disk of {folder.location} has {free} bytes free; make room for 1 GiB.")
    return Check("results", found)


def wandb(mode: str, per_trial: bool = False) -> Check:
    """See whether W&B can be written in a mode of ``--wandb``, without the network; ``--wandb-per-trial`` needs one."""
    if per_trial and mode == "off":
        missing = (
            "--wandb-per-trial says how to log to W&B, but --wandb is off; give --wandb offline or online as well."
        )
        return Check("W&B", "not asked for", missing)
    if mode != "online":
        return Check("W&B", {"off": "not asked for", "offline": "written beside the results"}[mode])
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if os.environ.get("WANDB_API_KEY") or _in_netrc(host):
        return Check("W&B", f"a key for {host}")
    missing = f"There is no key for {host}; run 'wandb login', set WANDB_API_KEY, or give --wandb offline."
    return Check("W&B", "no key", missing)


def teacher(url: str) -> Check:
    """Ask an OpenAI-compatible server, ``http://HOST:PORT/v1``, which models it serves."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/models", timeout=10) as answer:
            models = ", ".join(model["id"] for model in json.load(answer)["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "start the server, or give the address that ends in /v1"
        return Check("teacher", url, f"No teacher answers at {url} ({error}); {fix}.")
    return Check("teacher", f"{url} serves {models}")


def state_api(info: cluster.ClusterInfo) -> Check:
    """Whether Ray's State API answers, without which Train keeps the GPUs of a trial that is stopped."""
    if info.state_api:
        return Check("Ray's State API", "answers")
    missing = (
        f"Ray's State API does not answer at {info.address}, so GPUs of stopped trials would stay taken; install "
        "'ray[default]' on the head and start it with --include-dashboard=true."
    )
    return Check("Ray's State API", "no answer", missing)


def machines(info: cluster.ClusterInfo, results_dir: str, places: Mapping[str, str]) -> list[Check]:
    """Look at every machine of the cluster: GPUs and drivers, disk, and whether it reaches the results and the places.

    Args:
        info: The cluster, connected.
        results_dir: Folder of all results; every machine reads and writes a file there.
        places: What must be there on every machine, by what it is: a path, or ``package:NAME`` of a Python package.
    """
    folder, name = Folder(results_dir), f"preflight-{uuid.uuid4().hex}"
    made = folder.absent()
    nodes = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]}
    remote = ray.remote(num_cpus=0)(look)
    folder.write(name, b"preflight")
    try:
        answers = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                folder, name, f"{name}-{node}", dict(places), gpus > 0 and info.num_gpus > 0
            )
            for node, gpus in nodes.items()
        ]
        seen = ray.get(answers, timeout=300)
    finally:
        for written in (name, *(f"{name}-{node}" for node in nodes)):
            folder.delete(written)
        remove_empty(made)
    return [
        check
        for machine, gpus in zip(seen, nodes.values(), strict=True)
        for check in _of_machine(machine, gpus, folder.location, places)
    ]


def look(folder: Folder, theirs: str, own: str, places: Mapping[str, str], ask_torch: bool) -> Machine:
    """Look at this machine: read the driver's file in the folder of all results, and leave one there."""
    error = None
    try:
        if folder.read(theirs) is None:
            error = "it is a folder of another machine's own"
        else:
            folder.write(own, b"preflight")
    except Exception as refusal:  # what a place that cannot be reached raises depends on the file system
        error = str(refusal)
    usage = shutil.disk_usage(session_folder())
    torch_gpus, torch_error = _torch_gpus() if ask_torch else (None, "")
    return Machine(
        name=os.uname().nodename,
        nvidia=_nvidia(),
        torch_gpus=torch_gpus,
        torch_error=torch_error,
        full=usage.used / usage.total,
        results_error=error,
        absent=tuple(what for what, place in places.items() if not _has(place)),
    )


def _of_machine(machine: Machine, gpus: int, location: str, places: Mapping[str, str]) -> list[Check]:
    name, checks = machine.name, []
    missing = ""
    if machine.torch_gpus is not None and machine.torch_gpus < gpus:
        reason = machine.torch_error or "torch finds no more"
        missing = (
            f"Ray gives away {gpus} GPUs of {name}, but torch computes on {machine.torch_gpus} ({reason}); update the "
            "driver, or install a torch that is built for it."
        )
    asked = "" if machine.torch_gpus is None else f", torch computes on {machine.torch_gpus}"
    checks.append(Check(f"GPUs of {name}", f"{'; '.join(machine.nvidia) or 'none'}{asked}", missing))
    missing = ""
    if machine.full > FULL:
        missing = f"The disk with Ray's files on {name} is {machine.full:.0%} full, and Ray stops at 95%; make room."
    checks.append(Check(f"disk of {name}", f"{machine.full:.0%} full", missing))
    missing = ""
    if machine.results_error:
        missing = (
            f"{name} does not reach the results folder {location} ({machine.results_error}); give a --results-dir that "
            "all machines share, such as s3://BUCKET/results."
        )
    checks.append(Check(f"results from {name}", "not reached" if missing else "reached", missing))
    for what in machine.absent:
        place = places[what]
        bring = (
            "install it there, as README says"
            if place.startswith(PACKAGE)
            else "start the sweep with 'ray job submit --working-dir .', which takes the project's own files along, or "
            f"put the {what} on a path that all machines share"
        )
        missing = f"{name} has no {place.replace(PACKAGE, 'package ')}; {bring}."
        checks.append(Check(f"{what} on {name}", "not there", missing))
    return checks


def _has(place: str) -> bool:
    if place.startswith(PACKAGE):
        return importlib.util.find_spec(place.removeprefix(PACKAGE)) is not None
    return Path(place).exists()


def _nvidia() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return ("nvidia-smi, which does not answer",)
    return tuple(line.replace(", ", " with driver ") for line in done.stdout.splitlines() if done.returncode == 0)


def _torch_gpus() -> tuple[int, str]:
    """Let torch compute on every GPU, in a process of its own: the memory that CUDA takes goes with it."""
    done = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=240, check=False)
    if done.returncode == 0:
        return int(done.stdout), ""
    return 0, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"


def _write_and_delete(folder: Folder, name: str) -> None:
    folder.write(name, b"preflight")
    try:
        if folder.read(name) != b"preflight":
            raise OSError("a file that was written there cannot be read")
    finally:
        folder.delete(name)


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
