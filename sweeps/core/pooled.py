"""Sweeps through the adapter pool: an adapter for each task, or configurations that are judged on a panel of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.space import extremes
from sweeps.backend.asha import UNIT, Unit
from sweeps.backend.cluster import ClusterInfo
from sweeps.backend.pool.driver import run_pool_sweep
from sweeps.backend.pool.workers import AdapterPool, PoolLoop
from sweeps.backend.trials import Search
from sweeps.core.search_ledger import SearchLedger, require_searchable
from sweeps.core.session import Past, asha, close, ledger, recording
from sweeps.core.sweep import Sweep


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


def run_pool(sweep: Sweep, pool: Pool, task_ids: Sequence[str]) -> int:
    """Train an adapter for every task and sampled configuration that the store does not hold yet; return the exit code.

    Args:
        sweep: The sweep. With several samples each task has an ASHA of its own over its configurations.
        pool: What trains the jobs.
        task_ids: Tasks in the order in which they should start.
    """
    store, jobs, missing = ledger(sweep, task_ids)
    if not missing:
        return close(sweep, store)
    units, scheduler = [Unit(job.trial_id, [job], job.task_id) for job in missing], None
    if sweep.uses_asha(jobs):
        scheduler, past = asha(sweep), Past(store, sweep.space.metric)
        left = {job.trial_id: job for job in missing}
        judged = [
            past.unit(name, [name], [left[name]] if name in left else [], job.task_id)
            for job in jobs
            for name in [job.trial_id]
        ]
        for unit in judged:
            scheduler.replay(unit)
        units = [unit for unit in judged if unit.jobs]
    configs = [job.config for job in jobs]
    with recording(sweep, store, len(jobs), len(jobs) - len(missing)) as session:
        recorder = session.recorder
        recorder.expect(missing)
        adapters, slots = pool.build(session.info, store.folder.location, configs)
        recorder.slots = slots
        outcome = run_pool_sweep(
            units,
            adapters,
            recorder,
            metric=sweep.space.metric,
            asha=scheduler,
            should_stop=session.stop,
            # Workers ask for jobs more often than the driver looks whether there are enough.
            backlog=7 * slots,
            storage_path=None if session.info.local else store.folder.sub("cluster").location,
        )
    return close(sweep, store, outcome.interrupted, recorder.jobs.values())


def run_panel_search(sweep: Sweep, pool: Pool, panel: Sequence[str]) -> int:
    """Search configurations with Optuna and one ASHA, each trained on the same panel of tasks; return the exit code.

    A configuration is judged by the mean of the metric over the panel.
    """
    args, space = sweep.args, sweep.space
    require_searchable(sweep.domains)
    store = sweep.open_store()
    drawn = SearchLedger(sweep, store, panel)
    left = args.num_samples - len(drawn.finished)
    if left <= 0:
        return close(sweep, store)
    scheduler, past = asha(sweep), Past(store, space.metric)
    for key in drawn.configs:
        scheduler.replay(past.unit(key, drawn.trial_ids(key), drawn.jobs(key)))

    def make_unit(suggestion: Mapping[str, Any]) -> Unit:
        key = suggestion[UNIT]
        return past.unit(key, drawn.trial_ids(key), drawn.jobs(key))

    configs = list(_corners(vars(sweep.config), sweep.domains))
    # members of unfinished panels may have finished
    done = sum(len(panel) - len(drawn.jobs(key)) for key in drawn.configs)
    total = args.num_samples * len(panel)
    with recording(sweep, store, total, done) as session:
        recorder = session.recorder
        recorder.listeners.append(drawn.hear)
        adapters, slots = pool.build(session.info, store.folder.location, configs)
        recorder.slots = slots
        searcher = drawn.searcher(lambda key: recorder.expect(drawn.jobs(key)))
        outcome = run_pool_sweep(
            Search(searcher, make_unit, left),
            adapters,
            recorder,
            metric=space.metric,
            asha=scheduler,
            should_stop=session.stop,
            max_concurrent=max(2, slots // len(panel)),
            storage_path=None if session.info.local else store.folder.sub("cluster").location,
        )
    return close(sweep, store, outcome.interrupted, recorder.jobs.values())


def _corners(values: Mapping[str, Any], domains: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration, and it with each setting at the ends of its domain."""
    yield {**values}
    for name, domain in domains.items():
        for extreme in extremes(domain):
            yield {**values, name: extreme}
