"""Adapters of a canvas model for the pack engine: one pass for a loss, one pass for an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainables.arc import Example, Grid, Task
from trainables.atomic_lora.canvas import (
    PATCH,
    CanvasBase,
    answers,
    canvas_side,
    on_canvas,
    pixel_losses,
    rows_at_once,
)
from trainables.atomic_lora.workload import ArcWorkload
from trainables.common.folder import Folder
from trainables.pack.batching import BatchCost
from trainables.pack.plan import Size

T = TypeVar("T")

# patches that go through the model together at most
CPU_PATCHES, CUDA_PATCHES = 8192, 262_144


class CanvasWorkload(ArcWorkload):
    """Adapters of a canvas model.

    Rows of equal canvas side go through the model together, so that a row's loss never depends on the others.

    Args:
        base: The frozen canvas model; it must have an embedding of every task.
        base_name, tasks, folder, target_modules, bf16: See `ArcWorkload`.
    """

    def __init__(
        self,
        base: CanvasBase,
        base_name: str,
        tasks: Mapping[str, Task],
        folder: Folder,
        target_modules: Sequence[str],
        bf16: bool,
    ) -> None:
        super().__init__(base.model, base_name, base.config.embedding_lr, tasks, folder, target_modules, bf16)
        self.model, self.fingerprint, self.ratios, self.config = base.model, base.fingerprint, base.tasks, base.config
        self.index = {task_id: i for i, task_id in enumerate(base.tasks)}
        if bf16:
            for module in self.model.modules():
                if isinstance(module, nn.Linear):
                    module.bfloat16()
        self.patches = CPU_PATCHES if self.device.type == "cpu" else CUDA_PATCHES
        # nothing is padded: a batch is split by canvas side
        self.cost = BatchCost(limit=self.patches, padded=False)

    @classmethod
    def component(cls, layer: str) -> str:
        """Return the component that a layer's gradients are recorded under: its kind, over all blocks."""
        return layer.rpartition(".")[2]

    def side(self, row: Example) -> int:
        """Return the side of a row's canvas, which its output plays no part in."""
        height, width = row.query.input.shape
        return canvas_side(height, width, self.ratios[row.task_id])

    def size(self, row: Example) -> Size:
        """Tokens of the canvas, and its pixels, which the loss is a mean over."""
        side = self.side(row)
        tokens = (side // PATCH) ** 2 + self.config.task_tokens
        return Size((tokens,), tokens, side * side)

    def losses(self, rows: Sequence[Example]) -> Tensor:
        """Cross-entropy of each row, its mean over weighted pixels times the number of pixels, [N]."""

        def loss(logits: Tensor, inputs: Tensor, rows: Sequence[Example]) -> list[Tensor]:
            side = inputs.shape[-1]
            targets = torch.from_numpy(on_canvas([row.query.output for row in rows], side)).to(self.device)
            means = pixel_losses(logits, inputs, targets, self.config.changed_weight)
            return list((means * side * side).unbind())

        return torch.stack(self._by_side(rows, loss))

    def solve(self, rows: Sequence[Example]) -> tuple[list[Grid | None], list[int], list[int]]:
        """Answer the rows, and count what is right among the cells of the true output where its size is given."""

        def solved(logits: Tensor, _: Tensor, rows: Sequence[Example]) -> list[tuple[Grid, int, int]]:
            colours = logits[..., :-1].argmax(-1).cpu().numpy()
            truths = [row.query.output for row in rows]
            # what is beyond the canvas counts as wrong
            side = colours.shape[1]
            hits = [
                int((drawn[: truth.shape[0], : truth.shape[1]] == truth[:side, :side]).sum())
                for drawn, truth in zip(colours, truths, strict=True)
            ]
            return list(zip(answers(logits), hits, [truth.size for truth in truths], strict=True))

        grids, hits, cells = zip(*self._by_side(rows, solved), strict=True)
        return list(grids), list(hits), list(cells)

    def _by_side(self, rows: Sequence[Example], use: Callable[[Tensor, Tensor, Sequence[Example]], list[T]]) -> list[T]:
        """Run the model on the rows of each canvas side and return what ``use`` makes of each row, in their order.

        ``use`` is given logits [n, S, S, 11], inputs [n, S, S] and the n rows.
        """
        by_side: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_side.setdefault(self.side(row), []).append(i)
        results: dict[int, T] = {}
        for side, numbers in by_side.items():
            count = rows_at_once((side // PATCH) ** 2, self.config.heads, self.patches)
            for start in range(0, len(numbers), count):
                part = numbers[start : start + count]
                some = [rows[i] for i in part]
                inputs = torch.from_numpy(on_canvas([row.query.input for row in some], side)).to(self.device)
                sizes = torch.tensor([row.query.input.shape for row in some], device=self.device)
                tasks = torch.tensor([self.index[row.task_id] for row in some], device=self.device)
                with self.pack.rows(part), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    logits = self.model(inputs, sizes, tasks)
                results |= zip(part, use(logits, inputs, some), strict=True)
        return [results[i] for i in range(len(rows))]
