"""What a run needs, checked before it starts: each thing there, and each thing missing."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import subprocess
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from sweeps import atomic_lora
from sweeps.backend.cluster import ClusterInfo
from sweeps.core import checks
from trainables.atomic_lora.bases import DEFAULT_BASE
from trainables.common.errors import InputError
from trainables.common.folder import Folder

# ------------------------------------------------------------------------------------------------------------- results


def test_results_are_written_read_and_deleted_with_the_folders_that_were_not_there(tmp_path: Path) -> None:
    for place in (tmp_path / "new" / "one", tmp_path):
        check = checks.results(str(place))
        assert not check.missing and "GiB free" in check.found and not list(tmp_path.iterdir())


def test_results_on_s3(bucket: str) -> None:
    assert not checks.results(f"{bucket}/results").missing
    assert not Folder(f"{bucket}/results").names()
    missing = checks.results("s3://no-such-bucket/results").missing
    assert "s3://no-such-bucket/results cannot be written" in missing and "--results-dir" in missing


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in checks.results(str(tmp_path / "file")).missing
    assert "No file system can open" in checks.results("nosuch://bucket").missing


def test_results_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 5, 5))
    assert "5 bytes free; make room" in checks.results(str(tmp_path)).missing


# ----------------------------------------------------------------------------------------------------- W&B and teacher


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of somebody without a W&B key."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_wandb_online_needs_a_key(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checks.wandb("off").missing and not checks.wandb("offline").missing
    assert "wandb login" in checks.wandb("online").missing
    (stranger / ".netrc").write_text("machine wandb.example.org login user password key\n")
    (stranger / ".netrc").chmod(0o600)
    assert checks.wandb("online").missing
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443")
    assert not checks.wandb("online").missing
    (stranger / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert not checks.wandb("online").missing


def test_a_sweep_without_a_wandb_key_is_refused_before_it_starts(stranger: Path) -> None:
    with pytest.raises(InputError, match="no key for api.wandb.ai"):
        atomic_lora.main(["--preset", "smoke", "--wandb", "online", "--results-dir", str(stranger / "results")])
    assert not (stranger / "results").exists()


class Teacher(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = {"/v1/models": {"object": "list", "data": [{"id": "teacher-7b"}]}, "/models": {}}.get(self.path)
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Teacher) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_a_teacher_says_what_it_serves(server: str) -> None:
    assert checks.teacher(f"{server}/v1/").found == f"{server}/v1/ serves teacher-7b"
    assert "/v1" in checks.teacher(server).missing
    assert "404" in checks.teacher(f"{server}/other").missing
    assert "No teacher answers at http://127.0.0.1:1/v1" in checks.teacher("http://127.0.0.1:1/v1").missing


# ------------------------------------------------------------------------------------------------------------ machines


SEEN = checks.Machine("node-1", ("NVIDIA L4 with driver 580",), 1, "", 0.5, None, ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"torch_gpus": 0, "torch_error": "driver too old"}, "1 GPUs of node-1, but torch computes on 0 (driver too"),
        ({"torch_gpus": None}, ""),
        ({"full": 0.96}, "96% full"),
        ({"results_error": "access denied"}, "node-1 does not reach the results folder s3://b/r (access denied)"),
        ({"absent": ("base",)}, "node-1 has no /base"),
    ],
)
def test_what_a_machine_lacks_is_said(change: dict[str, object], said: str) -> None:
    found = checks._of_machine(replace(SEEN, **change), 1, "s3://b/r", {"base": "/base"})  # type: ignore[arg-type]
    missing = [check.missing for check in found if check.missing]
    assert len(missing) == (1 if said else 0) and all(said in text for text in missing)
    with pytest.raises(InputError) if said else contextlib.nullcontext():
        checks.require(*found)


def test_a_driver_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def silent(command: list[str], timeout: float, **options: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(checks.subprocess, "run", silent)
    assert checks._nvidia() == ("nvidia-smi, which does not answer",)


@pytest.mark.slow
def test_machines_are_looked_at_where_they_are(cluster: ClusterInfo, tmp_path: Path) -> None:
    found = checks.machines(cluster, str(tmp_path), {"base": str(DEFAULT_BASE)})
    assert not checks.state_api(cluster).missing
    assert [
        check for check in checks.machines(cluster, str(tmp_path), {"base": str(tmp_path / "none")}) if check.missing
    ]
    # a folder that only the driver has
    look = ray.remote(num_cpus=0)(checks.look)
    machine = ray.get(look.remote(Folder(tmp_path / "other"), "theirs", "own", {}, True))
    assert {check.name.partition(" ")[0] for check in found} == {"GPUs", "disk", "results"}
    assert not [check.missing for check in found if check.missing and not check.name.startswith("disk")]
    assert not list(tmp_path.iterdir())
    assert machine.results_error and machine.torch_gpus is not None and not machine.absent
