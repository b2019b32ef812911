"""Sweeps of ordinary families: one model per trial.

`main` is the whole of such a family's script; ``docs/new_family.md`` shows one.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_spaces.space import SearchSpace
from sweeps.backend import cluster
from sweeps.backend.runs import TrainLoop
from sweeps.backend.trials import TrialEnd, run_ordinary
from sweeps.core import cli
from sweeps.core.checks import Check
from sweeps.core.recorder import Recorder
from sweeps.core.search_ledger import SearchLedger, require_searchable
from sweeps.core.session import Past, asha, close, ledger, recording
from sweeps.core.sweep import Sweep
from sweeps.store.store import ResultsStore
from trainables.common.folder import Folder
from trainables.common.jobs import Job, Report


@dataclass(frozen=True)
class Prepared:
    """What a family's script makes of its options, once they are checked.

    Attributes:
        loop: The family's ``train_loop(settings, run)``.
        settings: Passed to it, besides ``config``, ``seed`` and ``folder`` (where the trial may leave files).
        data_fingerprint: Of the data.
        identity: What identifies the run besides its options and settings: JSON-able, kept in run.json.
        extendable: Options of the family's own that a later session of the run may change.
        checks: What the family needs, as it was found; something that is missing refuses the sweep.
        places: Paths that must be there on every machine of a cluster, by what they are.
    """

    loop: TrainLoop
    settings: Mapping[str, Any]
    data_fingerprint: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    extendable: Sequence[str] = ()
    checks: Sequence[Check] = ()
    places: Mapping[str, str] = field(default_factory=dict)


def main(
    space: SearchSpace,
    add_options: Callable[[cli.Parser], None],
    prepare: Callable[[argparse.Namespace, Any, Mapping[str, Any]], Prepared | None],
    argv: Sequence[str] | None = None,
    description: str | None = None,
) -> int:
    """Run the sweep of a family from its command line; return the exit code.

    Args:
        space: The search space, which names the family.
        add_options: Adds the family's own options to the parser.
        prepare: Checks options, configuration and domains, and returns what to train; None where there is nothing.
        argv: The words after the program's name.
        description: What the sweep does, for ``--help``.

    Raises:
        InputError: If anything of the command line is wrong.
    """
    parser = cli.common_parser(space, description or "")
    cli.worker_options(parser)
    add_options(parser)
    args = parser.parse_args(argv)
    config, domains = space.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
    prepared = prepare(args, config, domains)
    if prepared is None:
        return 0
    sweep = Sweep(
        space.family.name,
        space,
        args,
        config,
        domains,
        prepared.identity,
        prepared.data_fingerprint,
        extendable=prepared.extendable,
        checks=prepared.checks,
        places=prepared.places,
    )
    return run_trials(sweep, prepared.loop, prepared.settings)


def run_trials(sweep: Sweep, loop: TrainLoop, settings: Mapping[str, Any]) -> int:
    """Run one trial for each sampled configuration that the store does not hold yet; return the exit code.

    Args:
        sweep: The sweep. With ``--search optuna`` Optuna chooses the configurations.
        loop: The family's ``train_loop(settings, run)``.
        settings: Passed to it besides ``config``, ``seed`` and ``folder`` (where the trial may leave files).
    """
    if sweep.args.search == "optuna":
        return _search_trials(sweep, loop, settings)
    store, jobs, missing = ledger(sweep, [sweep.space.family.name])
    if not missing:
        return close(sweep, store, False, {job.trial_id for job in jobs})
    scheduler = None
    if sweep.is_judged(jobs):
        scheduler, past = asha(sweep), Past(store, sweep.space.metric)
        for job in jobs:
            scheduler.replay(past.unit(job.trial_id, [job.trial_id]))
    models = store.folder.sub("models")
    trials = [_trial(job, models, settings) for job in missing]
    with recording(sweep, store, len(jobs), len(jobs) - len(missing)) as (recorder, info, stop):
        recorder.expect(missing)
        finished = _train_trials(sweep, store, loop, recorder, info, trials=trials, asha=scheduler, should_stop=stop)
    return close(sweep, store, not finished, {job.trial_id for job in jobs})


def _search_trials(sweep: Sweep, loop: TrainLoop, settings: Mapping[str, Any]) -> int:
    require_searchable(sweep.domains)
    store, family = sweep.open_store(), sweep.space.family.name
    drawn, models = SearchLedger(sweep, store, [family]), store.folder.sub("models")
    left = sweep.args.num_samples - len(drawn.finished)
    if left <= 0:
        return close(sweep, store, False, None)

    def make_trial(suggestion: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return _trial(sweep.suggested_job(family, suggestion), models, settings)

    scheduler, past = asha(sweep), Past(store, sweep.space.metric)
    for key in drawn.configs:
        scheduler.replay(past.unit(key, drawn.trial_ids(key)))
    with recording(sweep, store, sweep.args.num_samples, len(drawn.finished)) as (recorder, info, stop):
        recorder.listeners.append(drawn.hear)
        finished = _train_trials(
            sweep, store, loop, recorder, info,
            make_trial=make_trial,
            searcher=drawn.searcher(lambda key: recorder.expect(drawn.jobs(key))),
            num_samples=left,
            asha=scheduler,
            should_stop=stop,
        )  # fmt: skip
    return close(sweep, store, not finished, None)


def _trial(job: Job, models: Folder, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    folder = models.sub(job.trial_id).location
    return job.trial_id, {**settings, "config": dict(job.config), "seed": job.seed, "folder": folder}


def _train_trials(
    sweep: Sweep, store: ResultsStore, loop: TrainLoop, recorder: Recorder, info: cluster.ClusterInfo, **options: Any
) -> bool:
    """Run trials and record them; ``options`` are those of `run_ordinary`. Return False where a stop was asked for."""
    recorder.slots = max(1, info.num_gpus)
    # an epoch's row has its own seconds, a trial's those of all, earlier sessions' too
    seconds: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for row in store.history().select(["trial_id", "attempt", "epoch", "seconds"]).to_pylist():
        seconds[row["trial_id"], row["attempt"]][row["epoch"]] = row["seconds"] or 0.0

    def on_report(trial_id: str, metrics: dict[str, Any]) -> None:
        job = recorder.jobs[trial_id]
        seconds[trial_id, job.attempt][metrics["epoch"]] = metrics.get("seconds", 0.0)
        recorder.on_reports([Report(job.trial_id, "running", metrics["epoch"], metrics, [metrics])])

    def on_trial_end(end: TrialEnd) -> None:
        epoch = end.metrics.get("epoch", 0)
        metrics = {name: value for name, value in end.metrics.items() if name not in HISTORY_ONLY and "/" not in name}
        spent = sum(seconds[end.trial_id, recorder.jobs[end.trial_id].attempt].values())
        metrics |= {"epochs": epoch, "final_loss": end.metrics.get("eval_loss"), "seconds": spent}
        metrics |= end.decision.columns() if end.decision else {}
        status: Any = end.status
        recorder.on_reports([Report(end.trial_id, status, epoch, metrics, (), end.error, end.traceback)])

    return run_ordinary(
        loop,
        name=f"{sweep.name}-{sweep.args.run_id}",
        storage_path=store.folder.sub("checkpoints").location,
        workers_per_trial=sweep.args.workers_per_trial,
        use_gpu=info.num_gpus > 0,
        on_report=on_report,
        on_trial_end=on_trial_end,
        metric=sweep.space.metric,
        max_concurrent=recorder.slots,
        grows=info.grows,
        **options,
    )


HISTORY_ONLY = ("epoch", "step", "lr", "grad_norm", "examples", "tokens")
