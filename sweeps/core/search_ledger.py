"""What a search has drawn so far: the ledger with which it goes on where earlier sessions of the run stopped.

A configuration is written down when it is drawn (``search.json`` in the run's folder): after a kill it is finished
first, under the same trial ids. Those that are finished are told to Optuna again with what they came to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from search_spaces.settings import is_exhaustive
from sweeps.backend.optuna_search import ConfigurationSearch
from sweeps.core.sweep import Sweep
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError
from trainables.common.jobs import Job

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
        """Return the trials of what the search suggests that have not ended yet."""
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

    def searcher(self, on_draw: Callable[[dict[str, Any]], None]) -> ConfigurationSearch:
        """Return the search that goes on from here, which calls ``on_draw`` with each suggestion."""
        sweep = self.sweep
        return ConfigurationSearch(
            self,
            on_draw,
            config=vars(sweep.config),
            domains=sweep.domains,
            metric=sweep.space.metric,
            mode=sweep.space.mode,
            seed=sweep.args.seed,
        )
