"""Which work of a sweep is left, in which order it comes, and who judges it.

A restart is a ledger, not a replay: units of work whose row is in the store are not run again, so the same command
after a kill finishes the sweep, and more samples or tasks extend it. `listed` has all configurations before anything
is trained; in `searched` Optuna chooses each when it may begin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.space import extremes
from sweeps.backend.asha import ONE_GROUP, UNIT, GroupedASHA, Unit
from sweeps.backend.trials import Search
from sweeps.core.recorder import Recorder
from sweeps.core.search_ledger import SearchLedger, require_searchable
from sweeps.core.sweep import Sweep
from sweeps.store.store import ResultsStore
from trainables.common.jobs import Job


@dataclass(frozen=True)
class Work:
    """What is left of a sweep.

    Attributes:
        store: The run's results.
        total: Jobs of the whole sweep.
        done: Those of them that ended in earlier sessions.
        left: Units that are left.
        unit_size: Jobs of a unit.
        configs: The configurations that may be trained, or those between which they lie.
        asha: Judges the units, where they are judged; it knows what earlier sessions told it.
        begin: Returns the units that are left, or the search that makes them, and tells a recorder of their jobs.
    """

    store: ResultsStore
    total: int
    done: int
    left: int
    unit_size: int
    configs: Sequence[Mapping[str, Any]]
    asha: GroupedASHA | None
    begin: Callable[[Recorder], Sequence[Unit] | Search[Unit]]


def listed(sweep: Sweep, task_ids: Sequence[str]) -> Work:
    """Return a unit for each task and sampled configuration that the store does not hold yet.

    With several configurations each task has an ASHA of its own.

    Args:
        sweep: The sweep.
        task_ids: Tasks in the order in which they should start.
    """
    store, jobs, missing = ledger(sweep, task_ids)
    units, scheduler = [Unit(job.trial_id, [job], job.task_id) for job in missing], None
    if missing and sweep.uses_asha(jobs):
        scheduler, past = asha(sweep), Past(store, sweep.space.metric)
        left = {job.trial_id: [job] for job in missing}
        judged = [past.unit(j.trial_id, [j.trial_id], left.get(j.trial_id, ()), j.task_id) for j in jobs]
        for unit in judged:
            scheduler.replay(unit)
        units = [unit for unit in judged if unit.jobs]

    def begin(recorder: Recorder) -> Sequence[Unit]:
        recorder.expect(missing)
        return units

    done, configs = len(jobs) - len(missing), [job.config for job in jobs]
    return Work(store, len(jobs), done, len(missing), 1, configs, scheduler, begin)


def searched(sweep: Sweep, task_ids: Sequence[str]) -> Work:
    """Return a search of Optuna's in which each configuration is trained on all tasks and judged by its mean over them.

    One ASHA compares the configurations.

    Raises:
        InputError: If there is nothing to choose.
    """
    require_searchable(sweep.domains)
    store = sweep.open_store()
    drawn = SearchLedger(sweep, store, task_ids)
    scheduler, past = asha(sweep), Past(store, sweep.space.metric)
    for key in drawn.configs:
        scheduler.replay(past.unit(key, drawn.trial_ids(key), drawn.jobs(key)))

    def unit(suggestion: Mapping[str, Any]) -> Unit:
        key = suggestion[UNIT]
        return past.unit(key, drawn.trial_ids(key), drawn.jobs(key))

    def begin(recorder: Recorder) -> Search[Unit]:
        recorder.listeners.append(drawn.hear)
        searcher = drawn.searcher(lambda key: recorder.expect(drawn.jobs(key)))
        return Search(searcher, unit, left)

    total, left = sweep.args.num_samples * len(task_ids), sweep.args.num_samples - len(drawn.finished)
    # members of unfinished panels may have finished
    done = sum(len(task_ids) - len(drawn.jobs(key)) for key in drawn.configs)
    plain = list(_corners(vars(sweep.config), sweep.domains))
    corners = [{**values, **own} for own in ({}, *sweep.own.values()) for values in plain]
    return Work(store, total, done, max(left, 0), len(task_ids), corners, scheduler, begin)


def asha(sweep: Sweep) -> GroupedASHA:
    """Return the scheduler of a sweep."""
    return GroupedASHA(
        metric=sweep.space.metric,
        mode=sweep.space.mode,
        max_t=sweep.longest,
        grace_period=sweep.space.grace_period(sweep.config),
        reduction_factor=sweep.space.reduction_factor,
    )


def ledger(sweep: Sweep, task_ids: Sequence[str]) -> tuple[ResultsStore, list[Job], list[Job]]:
    """Open the store; return it, all jobs of the sweep, and those that it does not hold as finished."""
    args = sweep.args
    samples = sweep.space.sample(sweep.config, sweep.domains, args.num_samples, args.seed)
    jobs = [
        sweep.job(task_id, values, seed, sample)
        for task_id in task_ids
        for sample, (values, seed) in enumerate(samples)
    ]
    store = sweep.open_store()
    jobs = _numbered(jobs, len(samples), store)
    finished, attempts = store.finished(), store.attempts()
    missing = [replace(job, attempt=attempts.get(job.trial_id, 0) + 1) for job in jobs if job.trial_id not in finished]
    return store, jobs, missing


def _numbered(jobs: Sequence[Job], count: int, store: ResultsStore) -> list[Job]:
    """Return the jobs with samples that no other trial of their task has, in this sweep or another one of the run.

    A trial that has a row keeps its sample. Another one keeps the number that it was drawn with, unless an earlier
    sweep of the same run has used it.
    """
    rows = store.latest_trials().select(["trial_id", "task_id", "sample"]).to_pylist()
    stored = {row["trial_id"]: row["sample"] for row in rows}
    taken = {(row["task_id"], row["sample"]) for row in rows}
    numbered = []
    for job in jobs:
        sample = stored.get(job.trial_id, job.sample)
        if job.trial_id not in stored and (job.task_id, sample) in taken:
            sample = next(number for number in itertools.count(count) if (job.task_id, number) not in taken)
        taken.add((job.task_id, sample))
        numbered.append(replace(job, sample=sample))
    return numbered


class Past:
    """What the trials of a run came to in earlier sessions.

    Args:
        store: The run's results.
        metric: Name of the value that trials are compared by.
    """

    def __init__(self, store: ResultsStore, metric: str) -> None:
        self._finished = store.finished()
        history = store.history()
        curves: dict[str, dict[int, float]] = {}
        # A metric that the common schema does not declare gets its column with the first row that has it.
        columns = ["trial_id", "attempt", "epoch", metric]
        rows = history.select(columns).to_pylist() if metric in history.schema.names else []
        for row in sorted(rows, key=lambda row: (row["attempt"], row["epoch"])):
            if row[metric] is not None:
                curves.setdefault(row["trial_id"], {})[row["epoch"]] = row[metric]
        self._curves = {trial_id: sorted(curve.items()) for trial_id, curve in curves.items()}

    def unit(self, name: str, trial_ids: Sequence[str], jobs: Sequence[Job] = (), group: str = ONE_GROUP) -> Unit:
        """Return a unit that goes on where it was.

        Args:
            name: Of the unit.
            trial_ids: All its trials.
            jobs: Those of them that are left to train.
            group: The units that it is compared with.
        """
        finished = {trial_id: self._finished[trial_id] for trial_id in trial_ids if trial_id in self._finished}
        known = [trial_id for trial_id in trial_ids if trial_id in finished or trial_id in self._curves]
        rungs = [row["rung"] for row in finished.values() if row["status"] == "stopped" and row["rung"] is not None]
        earlier = {trial_id: self._curves.get(trial_id, []) for trial_id in known}
        return Unit(name, jobs, group, earlier, min(rungs, default=None))


def _corners(values: Mapping[str, Any], domains: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration, and it with each setting at the ends of its domain."""
    yield {**values}
    for name, domain in domains.items():
        for extreme in extremes(domain):
            yield {**values, name: extreme}
