"""What every test gets: no network, one thread for each process, and no GPU test where there is no GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing

# before torch and Ray are imported, and inherited by the processes that tests start
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# large pages pay in long runs; short ones start faster without
os.environ["GLIBC_TUNABLES"] = os.environ["MALLOC_CONF"] = ""
# Ray's workers would wait for whatever else the tests do
os.environ["RAY_worker_niceness"] = "0"
# so that the end of a pool is noticed at once, not up to 2 s later
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from sweeps.backend.cluster import ClusterInfo, connect  # noqa: E402

# how long an example takes says more about what else the machine does than about the code
settings.register_profile("project", deadline=None)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where torch finds no CUDA device."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none here"))


@pytest.fixture(scope="session")
def cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterInfo]:
    """Ray for all tests of this process: two CPUs to train on, as on the smallest machine, and no GPU.

    A sweep that is called in this process and names no cluster runs here, as `connect` says. Its workers know the S3
    server.
    """
    kept = dict(os.environ)
    os.environ.update(s3_environment(s3_server))
    os.environ["RAY_LORA_SWEEPS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    with connect("local", num_gpus=0, num_cpus=3) as info:
        # sweeps in processes of their own start their own
        os.environ.clear()
        os.environ.update(kept)
        yield info


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 server, moto's; in a process of its own, as pyarrow may wait for it with the GIL in hand."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            with closing(socket.socket()) as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def s3_environment(server: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://...`` of an empty bucket, on a server that this process and those that it starts are told to use."""
    import boto3

    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    bucket = f"sweeps-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"
