"""What a search has drawn so far: the ledger with which it goes on where earlier sessions of the run stopped.

A configuration is written down when it is drawn (``search.json`` in the run's folder): after a kill it is finished
first, under the same trial ids. Those that are finished are told to Optuna again with what they came to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.settings import is_exhaustive
from sweeps.backend.optuna_search import ConfigurationSearch, Outcome
from sweeps.core.sweep import Sweep
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError
from trainables.common.family import EVAL_LOSS
from trainables.common.jobs import Job, Report
from trainables.common.text import json_kind

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


class SearchLedger:
    """The configurations that a search has drawn so far, in order, and what became of them.

    A configuration is compared by its mean over the tasks that it is trained on.

    Args:
        sweep: The sweep.
        store: Its results.
        task_ids: The tasks.

    Attributes:
        configs: ``{"config": complete configuration, "seed": seed to train it with}`` by configuration hash.
        finished: Hashes of those of which every trial had ended when the session began.
    """

    def __init__(self, sweep: Sweep, store: ResultsStore, task_ids: Sequence[str]) -> None:
        self._sweep, self._store, self._task_ids = sweep, store, task_ids
        drawn = store.folder.read_json(DRAWN)
        if not isinstance(drawn, dict | None):
            raise InputError(f"{store.folder.path(DRAWN)} holds {json_kind(drawn)}, not a search's draws; delete it.")
        self.configs: dict[str, dict[str, Any]] = drawn or {}
        rows, self._attempts = store.finished(), store.attempts()
        self._done = frozenset(rows)  # Trials that ended in earlier sessions.
        self._ends = {trial_id: self._end(row["status"], row) for trial_id, row in rows.items()}
        self.finished = {key for key in self.configs if set(self.trial_ids(key)) <= self._done}

    def trial_ids(self, key: str) -> list[str]:
        """Return the trials of a configuration."""
        return [f"{task_id}-{key}" for task_id in self._task_ids]

    def jobs(self, key: str) -> list[Job]:
        """Return the trials of a configuration that had not ended when the session began."""
        drawn, sample = self.configs[key], list(self.configs).index(key)
        values = {name: _as_drawn(value) for name, value in drawn["config"].items()}
        jobs = [self._sweep.job(task_id, values, drawn["seed"], sample) for task_id in self._task_ids]
        return [
            replace(job, attempt=self._attempts.get(job.trial_id, 0) + 1)
            for job in jobs
            if job.trial_id not in self._done
        ]

    def swept(self, key: str) -> dict[str, Any]:
        """Return the swept settings of a configuration, as its domains have them."""
        config = self.configs[key]["config"]
        return {name: _as_drawn(config[name]) for name in self._sweep.domains}

    def hear(self, reports: Iterable[Report]) -> None:
        """Take note of the trials that end in this session."""
        self._ends |= {r.trial_id: self._end(r.status, r.metrics) for r in reports if r.status != "running"}

    def outcome(self, key: str) -> Outcome | None:
        """Return what a configuration came to, None while any of its trials has not ended.

        It is the same in the session that trains it and in later ones.
        """
        ends = [self._ends.get(trial_id) for trial_id in self.trial_ids(key)]
        ended = [end for end in ends if end is not None]
        if len(ended) < len(ends):
            return None
        rungs = [end.rung for end in ended if end.status == "stopped"]
        values = [end.value for end in ended if end.value is not None]
        # A mean over fewer tasks than in other configurations would mislead the search. Only a panel that ASHA stopped
        # may lack values: those of jobs that had not begun.
        if any(end.status == "failed" for end in ended) or not values or (not rungs and len(values) < len(ended)):
            return Outcome(None)
        return Outcome(sum(values) / len(values), min((rung or 0 for rung in rungs), default=None))

    def add(self, key: str, config: Mapping[str, Any], seed: int) -> int:
        """Write a configuration down if it is new; return its number in the run."""
        if key not in self.configs:
            self.configs[key] = {"config": dict(config), "seed": seed}
            self._store.folder.write(DRAWN, json.dumps(self.configs).encode())
        return list(self.configs).index(key)

    def searcher(self, on_draw: Callable[[str], None]) -> ConfigurationSearch:
        """Return the search that goes on from here, which calls ``on_draw`` with the key of each suggestion."""
        sweep, space = self._sweep, self._sweep.space
        return ConfigurationSearch(
            self,
            on_draw,
            config=vars(sweep.config),
            domains=sweep.domains,
            validate=lambda config: space.check(space.config(**config)),
            mode=space.mode,
            seed=sweep.args.seed,
        )

    def _end(self, status: str, metrics: Mapping[str, Any]) -> _End:
        metric = self._sweep.space.metric
        value = metrics.get("final_loss" if metric == EVAL_LOSS else metric)
        return _End(status, value if value is not None and math.isfinite(value) else None, metrics.get("rung"))


@dataclass(frozen=True)
class _End:
    """How a trial ended: its status, its metric, and the last rung at which ASHA judged it."""

    status: str
    value: float | None
    rung: int | None


def _as_drawn(value: Any) -> Any:
    # JSON turns tuples into lists.
    return tuple(value) if isinstance(value, list) else value
