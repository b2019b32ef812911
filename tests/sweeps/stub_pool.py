"""A pool loop that trains nothing: losses are a formula, epochs take milliseconds. Importable by pool workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray

from trainables.common.jobs import Job, JobQueue, Report


def make_job(name: str, task: str = "task", sample: int = 0, **config: Any) -> Job:
    return Job(name, task, seed=0, config={"epochs": 30, "quality": 1.0, **config}, sample=sample)


def loss(job: Job, epoch: int) -> float:
    return float(job.config["quality"]) * (1 + 1 / epoch)


def loop(settings: dict[str, Any], run: Any, queue: JobQueue) -> None:
    """Train up to ``slots`` jobs, an epoch of all in ``epoch_s`` seconds, with reports every 5 epochs.

    The metrics of a report hold the ``node`` that it comes from.

    A file ``die`` in ``settings["folder"]`` kills the worker once in the middle of its work.
    """
    if settings.get("broken"):
        raise RuntimeError("the base checkpoint cannot be read")
    die = Path(settings["folder"]) / "die" if "folder" in settings else None
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
            history = [*history, {"epoch": epoch, "eval_loss": loss(job, epoch)}]
            slots[name] = (job, epoch, history)
            metrics = {**history[-1], "node": node}
            if name in cancelled:
                reports.append(Report(name, "stopped", epoch, metrics, history))
            elif job.config.get("fails_at") == epoch:
                reports.append(Report(name, "failed", epoch, {}, history, "diverged", "Traceback ..."))
            elif epoch == job.config["epochs"]:
                reports.append(Report(name, "success", epoch, metrics, history))
            elif epoch % 5 == 0:
                reports.append(Report(name, "running", epoch, metrics, history))
            else:
                continue
            slots[name] = (job, epoch, [])
            if reports[-1].status != "running":
                del slots[name]
        if die is not None and die.exists() and any(epoch > 6 for _, epoch, _ in slots.values()):
            die.unlink()
            os._exit(1)
        queue.report(reports)
