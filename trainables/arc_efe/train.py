"""Training of the prompted grid agent: ``train_loop(settings, run)``.

It runs in a plain process, straight in a Tune trial, or as one Ray Train worker. Checkpoints are taken at any step, and
a run that goes on from one has the same losses, bit for bit on a CPU, as one that was never broken. What a step does is
the `Trainer`'s.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from trainables.arc import fingerprint, load_tasks
from trainables.arc_efe.config import EfeConfig
from trainables.arc_efe.data import Dataset, make_dataset
from trainables.arc_efe.family import FAMILY
from trainables.arc_efe.language import known_as
from trainables.arc_efe.trainer import Trainer, shown
from trainables.common.checkpoints import CheckpointMeta, Checkpoints
from trainables.common.context import Run
from trainables.common.folder import Folder

# held-out pairs whose answers are written down for the report
SHOWN_PAIRS = 24


def train_loop(settings: Mapping[str, Any], run: Run) -> None:
    """Train a system and report once an epoch; every ``eval_every`` epochs and at the end with held-out metrics.

    ``seconds`` of a report is the wall time since the one before it.

    Args:
        settings: ``config`` (`EfeConfig` fields), ``data`` and ``tasks`` (the source and the ids, see `load_tasks`),
            ``seed``, and ``folder``, where ``checkpoints/``, those of the agent without a prompt in ``no_prompt/``, the
            trained ``agent.pt`` and ``answers.json`` (some held-out pairs) go.
        run: Where it runs; one worker.

    Raises:
        DeadComponentError: If a component or a term of the loss gets no gradient through the first epoch.
        FrozenScheduleError: If a schedule that should move does not.
        FloatingPointError: If the loss or the gradient is no longer finite.
        InputError: If the folder holds a checkpoint of another configuration or data, or the language model cannot be
            used.
    """
    config = EfeConfig(**settings["config"])
    dataset, data = load_dataset(settings["data"], tuple(settings["tasks"]), config.max_side, config.prompt_pairs)
    own = identity(config, data, settings["seed"])
    folder = Folder(settings["folder"])
    checkpoints = Checkpoints(folder.sub("checkpoints"), config.keep_checkpoints)
    trainer = Trainer(config, dataset, settings["seed"], run.device)
    found = checkpoints.newest(own, run.device)
    if found:
        trainer.load_state_dict(found[1])
        run.recall(trainer.metrics)
        if trainer.step == trainer.total:
            # killed between its end and the note of it
            publish(trainer, trainer.evaluate()[1], folder)
            run.report(trainer.metrics)
            return
    elif config.no_prompt_baseline and config.prompt != "none":
        trainer.facts = no_prompt_baseline(config, dataset, data, settings["seed"], run, folder.sub("no_prompt"))
    while trainer.step < trainer.total:
        trainer.train_step()
        last = trainer.step == trainer.total
        if trainer.step % trainer.steps_per_epoch and not last:
            if trainer.step % config.checkpoint_every == 0:
                checkpoints.save(CheckpointMeta(trainer.step, None, own), trainer.state_dict())
            continue
        row = {"prompt": config.prompt, "lm_training": config.lm_training, **trainer.end_epoch()}
        if last or row["epoch"] % config.eval_every == 0:
            measured, answers = trainer.evaluate()
            row |= measured
        if last:
            row |= trainer.facts
            row["cut_prompts"] = trainer.system.prompts.cut if trainer.system.prompts else 0
            publish(trainer, answers, folder)
        row["seconds"] = trainer.lap()
        trainer.metrics = row
        checkpoints.save(CheckpointMeta(trainer.step, row.get("validation_score"), own), trainer.state_dict())
        run.report(row)


def publish(trainer: Trainer, answers: Sequence[Mapping[str, Any]], folder: Folder) -> None:
    """Write the trained system and some of its answers, as `evaluation.solve` returned them."""
    folder.write("agent.pt", trainer.exported())
    folder.write("answers.json", json.dumps(shown(answers, trainer, SHOWN_PAIRS)).encode())


def no_prompt_baseline(
    config: EfeConfig, dataset: Dataset, data: str, seed: int, run: Run, folder: Folder
) -> dict[str, Any]:
    """Train an agent without prompt, policy and memory for as many steps; return its held-out metrics.

    The last checkpoint is kept in ``folder``, and training goes on from there.

    Raises:
        InputError: If the checkpoint in ``folder`` belongs to another configuration or data.
    """
    bare = dataclasses.replace(config, prompt="none")
    trainer = Trainer(bare, dataset, seed, run.device)
    checkpoints, own = Checkpoints(folder.sub("checkpoints"), 1), identity(bare, data, seed)
    kept = checkpoints.newest(own, run.device)
    if kept:
        trainer.load_state_dict(kept[1])
    while trainer.step < trainer.total:
        trainer.train_step()
        if trainer.step % config.checkpoint_every == 0 or trainer.step == trainer.total:
            checkpoints.save(CheckpointMeta(trainer.step, None, own), trainer.state_dict())
    found = trainer.evaluate()[0]
    names = ("exact_accuracy", "cell_accuracy", "size_accuracy", "change_recall", "contested_cell_accuracy")
    return {f"no_prompt_{name}": found[name] for name in names}


def identity(config: EfeConfig, data: str, seed: int) -> dict[str, Any]:
    """Return what a checkpoint and the run that goes on from it must have in common."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FAMILY.not_identity}
    return {"data_fingerprint": data, "seed": seed, **settings, "lm": known_as(config.lm)}


@cache
def load_dataset(data: str, tasks: Sequence[str], max_side: int, prompt_pairs: int) -> tuple[Dataset, str]:
    """Return the dataset of some tasks of a source, and the fingerprint of the tasks."""
    some = load_tasks(data, tasks)
    return make_dataset(some, max_side, prompt_pairs), fingerprint(some)
