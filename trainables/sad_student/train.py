"""Training of a student: ``train_loop(settings, run)``.

It runs in a plain process, straight in a Tune trial, or as one of several Ray Train workers. Checkpoints are taken at
any step, and a run that goes on from one has the same losses, bit for bit on a CPU, as one that was never broken. What
a step does is the `Trainer`'s.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.common.checkpoints import CheckpointMeta, Checkpoints
from trainables.common.context import Run
from trainables.common.folder import Folder
from trainables.sad_student.config import SadConfig
from trainables.sad_student.data import Material, Source, load_material, student_fingerprint
from trainables.sad_student.family import FAMILY
from trainables.sad_student.trainer import Trainer


def train_loop(settings: Mapping[str, Any], run: Run) -> None:
    """Train a student and report once an epoch; every ``eval_every`` epochs and at the end with held-out metrics.

    ``seconds`` of a report is the wall time since the one before it, evaluation and checkpoints included; what the
    teacher says beforehand counts towards the first one.

    Args:
        settings: ``config`` (`SadConfig` fields), ``source`` (`Source` fields), ``seed`` and ``folder``, where
            ``checkpoints/``, the trained ``student/`` and ``episode.json`` (one held-out episode) go.
        run: Where it runs.

    Raises:
        DeadComponentError: If a component gets no gradient through the first epoch.
        FrozenScheduleError: If a schedule that should move does not.
        FloatingPointError: If the loss or the gradient is no longer finite.
        InputError: If a model is missing, or the folder holds a checkpoint of another configuration or data.
    """
    config, source = SadConfig(**settings["config"]), Source(**settings["source"])
    material = load_material(source, config, run.device)
    trainer = Trainer(config, material, settings["seed"], run.device, run.rank, run.world_size)
    folder = Folder(settings["folder"])
    checkpoints = Checkpoints(folder.sub("checkpoints"), config.keep_checkpoints)
    own = identity(config, source, material, settings["seed"])

    def publish() -> None:
        if run.rank:
            return
        folder.write("episode.json", json.dumps(trainer.shown()).encode())
        if config.save_student:
            with tempfile.TemporaryDirectory() as aside:
                trainer.export(Path(aside))
                folder.upload(Path(aside), "student")

    def save(metric: float | None = None) -> None:
        if run.rank == 0:
            with trainer.aside():
                checkpoints.save(CheckpointMeta(trainer.step, metric, own), trainer.state_dict())

    found = checkpoints.newest(own, run.device)
    if found:
        trainer.load_state_dict(found[1])
        run.recall(trainer.metrics)
        if trainer.step == trainer.total:
            # killed between its end and the note of it
            publish()
            run.report(trainer.metrics)
            return
    while trainer.step < trainer.total:
        trainer.train_step()
        if trainer.step % trainer.steps_per_epoch:
            if trainer.step % config.checkpoint_every == 0:
                save()
            continue
        row = {"teacher": source.teacher, "student": source.student, "loss": config.loss} | trainer.end_epoch()
        last = trainer.step == trainer.total
        due = last or row["epoch"] % config.eval_every == 0
        if run.rank == 0 and config.mode != "fast" and (due or config.mode == "research"):
            row |= trainer.measure_spans()
        if run.rank == 0 and due:
            row |= trainer.evaluate() | material.baselines
        if last:
            row |= trainer.evaluate(test=True) if run.rank == 0 else {}
            publish()
        row["seconds"] = trainer.lap()
        trainer.metrics = row
        save(row.get("success_rate"))
        run.report(row)


def identity(config: SadConfig, source: Source, material: Material, seed: int) -> dict[str, Any]:
    """Return what a checkpoint and the run that goes on from it must have in common."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FAMILY.not_identity}
    return {"student": student_fingerprint(source.student), "material": material.fingerprint, "seed": seed, **settings}
