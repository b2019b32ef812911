"""Optuna over the configurations of a sweep, which goes on where earlier sessions of the run stopped.

A configuration is written down when it is drawn (``search.json`` in the run's folder): after a kill it is finished
first, under the same trial ids. Those that are finished are told to Optuna again with what they came to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.tune.search.optuna import OptunaSearch

from search_spaces.settings import config_hash, is_exhaustive
from sweeps.results import ResultsStore
from sweeps.sweep import Sweep
from trainables.errors import InputError
from trainables.jobs import Job

DRAWN = "search.json"


def require_searchable(domains: Mapping[str, Any]) -> None:
    """Raise InputError where there is nothing to search, or something that leaves nothing to choose."""
    if not domains:
        raise InputError(
            "A search needs something to search: give --num-samples of at least 2, or --sweep NAME=DOMAIN."
        )
    for name, domain in domains.items():
        if is_exhaustive(domain):
            raise InputError(
                f"{name} is swept with grid(...) or ablate(...), which try every value, but Optuna chooses values "
                "itself; write choice(...)."
            )


class Drawn:
    """The configurations that a search has drawn so far, in order.

    A configuration is judged by its mean over the tasks that it is trained on.

    Args:
        sweep: The sweep.
        store: Its results.
        task_ids: The tasks.

    Attributes:
        configs: ``{"config": complete configuration, "seed": seed to train it with}`` by configuration hash.
        complete: Hashes of those of which every trial has ended.
    """

    def __init__(self, sweep: Sweep, store: ResultsStore, task_ids: Sequence[str]) -> None:
        self.sweep, self._store, self._task_ids = sweep, store, task_ids
        data = store.folder.read(DRAWN)
        self.configs: dict[str, dict[str, Any]] = json.loads(data) if data else {}
        self._finished, self._attempts = store.finished(), store.attempts()
        self.complete = {key for key in self.configs if set(self.trial_ids(key)) <= set(self._finished)}

    def trial_ids(self, key: str) -> list[str]:
        """Return the trials of a configuration."""
        return [f"{task_id}-{key}" for task_id in self._task_ids]

    def jobs(self, suggestion: Mapping[str, Any]) -> list[Job]:
        """Return the trials of what `ConfigurationSearch` suggests that have not ended yet."""
        jobs = [self.sweep.suggested_job(task_id, suggestion) for task_id in self._task_ids]
        return [
            replace(job, attempt=self._attempts.get(job.trial_id, 0) + 1)
            for job in jobs
            if job.trial_id not in self._finished
        ]

    def swept(self, key: str) -> dict[str, Any]:
        """Return the swept settings of a configuration, as its domains have them."""
        config = self.configs[key]["config"]
        return {n: tuple(config[n]) if isinstance(config[n], list) else config[n] for n in self.sweep.domains}

    def value(self, key: str) -> float | None:
        """Return what a complete configuration came to in the sweep's metric; None unless all its trials succeeded."""
        rows = [self._finished[trial_id] for trial_id in self.trial_ids(key)]
        # a mean over trials that ASHA stopped, or over fewer tasks than the others', would mislead the search
        if any(row["status"] != "success" for row in rows):
            return None
        metric = self.sweep.space.metric
        values = [row["final_loss" if metric == "eval_loss" else metric] for row in rows]
        # a number that is not finite is stored as nothing
        return None if None in values else sum(values) / len(values)

    def add(self, key: str, config: Mapping[str, Any], seed: int) -> int:
        """Write a configuration down if it is new; return its number in the run."""
        if key not in self.configs:
            self.configs[key] = {"config": dict(config), "seed": seed}
            self._store.folder.write(DRAWN, json.dumps(self.configs).encode())
        return list(self.configs).index(key)


class ConfigurationSearch(OptunaSearch):
    """Optuna as a Tune searcher. What it suggests are values of the swept settings, ``seed`` and ``sample``.

    Args:
        drawn: What earlier sessions of the run drew; those that are not complete are suggested first.
        on_draw: Called with each suggestion before its trial starts.
    """

    def __init__(self, drawn: Drawn, on_draw: Callable[[dict[str, Any]], None]) -> None:
        sweep = drawn.sweep
        super().__init__(
            OptunaSearch.convert_search_space(dict(sweep.domains)),
            metric=sweep.space.metric,
            mode=sweep.space.mode,
            # other draws than those of earlier sessions
            seed=sweep.args.seed + len(drawn.configs),
            points_to_evaluate=[drawn.swept(key) for key in drawn.configs if key not in drawn.complete] or None,
        )
        for key in drawn.configs:
            value = drawn.value(key) if key in drawn.complete else None
            if value is not None and math.isfinite(value):
                self.add_evaluated_point(drawn.swept(key), value)
        self._drawn, self._on_draw, self._taken = drawn, on_draw, set(drawn.complete)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles searchers for Tuner.restore, which is not used; the caller's store may hold locks
        return OptunaSearch, ()

    def suggest(self, trial_id: str) -> dict[str, Any]:
        suggestion = super().suggest(trial_id)
        config, seed = {**vars(self._drawn.sweep.config), **suggestion}, self._drawn.sweep.args.seed
        # a configuration that is drawn again is another unit of work: it gets another seed
        while (key := config_hash(config, seed)) in self._taken:
            seed += 1
        self._taken.add(key)
        suggestion |= {"seed": seed, "sample": self._drawn.add(key, config, seed)}
        self._on_draw(suggestion)
        return suggestion

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # only for Optuna's own pruners, whose place ASHA has; and not every report has the metric
        pass

    def save(self, checkpoint_path: str) -> None:
        # for Tuner.restore as well
        pass
