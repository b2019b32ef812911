"""Optuna over the configurations of a sweep, as a Tune searcher that goes on where earlier sessions stopped.

Optuna is asked and told through its own interface, so that it hears the same of a configuration in the session that
trains it and in a later one: what the ledger says of the configuration's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from search_spaces.settings import config_hash
from sweeps.backend.asha import UNIT
from trainables.common.errors import InputError
from trainables.common.family import Mode

# The search gives up after this many consecutive suggestions that cannot be trained.
MOST_INVALID = 1000


@dataclass(frozen=True)
class Outcome:
    """What a configuration came to whose trials have all ended.

    Attributes:
        value: The metric, the mean over the trials; None where one of them failed.
        rung: Epoch at which ASHA stopped it, None where it trained to its end.
    """

    value: float | None
    rung: int | None = None


class Ledger(Protocol):
    """What the sessions of a run drew, in order; `sweeps.core.search_ledger.SearchLedger` is one."""

    configs: dict[str, dict[str, Any]]

    def swept(self, key: str) -> dict[str, Any]:
        """Return the swept settings of a configuration, as its domains have them."""

    def outcome(self, key: str) -> Outcome | None:
        """Return what a configuration came to, None while any of its trials has not ended."""

    def add(self, key: str, config: Mapping[str, Any], seed: int) -> int:
        """Write a configuration down if it is new; return its number in the run."""


class ConfigurationSearch(Searcher):
    """Optuna as a Tune searcher. It suggests values of the swept settings, ``seed``, ``sample`` and the ``unit``.

    Optuna is told of every configuration that ended: its value, or that it was pruned where ASHA stopped it.

    Args:
        ledger: What the sessions of the run drew. What earlier ones drew and did not end is suggested first, unless it
            is no longer within ``domains``.
        on_draw: Called with the key of each suggestion in the ledger, before its trial starts.
        config: The settings that are not swept, and defaults of those that are.
        domains: What is swept.
        validate: Raises InputError where a complete configuration cannot be trained.
        mode: Whether ``min`` or ``max`` of the metric is better.
        seed: Of the search, and of the first training of each configuration.

    Attributes:
        study: Optuna's record of the search.
    """

    def __init__(
        self,
        ledger: Ledger,
        on_draw: Callable[[str], None],
        *,
        config: Mapping[str, Any],
        domains: Mapping[str, Any],
        validate: Callable[[Mapping[str, Any]], None],
        mode: Mode,
        seed: int,
    ) -> None:
        super().__init__()
        self._ledger, self._on_draw, self._validate = ledger, on_draw, validate
        self._config, self._seed = config, seed
        self._space = OptunaSearch.convert_search_space(dict(domains))
        self.study = optuna.create_study(
            direction="minimize" if mode == "min" else "maximize",
            # A later session must not repeat the draws of earlier ones.
            sampler=optuna.samplers.TPESampler(seed=(seed + len(ledger.configs)) % 2**32),
        )
        self._taken: set[str] = set()
        self._asked: dict[str, optuna.Trial] = {}  # Configurations in training, by key.
        for key in ledger.configs:
            outcome, swept = ledger.outcome(key), ledger.swept(key)
            # A later session may sweep over other domains.
            fits = all(domain.is_valid(swept[name]) for name, domain in domains.items())
            if outcome is None:
                if fits:
                    self.study.enqueue_trial(swept)
                continue
            self._taken.add(key)
            if outcome.value is None or not fits:
                continue
            pruned = outcome.rung is not None
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
                    value=outcome.value,
                    params=swept,
                    distributions=self._space,
                    intermediate_values={outcome.rung: outcome.value} if outcome.rung is not None else None,
                )
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles searchers for Tuner.restore, which this project does not use; the caller's store may hold locks.
        return Searcher, ()

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self.tell()
        trial = self._ask()
        suggestion = dict(trial.params)
        config, seed = {**self._config, **suggestion}, self._seed
        # A configuration that is drawn again is a new unit of work, so it gets another seed.
        while (key := config_hash(config, seed)) in self._taken:
            seed += 1
        self._taken.add(key)
        self._asked[key] = trial
        suggestion |= {"seed": seed, "sample": self._ledger.add(key, config, seed), UNIT: key}
        self._on_draw(key)
        return suggestion

    def tell(self) -> None:
        """Tell Optuna of the configurations that have ended since the last call."""
        for key, trial in list(self._asked.items()):
            outcome = self._ledger.outcome(key)
            if outcome is None:
                continue
            del self._asked[key]
            if outcome.value is None:
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            elif outcome.rung is not None:
                trial.report(outcome.value, outcome.rung)
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                self.study.tell(trial, outcome.value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        # The ledger knows ASHA's decision and the trial's row, which Tune's result does not hold.
        pass

    def save(self, checkpoint_path: str) -> None:
        # Tune saves searchers for Tuner.restore, which this project does not use.
        pass

    def _ask(self) -> optuna.Trial:
        """Return the next trial whose settings can be trained together."""
        for _ in range(MOST_INVALID):
            trial = self.study.ask(self._space)
            try:
                self._validate({**self._config, **trial.params})
            except InputError as error:
                # Samplers ignore failed trials, so a contradiction between settings does not count against the values.
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                problem = error
                continue
            return trial
        raise InputError(
            f"Optuna found no configuration that can be trained in {MOST_INVALID} tries; the last one: {problem} "
            "Change --sweep so that its values go together."
        )
