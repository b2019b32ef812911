"""Held-out evaluation of the Champion, bare or adapted: teacher-forced and autoregressive, beside copying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainables.arc import Example, Pair, Task, grid_tokens, modal_output
from trainables.atomic_lora.data import collate
from trainables.atomic_lora.decoding import generate, grid_metrics
from trainables.atomic_lora.loss import cell_hits, row_losses
from trainables.atomic_lora.model import Champion


def by_size(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Return batches of examples of similar size, so that little is padded."""
    ordered = sorted(examples, key=lambda e: grid_tokens(e.query.input) + grid_tokens(e.query.output))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


@torch.no_grad()
def teacher_forced(
    model: Champion, examples: Sequence[Example], device: str, batch_size: int = 32, bf16: bool = False
) -> dict[str, float]:
    """Return ``eval_loss`` (mean over examples of each one's mean over tokens) and ``teacher_forced_cell_accuracy``."""
    model.eval()
    losses, accuracies = [], []
    for rows in by_size(examples, batch_size):
        batch = collate(rows).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            logits = model(batch)
        total, count = row_losses(logits, batch.target[:, 0])
        hits, cells = cell_hits(logits, batch.target[:, 0])
        losses += (total / count).tolist()
        accuracies += (hits / cells).tolist()
    return {"eval_loss": float(np.mean(losses)), "teacher_forced_cell_accuracy": float(np.mean(accuracies))}


def autoregressive(model: Champion, examples: Sequence[Example], device: str, batch_size: int = 32) -> dict[str, Any]:
    """Decode every example and return the means of `decoding.grid_metrics`, named as columns of the results."""
    model.eval()
    rows = [
        grid_metrics(answer, example)
        for batch in by_size(examples, batch_size)
        for answer, example in zip(generate(model, batch, device), batch, strict=True)
    ]
    return mean_metrics(rows)


def modal_grid_accuracy(task: Task, held_out: Sequence[Pair]) -> float:
    """Return the share of held-out pairs that the task's most frequent training output answers exactly."""
    answer = modal_output(task)
    return float(np.mean([np.array_equal(answer, pair.output) for pair in held_out]))


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Average `decoding.grid_metrics` over examples; ``change_recall`` over those with changes, None without any."""
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    changes = columns["change_recall"][~np.isnan(columns["change_recall"])]
    return {
        "grid_accuracy": float(columns["grid"].mean()),
        "cell_accuracy": float(columns["cell"].mean()),
        "size_accuracy": float(columns["size"].mean()),
        "change_recall": float(changes.mean()) if changes.size else None,
        "copy_grid_accuracy": float(columns["copy_grid"].mean()),
        "copy_cell_accuracy": float(columns["copy_cell"].mean()),
    }
