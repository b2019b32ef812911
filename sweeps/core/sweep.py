"""A sweep as the runner sees it: its space, its options, its units of work and the run's folder."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search_spaces.settings import Ablation, config_hash
from search_spaces.space import SearchSpace
from sweeps.core import checks
from sweeps.core.checks import Check
from sweeps.monitoring.pace import Cost
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from trainables.common.jobs import Job

# options that a later session of the same run may change: how much and where, not what a unit of work means
EXTENDABLE = (
    "num_samples", "num_gpus", "address", "results_dir", "run_id", "wandb", "wandb_per_trial", "tensorboard",
    "workers_per_trial", "domains",
)  # fmt: skip
# options that are written down as what they came to: the configuration and the domains
RESOLVED = ("config", "sets", "sweeps")


@dataclass(frozen=True)
class Inputs:
    """What a family's script says of what it trains on.

    Attributes:
        data_fingerprint: Of the data.
        identity: What identifies the run besides its options and settings: JSON-able, kept in run.json.
        extendable: Options of the family's own that a later session of the run may change.
        checks: What the family needs before anything is trained, as it was found; what is missing refuses the sweep.
        places: Paths that must be there on every machine of a cluster, by what they are.
        fingerprints: Of each task's data, where a later session may train others: then those of the same tasks must be
            equal, and ``data_fingerprint`` is that of the tasks of the last session.
        left_out: By task, or whatever data are in parts of, how much of it is not used, by reason.
        known_as: What values of settings that are places are known by, wherever those are.
    """

    data_fingerprint: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    extendable: Sequence[str] = ()
    checks: Sequence[Check] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    known_as: Mapping[str, str] = field(default_factory=dict)

    def known(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with its places as they are known."""
        return {n: self.known_as.get(value, value) if isinstance(value, str) else value for n, value in values.items()}


@dataclass(frozen=True)
class Sweep:
    """A sweep, resolved and checked: everything that the runner needs to know of it.

    Attributes:
        name: Of the sweep, and of its folder under the results.
        space: Its search space.
        args: The parsed common options.
        config: The family's configuration, an instance of ``space.config``.
        domains: Swept settings by name.
        inputs: What it trains on.
        categories: Category of each task.
        costs: Cost of each task with one epoch; tasks that are not there cost the same.
        own: Settings that a task has of its own, whatever the configuration says; none of them is swept.
    """

    name: str
    space: SearchSpace
    args: argparse.Namespace
    config: Any
    domains: Mapping[str, Any]
    inputs: Inputs
    categories: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def job(self, task_id: str, values: Mapping[str, Any], seed: int, sample: int) -> Job:
        """Return the unit of work of a task and a configuration; its id is the same in every session."""
        values = {**values, **self.own.get(task_id, {})}
        digits = config_hash(self.inputs.known(values), seed)
        return Job(f"{task_id}-{digits}", task_id, seed, values, sample=sample)

    @property
    def longest(self) -> int:
        """The most time that any trial may train."""
        budget = self.space.budget_setting
        return max(self.space.longest(self.config, self.domains), *(own.get(budget, 0) for own in self.own.values()), 0)

    def suggested_job(self, task_id: str, suggestion: Mapping[str, Any]) -> Job:
        """Return the unit of work of a task and what a search suggests (see `sweeps.backend.optuna_search`)."""
        values = {**vars(self.config), **{name: suggestion[name] for name in self.domains}}
        return self.job(task_id, values, suggestion["seed"], suggestion["sample"])

    def cost(self, job: Job) -> Cost:
        """Return what a unit of work costs beside the others: that of its task, for as many epochs as it may train."""
        cost = self.costs.get(job.task_id, Cost())
        return replace(cost, epochs=int(job.config[self.space.budget_setting]))

    def uses_asha(self, jobs: Iterable[Job]) -> bool:
        """Return whether ASHA judges jobs: those of several configurations, unless they are variants of an ablation."""
        # which compares trials that trained equally long
        ablates = any(isinstance(domain, Ablation) for domain in self.domains.values())
        return max(Counter(job.task_id for job in jobs).values(), default=0) > 1 and not ablates

    def open_store(self) -> ResultsStore:
        """Open the run's folder, take its lock and record this session.

        Raises:
            InputError: If it is another run's, another process is at work on it, or it cannot be written.
        """
        args, inputs = self.args, self.inputs
        asked = checks.wandb(args.wandb, args.wandb_per_trial)
        checks.require(checks.startable(args.address), checks.results(args.results_dir), asked, *inputs.checks)
        store = ResultsStore(args.results_dir, self.name, args.run_id)
        settings = {
            **{name: value for name, value in vars(args).items() if name not in RESOLVED},
            "config": inputs.known(vars(self.config)),
            "domains": {name: str(domain) for name, domain in self.domains.items()},
            **inputs.identity,
        }
        command = [Path(sys.executable).name, *sys.argv]
        extendable = (*EXTENDABLE, *inputs.extendable)
        store.begin(
            run_record(
                command, settings, extendable, inputs.data_fingerprint, args.seed, self.space.family,
                inputs.fingerprints, inputs.left_out,
            )
        )  # fmt: skip
        return store
