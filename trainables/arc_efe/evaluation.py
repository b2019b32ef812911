"""Held-out metrics, beside copying the input and the colour prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.arc import Grid, Pair, compare
from trainables.arc_efe.data import Dataset, Item, collate, evaluation_batches
from trainables.arc_efe.loss import hard_cells
from trainables.arc_efe.model import Prediction
from trainables.arc_efe.policy import predicted_size, score, within
from trainables.arc_efe.prompts import CHANGES
from trainables.arc_efe.system import System
from trainables.common.intervals import wilson

# a pair of which copying has fewer of the cells is one where copying is not already nearly right
COPY_IS_RIGHT = 0.9


@torch.no_grad()
def solve(system: System, items: Sequence[Item], batch_size: int) -> list[dict[str, Any]]:
    """Return what the system answers to each item, in an order of its own.

    A row has the ``item``, the answers ``before`` and ``after`` the prompt was changed (grids), the ``change``,
    ``memory`` (whether it held something) and the ``score_before`` and ``score_after`` that the policy is rewarded by.
    """
    system.eval()
    rows = []
    for some in evaluation_batches(items, batch_size):
        batch = collate(some)
        inputs, input_size, prompt, targets, target_size = (
            torch.from_numpy(array).to(system.device)
            for array in (batch.inputs, batch.input_size, batch.prompt, batch.targets, batch.target_size)
        )
        answer = system.answer(inputs, input_size, prompt)
        scores = []
        for prediction, embedding in ((answer.before, answer.prompt), (answer.after, answer.changed)):
            shown = reconstructed(system, prediction, embedding)
            scores.append(score(prediction.logits[:, -1], prediction.size, shown, targets, target_size, inputs))
        hard = hard_cells(answer.after.logits[:, -1], targets)
        for place, item in enumerate(some):
            rows.append(
                {
                    "item": item,
                    "before": _grid(answer.before, place),
                    "after": _grid(answer.after, place),
                    "change": CHANGES[int(answer.change[place])],
                    "memory": bool(answer.hit[place]),
                    "score_before": float(scores[0].total[place]),
                    "score_after": float(scores[1].total[place]),
                    "hard": float(hard[place].sum() / max(1, int((targets[place] < 10).sum()))),
                }
            )
    system.train()
    return rows


def reconstructed(system: System, prediction: Prediction, embedding: Tensor) -> Tensor:
    """Return the backward model's logits of the input from a predicted output, cropped to its predicted size."""
    side = prediction.logits.shape[2]
    shown = within(predicted_size(prediction.size, side), side)[..., None]
    return system.reconstruct(prediction.logits[:, -1].softmax(-1) * shown, embedding)


def metrics(rows: Sequence[dict[str, Any]], dataset: Dataset) -> dict[str, Any]:
    """Return the row of metrics of answers to held-out pairs."""
    pairs = [row["item"].pair for row in rows]
    after = [compare(row["after"], pair) for row, pair in zip(rows, pairs, strict=True)]
    before = [compare(row["before"], pair) for row, pair in zip(rows, pairs, strict=True)]
    copied = [compare(pair.input, pair) for pair in pairs]
    prior = [
        compare(colour_prior(dataset.prompts[row["item"].prompt], row["item"].pair.input), row["item"].pair)
        for row in rows
    ]
    contested = [place for place, value in enumerate(copied) if value["cell"] < COPY_IS_RIGHT]
    solved = sum(value["exact"] for value in after)
    low, high = wilson(solved, len(rows))
    return {
        "exact_accuracy": solved / len(rows),
        "exact_low": low,
        "exact_high": high,
        "cell_accuracy": _mean(after, "cell"),
        "size_accuracy": _mean(after, "size"),
        "change_recall": _mean(after, "change_recall"),
        "unchanged_exact_accuracy": _mean(before, "exact"),
        "unchanged_cell_accuracy": _mean(before, "cell"),
        "contested_cell_accuracy": _mean([after[i] for i in contested], "cell"),
        "contested_copy_cell_accuracy": _mean([copied[i] for i in contested], "cell"),
        "copy_exact_accuracy": _mean(copied, "exact"),
        "copy_cell_accuracy": _mean(copied, "cell"),
        "copy_size_accuracy": _mean(copied, "size"),
        "prior_cell_accuracy": _mean(prior, "cell"),
        "score_before": float(np.mean([row["score_before"] for row in rows])),
        "score_after": float(np.mean([row["score_after"] for row in rows])),
        "hard_share": float(np.mean([row["hard"] for row in rows])),
        "memory_hits": float(np.mean([row["memory"] for row in rows])),
        "prompts_changed": float(np.mean([row["change"] != CHANGES[0] for row in rows])),
        "held_out_pairs": len(rows),
        "contested_pairs": len(contested),
    }


def colour_prior(demonstrations: Sequence[Pair], grid: Grid) -> Grid:
    """Return a grid of the input's size in the commonest colour of the demonstrations' outputs."""
    colours = np.concatenate([pair.output.ravel() for pair in demonstrations])
    return np.full_like(grid, np.bincount(colours).argmax())


def _grid(prediction: Prediction, place: int) -> Grid:
    side = prediction.logits.shape[2]
    height, width = predicted_size(prediction.size[place : place + 1], side)[0].tolist()
    return prediction.logits[place, -1].argmax(-1).cpu().numpy().astype(np.int8)[:height, :width]


def _mean(rows: Sequence[dict[str, float]], name: str) -> float | None:
    values = [row[name] for row in rows if not math.isnan(row[name])]
    return float(np.mean(values)) if values else None
