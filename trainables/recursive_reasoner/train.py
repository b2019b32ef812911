"""Training of a recursive reasoner: ``train_loop(settings, run)``.

It runs in a plain process, straight in a Tune trial, or as one of several Ray Train workers. Checkpoints are taken at
any step, and a run that goes on from one has the same losses, bit for bit on a CPU, as one that was never broken. What
a step does is the `Trainer`'s.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from trainables.common.checkpoints import CheckpointMeta, Checkpoints
from trainables.common.context import Run
from trainables.common.folder import Folder
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import Dataset, load_dataset
from trainables.recursive_reasoner.family import FAMILY
from trainables.recursive_reasoner.trainer import Trainer


def train_loop(settings: Mapping[str, Any], run: Run) -> None:
    """Train a reasoner and report once an epoch; every ``eval_every`` epochs and at the end with held-out metrics.

    ``seconds`` of a report is the wall time since the one before it: checkpoints, evaluation and, in the first one, the
    direct baseline are included, so their sum is the time of the trial. Throughput counts the training alone.

    Args:
        settings: ``config`` (`ReasonerConfig` fields), ``dataset``, ``data_seed``, ``dataset_dir`` (see
            `load_dataset`), ``seed``, ``folder``, where ``checkpoints/``, those of the direct baseline in ``direct/``,
            the trained ``reasoner.pt`` (averaged weights) and ``solved.json`` (some held-out puzzles, step by step) go,
            and ``checkpoint``: the folder of another trial to go on from, or None.
        run: Where it runs. ``batch_size`` must be a multiple of its ``world_size``.

    Raises:
        DeadComponentError: If a component gets no gradient through the first epoch.
        FrozenScheduleError: If a schedule that should move does not.
        FloatingPointError: If the loss or the gradient is no longer finite.
        InputError: If the folder holds a checkpoint of another configuration or data.
    """
    config = ReasonerConfig(**settings["config"])
    dataset = load_dataset(settings["dataset"], config, settings["data_seed"], settings["dataset_dir"])
    trainer = Trainer(config, dataset, settings["seed"], run.device, run.rank, run.world_size)
    folder, own = Folder(settings["folder"]), identity(config, dataset, settings["seed"])
    checkpoints = Checkpoints(folder.sub("checkpoints"), config.keep_checkpoints)

    def publish() -> None:
        if run.rank == 0:
            folder.write("reasoner.pt", trainer.exported())
            folder.write("solved.json", json.dumps(trainer.solved_puzzles()).encode())

    def save(metric: float | None = None) -> None:
        # collective: every worker has rows of its own
        with trainer.aside():
            state = trainer.state_dict()
            if run.rank == 0:
                # only a model that was measured at this very step may count as the best
                checkpoints.save(CheckpointMeta(trainer.step, metric, own), state)

    kept = checkpoints.newest(own, run.device)
    given = Folder(settings["checkpoint"]).sub("checkpoints") if settings["checkpoint"] and kept is None else None
    found = Checkpoints(given, config.keep_checkpoints).newest(own, run.device) if given else kept
    if found:
        trainer.load_state_dict(found[1])
        if trainer.step == trainer.total:
            # killed between its end and the note of it, or another trial's work
            publish()
            run.report(trainer.metrics)
            return
        # the epochs of another trial are none of this one's
        trainer.metrics = trainer.metrics if kept else {}
        run.recall(trainer.metrics)
    elif config.direct_baseline:
        with trainer.aside():
            trainer.facts = direct_baseline(config, dataset, settings["seed"], run, folder.sub("direct"))
    while trainer.step < trainer.total:
        trainer.train_step()
        if trainer.step % trainer.steps_per_epoch:
            if trainer.step % config.checkpoint_every == 0:
                save()
            continue
        names = {"dataset": dataset.name, "halting": config.halting, "planner": config.planner}
        row = names | trainer.end_epoch()
        last = trainer.step == trainer.total
        if last or row["epoch"] % config.eval_every == 0:
            row |= trainer.evaluate() if run.rank == 0 else {}
        if last:
            row |= (trainer.evaluate_levels() if run.rank == 0 else {}) | trainer.facts
            publish()
        row["seconds"] = trainer.lap()
        trainer.metrics = row
        save(row.get("exact_accuracy"))
        run.report(row)


def identity(config: ReasonerConfig, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Return what a checkpoint and the run that goes on from it must have in common."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FAMILY.not_identity}
    return {"dataset": dataset.name, "data_fingerprint": dataset.fingerprint, "seed": seed, **settings}


def direct_baseline(config: ReasonerConfig, dataset: Dataset, seed: int, run: Run, folder: Folder) -> dict[str, Any]:
    """Train a model of the same parameters that answers in one pass for as many steps; return its held-out metrics.

    All workers train it together, because a worker that waited for another one's whole training would run into the
    time limit of its next collective. The last checkpoint is kept in ``folder``, and training goes on from there.

    Returns:
        The metrics on rank 0, nothing on the other ranks.

    Raises:
        InputError: If the checkpoint in ``folder`` belongs to another configuration or data.
    """
    lr = config.lr * config.direct_lr_ratio
    direct = dataclasses.replace(
        config, lr=lr, h_cycles=1, l_cycles=1, max_steps=1, halting="fixed", planner="none", gradient="cycle"
    )
    trainer = Trainer(direct, dataset, seed, run.device, run.rank, run.world_size)
    checkpoints, own = Checkpoints(folder.sub("checkpoints"), 1), identity(direct, dataset, seed)
    found = checkpoints.newest(own, run.device)
    if found:
        trainer.load_state_dict(found[1])
    while trainer.step < trainer.total:
        trainer.train_step()
        if trainer.step % config.checkpoint_every == 0 or trainer.step == trainer.total:
            state = trainer.state_dict()
            if run.rank == 0:
                checkpoints.save(CheckpointMeta(trainer.step, None, own), state)
    if run.rank:
        return {}
    solved = trainer.evaluate() | trainer.evaluate_levels()
    token, exact = dataset.majority()
    names = ("token_accuracy", "exact_accuracy", "valid_accuracy", "harder_exact_accuracy", "harder_valid_accuracy")
    return {f"direct_{name}": solved[name] for name in names if name in solved} | {
        "majority_token_accuracy": token,
        "majority_exact_accuracy": exact,
    }
