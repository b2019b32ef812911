"""A pool loop that trains nothing: values are a formula, epochs take milliseconds. Importable by pool workers."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import ray

from trainables.common.errors import InputError
from trainables.common.jobs import Job, JobQueue, Report


def make_job(name: str, task: str = "task", sample: int = 0, **config: Any) -> Job:
    return Job(name, task, seed=0, config={"epochs": 30, "quality": 1.0, **config}, sample=sample)


def loss(job: Job, epoch: int) -> float:
    if epoch == job.config.get("diverges_at"):
        return math.nan
    return float(job.config["quality"]) * (1 + 1 / epoch)


def fails(folder: Path, job: Job) -> bool:
    return any((folder / f"fails-{name}").exists() for name in (job.task_id, job.config["quality"]))


def loop(settings: dict[str, Any], run: Any, queue: JobQueue) -> None:
    """Train up to ``slots`` jobs, an epoch of all in ``epoch_s`` seconds, with reports every 5 epochs.

    With ``settings["names_node"]`` the metrics of a report hold the ``node`` that it comes from. What is called
    ``eval_loss``, the lower the better, is called ``settings["metric"]`` where that is given, the higher the better.

    Files in ``settings["folder"]``: ``die`` kills the worker once in the middle of its work, ``fails-<task>`` and
    ``fails-<quality>`` have the jobs of a task or of a quality fail in epoch 8.
    """
    if settings.get("refused"):
        raise InputError("the base checkpoint is of another kind")
    if settings.get("broken"):
        raise RuntimeError("the base checkpoint cannot be read")
    folder = Path(settings.get("folder", "/nowhere"))
    die = folder / "die"
    metric = settings.get("metric", "eval_loss")
    sign = 1.0 if metric == "eval_loss" else -1.0
    node = ray.get_runtime_context().get_node_id()
    slots: dict[str, tuple[Job, int, list[dict[str, Any]]]] = {}
    while True:
        for job in queue.take(settings["slots"] - len(slots), wait=not slots):
            slots[job.trial_id] = (job, 0, [])
        if not slots:
            return
        time.sleep(settings["epoch_s"])
        reports, cancelled = [], queue.cancelled()
        for name, (job, before, history) in list(slots.items()):
            epoch = before + 1
            history = [*history, {"epoch": epoch, metric: sign * loss(job, epoch)}]
            slots[name] = (job, epoch, history)
            metrics = {**history[-1], **({"node": node} if settings.get("names_node") else {})}
            if job.config.get("silent"):
                del metrics[metric]
            if name in cancelled:
                reports.append(Report(name, "stopped", epoch, metrics, history))
            elif epoch == job.config.get("fails_at") or (epoch == 8 and fails(folder, job)):
                reports.append(Report(name, "failed", epoch, {}, history, "diverged", "Traceback ..."))
            elif epoch == settings.get("last", {}).get(job.task_id, job.config["epochs"]):
                reports.append(Report(name, "success", epoch, metrics, history))
            elif epoch % 5 == 0:
                reports.append(Report(name, "running", epoch, metrics, history))
            else:
                continue
            slots[name] = (job, epoch, [])
            if reports[-1].status != "running":
                del slots[name]
        if die.exists() and any(epoch > 6 for _, epoch, _ in slots.values()):
            die.unlink()
            os._exit(1)
        queue.report(reports)
