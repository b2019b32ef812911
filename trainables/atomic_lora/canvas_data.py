"""Pairs as canvases: tensors of equal sides that lie on the device, batches drawn there, answers judged there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.arc import Pair, Task
from trainables.atomic_lora.canvas import (
    PATCH,
    Canvas,
    canvas_side,
    on_canvas,
    pixel_losses,
    right_cells,
    rows_at_once,
)
from trainables.atomic_lora.config import CanvasConfig


@dataclass(frozen=True)
class Batch:
    """Rows of one canvas side S: inputs and targets, uint8 [N, S, S]; height and width of each input and of each
    output, [N, 2]; task indices, [N]."""

    inputs: Tensor
    targets: Tensor
    sizes: Tensor
    output_sizes: Tensor
    tasks: Tensor

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def patches(self) -> int:
        """Patches of a row."""
        return (self.inputs.shape[-1] // PATCH) ** 2

    def take(self, index: Tensor | slice) -> Batch:
        """Return some of the rows."""
        return Batch(*(t[index] for t in (self.inputs, self.targets, self.sizes, self.output_sizes, self.tasks)))


def growths(tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return the largest ratio of an output's longer side to its input's, over each task's training pairs."""
    return {
        task_id: max(max(pair.output.shape) / max(pair.input.shape) for pair in task.train)
        for task_id, task in tasks.items()
    }


def on_canvases(
    pairs: Iterable[tuple[int, Pair]], ratios: Sequence[float], device: str
) -> tuple[dict[int, Batch], list[tuple[int, Pair]]]:
    """Return pairs by the side of their canvas, and those whose output is larger than its canvas.

    Args:
        pairs: Task index and pair.
        ratios: Growth of each task.
        device: Where the tensors go.
    """
    by_side: dict[int, list[tuple[int, Pair]]] = {}
    too_large = []
    for index, pair in pairs:
        height, width = pair.input.shape
        side = canvas_side(height, width, ratios[index])
        if max(pair.output.shape) > side:
            too_large.append((index, pair))
        else:
            by_side.setdefault(side, []).append((index, pair))
    batches = {}
    for side, items in sorted(by_side.items()):
        inputs, targets = (
            torch.from_numpy(on_canvas(grids, side)).to(device)
            for grids in ([pair.input for _, pair in items], [pair.output for _, pair in items])
        )
        sizes = np.array([(pair.input.shape, pair.output.shape) for _, pair in items])
        before, after = torch.from_numpy(sizes).to(device).unbind(1)
        batches[side] = Batch(inputs, targets, before, after, torch.tensor([i for i, _ in items], device=device))
    return batches, too_large


def draw(
    canvases: Mapping[int, Batch],
    config: CanvasConfig,
    bias: float,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Batch:
    """Draw rows of one canvas side, about ``config.batch_tokens`` patches in all.

    A row with t patches is drawn in proportion to t to the power of ``-bias``: 0 draws every pair equally often, 1
    spends equally many patches on every pair.
    """
    sides = list(canvases)
    patches = np.array([canvases[side].patches for side in sides], dtype=float)
    weights = np.array([len(canvases[side]) for side in sides]) * patches ** (1 - bias)
    side = sides[int(rng.choice(len(sides), p=weights / weights.sum()))]
    rows = canvases[side]
    count = rows_at_once(rows.patches, config.heads, config.batch_tokens)
    return rows.take(torch.randint(len(rows), (count,), device=rows.tasks.device, generator=generator))


def in_parts(canvases: Mapping[int, Batch], heads: int, batch_tokens: int) -> Iterator[Batch]:
    """Yield all rows in batches of about ``batch_tokens`` patches, for a model with so many heads."""
    for rows in canvases.values():
        count = rows_at_once(rows.patches, heads, batch_tokens)
        for start in range(0, len(rows), count):
            yield rows.take(slice(start, start + count))


@torch.no_grad()
def judge(model: Canvas, canvases: Mapping[int, Batch], left_out: int, batch_tokens: int) -> dict[str, float]:
    """Return means over pairs: ``grid_accuracy`` (exact), ``cell_accuracy``, ``size_accuracy`` and ``eval_loss``.

    Args:
        model: The model.
        canvases: Pairs by canvas side.
        left_out: Pairs whose output does not fit their canvas: they count as wrong, and in no loss.
        batch_tokens: Patches of a batch.
    """
    columns = []
    for batch in in_parts(canvases, model.config.heads, batch_tokens):
        logits = model(batch.inputs, batch.sizes, batch.tasks)
        losses = pixel_losses(logits, batch.inputs, batch.targets, 1.0)
        columns.append(torch.stack([*right_cells(logits, batch.targets, batch.output_sizes), losses]).double())
    table = torch.cat(columns, dim=1)
    count = table.shape[1] + left_out
    exact, cell, size = (table[:3].sum(1) / count).tolist()
    return {
        "grid_accuracy": exact, "cell_accuracy": cell, "size_accuracy": size, "eval_loss": float(table[3].mean()),
    }  # fmt: skip
