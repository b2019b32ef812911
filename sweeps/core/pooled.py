"""Sweeps through the adapter pool: an adapter for each task, or configurations that are judged on a panel of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.space import extremes
from sweeps.backend.asha import one_group
from sweeps.backend.pool.driver import run_pool_sweep
from sweeps.backend.pool.workers import PoolLoop
from sweeps.core.search_ledger import Drawn, require_searchable
from sweeps.core.session import asha, close, ledger, recording, replay
from sweeps.core.sweep import Sweep

# Tune trials at once, each a process of about 115 MB: a few keep up with a pool that gets its jobs ahead of them; where
# ASHA judges, the jobs of every slot need theirs
TUNE_TRIALS, JUDGED_TRIALS = 4, 16


@dataclass(frozen=True)
class Pool:
    """What trains a pool sweep's jobs.

    Attributes:
        loop: The family's pool loop, or its name as ``package.module:function``.
        settings: Passed to it, besides ``folder``, ``rank``, ``batch_size`` and ``target_modules``.
        slots: The most adapters in training at once on each worker, for GPUs (True) or CPUs.
        worker_bytes: Memory that a worker on a CPU needs; there are no more workers than fit.
    """

    loop: PoolLoop
    settings: Mapping[str, Any]
    slots: Callable[[bool], int]
    worker_bytes: int


def run_pool(sweep: Sweep, pool: Pool, task_ids: Sequence[str]) -> int:
    """Train an adapter for every task and sampled configuration that the store does not hold yet; return the exit code.

    Args:
        sweep: The sweep. With several samples each task has an ASHA of its own over its configurations.
        pool: What trains the jobs.
        task_ids: Tasks in the order in which they should start.
    """
    space = sweep.space
    store, jobs, missing = ledger(sweep, task_ids)
    if not missing:
        return close(sweep, store, False, {job.trial_id for job in jobs})
    scheduler = None
    if sweep.is_judged(jobs):
        scheduler = asha(sweep, _task_of)
        groups = {job.trial_id: job.task_id for job in jobs}
        replay(scheduler, store, groups, space.grace_period(sweep.config), space.metric)
    extents = _extents(job.config for job in jobs)
    with recording(sweep, store, len(jobs), len(jobs) - len(missing)) as (recorder, info, stop):
        recorder.expect(missing)
        slots, workers = pool.slots(info.num_gpus > 0), info.pool_workers(pool.worker_bytes)
        recorder.slots = slots * workers
        outcome = run_pool_sweep(
            [[job] for job in missing],
            pool_loop=pool.loop,
            pool_settings={**pool.settings, **extents, "folder": store.folder.location},
            num_workers=workers,
            elastic=not info.local,
            use_gpu=info.num_gpus > 0,
            on_reports=recorder.on_reports,
            on_counts=recorder.on_counts,
            should_stop=stop,
            scheduler=scheduler,
            max_concurrent=min(JUDGED_TRIALS if scheduler else TUNE_TRIALS, slots * workers),
            # a job that begins before its trial is judged late by ASHA; without it, the more the better
            lookahead=(6 if scheduler is None else 1) * slots * workers,
            storage_path=None if info.local else store.folder.sub("cluster").location,
        )
    return close(sweep, store, outcome.interrupted, {job.trial_id for job in jobs})


def run_panel_search(sweep: Sweep, pool: Pool, panel: Sequence[str]) -> int:
    """Search configurations with Optuna and one ASHA, each trained on the same panel of tasks; return the exit code.

    A configuration is judged by the mean evaluation loss over the panel.
    """
    args = sweep.args
    require_searchable(sweep.domains)
    store = sweep.open_store()
    drawn = Drawn(sweep, store, panel)
    total, done = args.num_samples * len(panel), len(drawn.complete) * len(panel)
    with recording(sweep, store, total, min(total, done)) as (recorder, info, stop):
        slots, workers = pool.slots(info.num_gpus > 0), info.pool_workers(pool.worker_bytes)
        recorder.slots = slots * workers
        extents = _extents(_corners(vars(sweep.config), sweep.domains))
        left = max(0, args.num_samples - len(drawn.complete))
        outcome = run_pool_sweep(
            pool_loop=pool.loop,
            pool_settings={**pool.settings, **extents, "folder": store.folder.location},
            num_workers=workers,
            elastic=not info.local,
            use_gpu=info.num_gpus > 0,
            on_reports=recorder.on_reports,
            on_counts=recorder.on_counts,
            should_stop=stop,
            scheduler=asha(sweep, one_group, key=None),
            max_concurrent=max(2, slots * workers // len(panel)),
            make_jobs=drawn.jobs if left else None,
            searcher=drawn.searcher(lambda suggestion: recorder.expect(drawn.jobs(suggestion))),
            num_samples=left,
            storage_path=None if info.local else store.folder.sub("cluster").location,
        )
    return close(sweep, store, outcome.interrupted, None)


def _task_of(config: Mapping[str, Any]) -> str:
    return str(config["task_id"])


def _extents(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest rank and batch and all layers of any configuration: what the pack must have room for."""
    configs = list(configs)
    return {
        **{name: max(values[name] for values in configs) for name in ("rank", "batch_size")},
        "target_modules": tuple(dict.fromkeys(name for values in configs for name in values["target_modules"])),
    }


def _corners(values: Mapping[str, Any], domains: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield {**values}
    for name in ("rank", "batch_size", "target_modules"):
        for extreme in extremes(domains[name]) if name in domains else ():
            yield {**values, name: extreme}
