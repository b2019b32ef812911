"""Optuna over the configurations of a sweep, as a Tune searcher that goes on where earlier sessions stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.tune.search.optuna import OptunaSearch

from search_spaces.settings import config_hash


class Ledger(Protocol):
    """What earlier sessions of a run drew, in order; `sweeps.core.search_ledger.Drawn` is one."""

    configs: dict[str, dict[str, Any]]
    complete: set[str]

    def swept(self, key: str) -> dict[str, Any]:
        """Return the swept settings of a configuration, as its domains have them."""

    def value(self, key: str) -> float | None:
        """Return what a complete configuration came to in the metric, None where that is not known."""

    def add(self, key: str, config: Mapping[str, Any], seed: int) -> int:
        """Write a configuration down if it is new; return its number in the run."""


class ConfigurationSearch(OptunaSearch):
    """Optuna as a Tune searcher. What it suggests are values of the swept settings, ``seed`` and ``sample``.

    Args:
        drawn: What earlier sessions of the run drew; those that are not complete are suggested first.
        on_draw: Called with each suggestion before its trial starts.
        config: The settings that are not swept, and defaults of those that are.
        domains: What is swept.
        metric, mode: What is compared, and whether ``min`` or ``max`` is better.
        seed: Of the search, and of the first training of each configuration.
    """

    def __init__(
        self,
        drawn: Ledger,
        on_draw: Callable[[dict[str, Any]], None],
        *,
        config: Mapping[str, Any],
        domains: Mapping[str, Any],
        metric: str,
        mode: str,
        seed: int,
    ) -> None:
        self._settings, self._first_seed = config, seed
        super().__init__(
            OptunaSearch.convert_search_space(dict(domains)),
            metric=metric,
            mode=mode,
            # other draws than those of earlier sessions
            seed=seed + len(drawn.configs),
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
        config, seed = {**self._settings, **suggestion}, self._first_seed
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
