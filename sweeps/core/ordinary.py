"""Sweeps of ordinary families: one model per trial.

`main` is the whole of such a family's script; ``docs/new_family.md`` shows one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.space import SearchSpace
from sweeps.backend.runs import TrainLoop
from sweeps.backend.trials import Search, Training, TrialEnd, run_ordinary
from sweeps.core import cli
from sweeps.core.recorder import Recorder
from sweeps.core.session import close, recording
from sweeps.core.sweep import Inputs, Sweep
from sweeps.core.work import listed, searched
from trainables.common.jobs import Job, Report

# The id of a trial and the settings of its loop.
Trial = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """What a family's script makes of its options, once they are checked.

    Attributes:
        loop: The family's ``train_loop(settings, run)``.
        settings: Passed to it, besides ``config``, ``seed`` and ``folder`` (where the trial may leave files).
        inputs: What is trained on.
    """

    loop: TrainLoop
    settings: Mapping[str, Any]
    inputs: Inputs


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
    sweep = Sweep(space.family.name, space, args, config, domains, prepared.inputs)
    return run_trials(sweep, prepared.loop, prepared.settings)


def run_trials(sweep: Sweep, loop: TrainLoop, settings: Mapping[str, Any]) -> int:
    """Run one trial for each configuration that the store does not hold yet; return the exit code.

    Args:
        sweep: The sweep. With ``--search optuna`` Optuna chooses the configurations.
        loop: The family's ``train_loop(settings, run)``.
        settings: Passed to it besides ``config``, ``seed`` and ``folder`` (where the trial may leave files).
    """
    family, workers = sweep.space.family.name, sweep.args.workers_per_trial
    work = (searched if sweep.args.search == "optuna" else listed)(sweep, [family])
    store = work.store
    if not work.left:
        return close(sweep, store)
    models = store.folder.sub("models")

    def trial(job: Job) -> Trial:
        folder = models.sub(job.trial_id).location
        return job.trial_id, {**settings, "config": dict(job.config), "seed": job.seed, "folder": folder}

    def suggested(suggestion: Mapping[str, Any]) -> Trial:
        # this goes to the trial's process, where the ledger of the search is not
        return trial(sweep.suggested_job(family, suggestion))

    with recording(sweep, work) as session:
        recorder, info = session.recorder, session.info
        recorder.slots, threads = info.trials_at_once(workers, work.left)
        training = Training(
            loop,
            name=f"{sweep.name}-{sweep.args.run_id}",
            storage_path=store.folder.sub("checkpoints").location,
            workers_per_trial=workers,
            use_gpu=info.num_gpus > 0,
            threads=threads,
            grows=info.grows,
        )
        units = work.begin(recorder)
        trials: Search[Trial] | list[Trial]
        if isinstance(units, Search):
            trials = Search(units.searcher, suggested, units.num_samples)
        else:
            trials = [trial(unit.jobs[0]) for unit in units]
        finished = run_ordinary(
            trials,
            training,
            _Rows(sweep, recorder),
            metric=sweep.space.metric,
            asha=work.asha,
            should_stop=session.stop,
            max_concurrent=recorder.slots,
        )
    return close(sweep, store, not finished, recorder.jobs.values())


class _Rows:
    """Makes reports of what trials say, for the recorder."""

    def __init__(self, sweep: Sweep, recorder: Recorder) -> None:
        self._recorder, self._budget = recorder, sweep.space.budget_setting

    def on_report(self, trial_id: str, metrics: dict[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
        self._recorder.on_reports([Report(trial_id, "running", metrics["epoch"], metrics, [*earlier, metrics])])

    def on_trial_end(self, end: TrialEnd) -> None:
        epoch, status = end.metrics.get("epoch", 0), end.status
        if status == "stopped" and epoch >= self._recorder.jobs[end.trial_id].config[self._budget]:
            # ASHA's verdict on the last rung of a trial comes when it has nothing left to train.
            status = "success"
        metrics = {name: value for name, value in end.metrics.items() if name not in HISTORY_ONLY and "/" not in name}
        metrics |= {"epochs": epoch, "final_loss": end.metrics.get("eval_loss")}
        metrics |= end.decision.columns() if end.decision else {}
        self._recorder.on_reports([Report(end.trial_id, status, epoch, metrics, (), end.error, end.traceback)])

    def on_tick(self) -> None:
        # rows that are due are written, and progress is shown
        self._recorder.on_reports([])


# ``seconds`` of a report are those of an epoch; the trial's row has their sum
HISTORY_ONLY = ("epoch", "step", "lr", "grad_norm", "examples", "tokens", "seconds")
