"""The model card of an exported adapter: base, data and metrics, as ``hf upload`` takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainables.common.family import Family, number, value_text
from trainables.common.jobs import Job

# how the hub names a model; its card's ``base_model`` must be one
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(
    family: Family, job: Job, base_name: str, base_fingerprint: str, data_fingerprint: str,
    metrics: Mapping[str, Any], servers: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Return an adapter's ``README.md``.

    Args:
        family: Whose columns the metrics are.
        job: What was trained.
        base_name: The base, as in the adapter's configuration.
        base_fingerprint, data_fingerprint: 16 hex digits each.
        metrics: Held-out metrics.
        servers: Why each server would not load it, ``""`` where it would; None where the base is no language model.
    """
    head = ["library_name: peft", "tags: [lora]"]
    if servers is not None:
        head.append("pipeline_tag: text-generation")
    if HUB_NAME.fullmatch(base_name):
        head.append(f"base_model: {base_name}")
    rows = [
        f"| {column.headline} | {_shown(metrics, column.base, column.percent)} | "
        f"{_shown(metrics, column.name, column.percent)} |"
        for column in family.headlines
        if number(metrics.get(column.name)) is not None
    ]
    config = job.config
    lines = [
        "---", *head, "---", "",
        f"# LoRA adapter for the task {job.task_id}", "",
        f"Trained on the frozen base `{base_name}` (fingerprint `{base_fingerprint}`) on data of the fingerprint "
        f"`{data_fingerprint}`, seed {job.seed}: rank {config['rank']}, alpha {config['alpha']}, "
        f"layers {', '.join(config['target_modules'])}.", "",
        "| on held-out data | base | adapted |", "|---|---|---|", *rows, "",
    ]  # fmt: skip
    if servers is not None:
        lines += [f"- {name}: {'names, ranks and types fit' if not why else why}" for name, why in servers.items()]
    return "\n".join(lines).rstrip() + "\n"


def _shown(metrics: Mapping[str, Any], name: str, percent: bool) -> str:
    return value_text(number(metrics.get(name)), percent)
