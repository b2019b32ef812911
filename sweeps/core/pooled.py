"""Sweeps through the adapter pool: an adapter for each task, or configurations that are judged on a panel of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.backend.cluster import ClusterInfo
from sweeps.backend.pool.driver import run_pool_sweep
from sweeps.backend.pool.workers import AdapterPool, PoolLoop
from sweeps.backend.trials import Search
from sweeps.core.session import close, recording
from sweeps.core.sweep import Sweep
from sweeps.core.work import Work


@dataclass(frozen=True)
class Pool:
    """What trains a pool sweep's jobs.

    Attributes:
        loop: The family's pool loop, or its name as ``package.module:function``.
        settings: Passed to it, besides ``folder`` and the limits.
        limits: What a pack must have room for, as settings of the loop, from all configurations that may be trained.
        slots: The most adapters in training at once on each worker, for GPUs (True) or CPUs.
        worker_bytes: Memory that a worker on a CPU needs; there are no more workers than fit.
    """

    loop: PoolLoop
    settings: Mapping[str, Any]
    limits: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
    slots: Callable[[bool], int]
    worker_bytes: int

    def build(self, info: ClusterInfo, folder: str, configs: Sequence[Mapping[str, Any]]) -> tuple[AdapterPool, int]:
        """Return the workers for a cluster, and how many adapters they train at once.

        Args:
            info: The cluster.
            folder: The run's folder.
            configs: All configurations that may be trained, or those between which they lie.
        """
        on_gpu, workers = info.num_gpus > 0, info.pool_workers(self.worker_bytes)
        settings = {**self.settings, **self.limits(configs), "folder": folder}
        pool = AdapterPool(self.loop, settings, num_workers=workers, use_gpu=on_gpu, elastic=not info.local)
        return pool, self.slots(on_gpu) * workers


def run_pool(sweep: Sweep, pool: Pool, work: Work) -> int:
    """Train what is left of a sweep through a pool; return the exit code.

    Args:
        sweep: The sweep.
        pool: What trains the jobs.
        work: Made by `sweeps.core.work.listed`, or by `sweeps.core.work.searched`, whose tasks are then the panel.
    """
    store = work.store
    if not work.left:
        return close(sweep, store)
    with recording(sweep, work) as session:
        recorder = session.recorder
        adapters, slots = pool.build(session.info, store.folder.location, work.configs)
        recorder.slots = slots
        units = work.begin(recorder)
        outcome = run_pool_sweep(
            units,
            adapters,
            recorder,
            metric=sweep.space.metric,
            asha=work.asha,
            should_stop=session.stop,
            max_concurrent=max(2, slots // work.unit_size) if isinstance(units, Search) else 1,
            # Workers ask for jobs more often than the driver looks whether there are enough.
            backlog=7 * slots,
            grows=session.info.grows,
            storage_path=None if session.info.local else store.folder.sub("cluster").location,
        )
    return close(sweep, store, outcome.interrupted, recorder.jobs.values())
