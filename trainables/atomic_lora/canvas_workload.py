"""Adapters of a canvas model for the pack engine: one pass for a loss, one pass for an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trainables.arc import IDENTITY, SYMMETRIES, Example, Grid, Task, dihedral, inverse, most_frequent, view
from trainables.atomic_lora.canvas import (
    PATCH,
    CanvasBase,
    answers,
    canvas_side,
    on_canvas,
    pixel_losses,
    right_cells,
    rows_at_once,
)
from trainables.atomic_lora.canvas_data import growths
from trainables.atomic_lora.workload import ArcWorkload
from trainables.common.folder import Folder
from trainables.pack.batching import BatchCost
from trainables.pack.plan import Size

# patches that go through the model together at most
CPU_PATCHES, CUDA_PATCHES = 8192, 262_144


class CanvasWorkload(ArcWorkload):
    """Adapters of a canvas model.

    Rows of equal canvas side go through the model together, so that a row's loss never depends on the others.

    A task that the base was not trained on gets an embedding with its adapter, one for each symmetry under which it is
    seen. Its answers are those that most of the eight views of an input agree on.

    Args:
        base: The frozen canvas model.
        base_name, tasks, folder, target_modules, bf16: See `ArcWorkload`.
    """

    recolours = False

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
        self.model, self.fingerprint, self.config = base.model, base.fingerprint, base.config
        self.ratios = growths(tasks) | dict(base.tasks)
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

    def place(self, row: Example) -> int:
        """Return the place of a row's task in the base's embedding."""
        return self.index.get(row.task_id, len(self.index) + row.symmetry)

    def side(self, row: Example) -> int:
        """Return the side of a row's canvas, which its output plays no part in."""
        height, width = row.query.input.shape
        return canvas_side(height, width, self.ratios[row.task_id])

    def size(self, row: Example) -> Size:
        """Tokens of the canvas, and its pixels, which the loss is a mean over."""
        side = self.side(row)
        tokens = (side // PATCH) ** 2 + self.config.task_tokens
        return Size((tokens,), tokens, side * side)

    def score(self, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each row, its mean over weighted pixels times the number of pixels, [N], and whether its
        answer is right, [N]."""
        places, losses, exact = [], [], []
        for part, logits, inputs in self._by_side(dict(enumerate(rows))):
            side, outputs = inputs.shape[-1], [rows[i].query.output for i in part]
            targets = torch.from_numpy(on_canvas(outputs, side)).to(self.device)
            means = pixel_losses(logits, inputs, targets, self.config.changed_weight)
            places += part
            losses.append(means * side * side)
            truth = torch.tensor([output.shape for output in outputs], device=self.device)
            exact.append(right_cells(logits.detach(), targets, truth)[0])
        order = torch.tensor(np.argsort(places), device=self.device)
        return torch.cat(losses)[order], torch.cat(exact)[order]

    def solve(self, rows: Sequence[Example]) -> tuple[list[Grid | None], list[int], list[int]]:
        """Answer the rows, and count what is right among the cells of the true output where its size is given."""
        truths = [row.query.output for row in rows]
        grids: list[Grid | None] = [None] * len(rows)
        hits = [0] * len(rows)
        for part, logits, _ in self._by_side(dict(enumerate(rows))):
            colours = logits[..., :-1].argmax(-1).cpu().numpy()
            # what is beyond the canvas counts as wrong
            side = colours.shape[1]
            for i, drawn, answer in zip(part, colours, answers(logits), strict=True):
                height, width = truths[i].shape
                grids[i], hits[i] = answer, int((drawn[:height, :width] == truths[i][:side, :side]).sum())
        unseen = {i: row for i, row in enumerate(rows) if self._learns_views(row)}
        for i, answer in self._voted(unseen, {i: grids[i] for i in unseen}).items():
            grids[i] = answer
        return grids, hits, [truth.size for truth in truths]

    def _learns_views(self, row: Example) -> bool:
        """Whether the task was trained under all symmetries: the base does not know it, and it is not generated."""
        return row.task_id not in self.index and self.tasks[row.task_id].augment

    def _voted(self, rows: Mapping[int, Example], plain: Mapping[int, Grid | None]) -> dict[int, Grid]:
        """Return what most of the eight views of each row answer, of equally many the first.

        Args:
            rows: Rows by number.
            plain: The answers to the rows as they are.
        """
        votes = {i: [answer] for i, answer in plain.items() if answer is not None}
        for symmetry in range(1, SYMMETRIES) if rows else ():
            seen = {i: view(row, symmetry, IDENTITY) for i, row in rows.items()}
            for part, logits, _ in self._by_side(seen):
                for i, answer in zip(part, answers(logits), strict=True):
                    votes[i].append(dihedral(answer, inverse(symmetry)))
        return {i: most_frequent(grids) for i, grids in votes.items()}

    def _by_side(self, rows: Mapping[int, Example]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Run the model on the rows of each canvas side; yield indices of n rows, logits [n, S, S, 11] and inputs
        [n, S, S]."""
        by_side: dict[int, list[int]] = {}
        for i, row in rows.items():
            by_side.setdefault(self.side(row), []).append(i)
        for side, numbers in by_side.items():
            count = rows_at_once((side // PATCH) ** 2, self.config.heads, self.patches)
            for start in range(0, len(numbers), count):
                part = numbers[start : start + count]
                some = [rows[i] for i in part]
                inputs = torch.from_numpy(on_canvas([row.query.input for row in some], side)).to(self.device)
                sizes = torch.tensor([row.query.input.shape for row in some], device=self.device)
                tasks = torch.tensor([self.place(row) for row in some], device=self.device)
                with self.pack.rows(part), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    logits = self.model(inputs, sizes, tasks)
                yield part, logits, inputs
