"""All that the project uses of Ray without Ray promising to keep it.

Each has a test in ``tests/sweeps/backend/test_ray_private.py``, which says after an upgrade what has moved.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import services
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

# variable in which a submitted job finds its configuration, its runtime environment included
JOB_CONFIG_VARIABLE: str = RAY_JOB_CONFIG_JSON_ENV_VAR


def gpus_here() -> int:
    """Return how many GPUs Ray will find on this machine, without starting it."""
    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    there = manager.get_current_node_num_accelerators()
    return there if visible is None else min(there, len(visible))


def dashboard_url() -> str | None:
    """Return host and port of the dashboard of the cluster that this process is connected to, None without one."""
    url: str | None = ray._private.worker.get_dashboard_url()
    return url


@contextlib.contextmanager
def own_process_groups() -> Iterator[None]:
    """Let each process of a cluster that is started in the ``with`` block lead a process group of its own.

    A signal to the driver's whole group (a terminal's Ctrl-C or its end, ``timeout``, a service manager) then reaches
    the driver alone, which ends the cluster when what is done is stored.
    """
    started = services.ConsolePopen
    services.ConsolePopen = functools.partial(started, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = started


def session_folder() -> str:
    """Return the folder on this machine in which Ray keeps logs and spilled objects; Ray must be connected."""
    folder: str = ray._private.worker.global_worker.node.get_session_dir_path()
    return folder


def data_parallel_trainer(**arguments: Any) -> Any:
    """Return a Train run whose workers share nothing; `ray.train.torch.TorchTrainer` sets up a process group."""
    # ray.train takes a second to import, which a command that only prints its options need not wait for
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return without_datasets(DataParallelTrainer(**arguments))


def without_datasets(trainer: Any) -> Any:
    """Return a Train run without the process that hands out Ray datasets, of which no loop here reads any.

    It is started with every group of workers, takes 4 s of a core to start and 0.2 GB until the run ends.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

    callbacks = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [c for c in callbacks() if not isinstance(c, DatasetsCallback)]
    return trainer
