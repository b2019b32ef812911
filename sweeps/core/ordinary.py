"""Sweeps of ordinary families: one model per trial.

`main` is the whole of such a family's script; ``docs/new_family.md`` shows one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_spaces.space import SearchSpace
from sweeps.backend.asha import GroupedASHA
from sweeps.backend.runs import TrainLoop
from sweeps.backend.trials import Search, Training, TrialEnd, run_ordinary
from sweeps.core import cli
from sweeps.core.checks import Check
from sweeps.core.recorder import Recorder
from sweeps.core.search_ledger import SearchLedger, require_searchable
from sweeps.core.session import Past, Session, asha, close, ledger, recording
from sweeps.core.sweep import Sweep
from sweeps.store.store import ResultsStore
from trainables.common.folder import Folder
from trainables.common.jobs import Job, Report

# The id of a trial and the settings of its loop.
Trial = tuple[str, Mapping[str, Any]]


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
        return close(sweep, store)
    scheduler = None
    if sweep.uses_asha(jobs):
        scheduler, past = asha(sweep), Past(store, sweep.space.metric)
        for job in jobs:
            scheduler.replay(past.unit(job.trial_id, [job.trial_id]))
    models = store.folder.sub("models")
    trials = [_trial(job, models, settings) for job in missing]
    with recording(sweep, store, len(jobs), len(jobs) - len(missing)) as session:
        session.recorder.expect(missing)
        finished = _train_trials(sweep, store, loop, trials, scheduler, session)
    return close(sweep, store, not finished, session.recorder.jobs.values())


def _search_trials(sweep: Sweep, loop: TrainLoop, settings: Mapping[str, Any]) -> int:
    require_searchable(sweep.domains)
    store, family = sweep.open_store(), sweep.space.family.name
    drawn, models = SearchLedger(sweep, store, [family]), store.folder.sub("models")
    left = sweep.args.num_samples - len(drawn.finished)
    if left <= 0:
        return close(sweep, store)

    def make_trial(suggestion: Mapping[str, Any]) -> Trial:
        return _trial(sweep.suggested_job(family, suggestion), models, settings)

    scheduler, past = asha(sweep), Past(store, sweep.space.metric)
    for key in drawn.configs:
        scheduler.replay(past.unit(key, drawn.trial_ids(key)))
    with recording(sweep, store, sweep.args.num_samples, len(drawn.finished)) as session:
        recorder = session.recorder
        recorder.listeners.append(drawn.hear)
        search = Search(drawn.searcher(lambda key: recorder.expect(drawn.jobs(key))), make_trial, left)
        finished = _train_trials(sweep, store, loop, search, scheduler, session)
    return close(sweep, store, not finished, recorder.jobs.values())


def _trial(job: Job, models: Folder, settings: Mapping[str, Any]) -> Trial:
    folder = models.sub(job.trial_id).location
    return job.trial_id, {**settings, "config": dict(job.config), "seed": job.seed, "folder": folder}


def _train_trials(
    sweep: Sweep,
    store: ResultsStore,
    loop: TrainLoop,
    work: Sequence[Trial] | Search[Trial],
    scheduler: GroupedASHA | None,
    session: Session,
) -> bool:
    """Run trials and record them; return False where a stop was asked for."""
    recorder, info = session.recorder, session.info
    workers, count = sweep.args.workers_per_trial, work.num_samples if isinstance(work, Search) else len(work)
    recorder.slots, threads = info.trials_at_once(workers, count)
    training = Training(
        loop,
        name=f"{sweep.name}-{sweep.args.run_id}",
        storage_path=store.folder.sub("checkpoints").location,
        workers_per_trial=workers,
        use_gpu=info.num_gpus > 0,
        threads=threads,
        grows=info.grows,
    )
    return run_ordinary(
        work,
        training,
        _Rows(sweep, recorder),
        metric=sweep.space.metric,
        asha=scheduler,
        should_stop=session.stop,
        max_concurrent=recorder.slots,
    )


class _Rows:
    """Makes reports of what trials say, for the recorder."""

    def __init__(self, sweep: Sweep, recorder: Recorder) -> None:
        self._recorder, self._budget = recorder, sweep.space.budget_setting

    def on_report(self, trial_id: str, metrics: dict[str, Any]) -> None:
        self._recorder.on_reports([Report(trial_id, "running", metrics["epoch"], metrics, [metrics])])

    def on_trial_end(self, end: TrialEnd) -> None:
        epoch, status = end.metrics.get("epoch", 0), end.status
        if status == "stopped" and epoch >= self._recorder.jobs[end.trial_id].config[self._budget]:
            # ASHA's verdict on the last rung of a trial comes when it has nothing left to train.
            status = "success"
        metrics = {name: value for name, value in end.metrics.items() if name not in HISTORY_ONLY and "/" not in name}
        metrics |= {"epochs": epoch, "final_loss": end.metrics.get("eval_loss")}
        metrics |= end.decision.columns() if end.decision else {}
        self._recorder.on_reports([Report(end.trial_id, status, epoch, metrics, (), end.error, end.traceback)])


# ``seconds`` of a report are those of an epoch; the trial's row has their sum
HISTORY_ONLY = ("epoch", "step", "lr", "grad_norm", "examples", "tokens", "seconds")
