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
        for part, logits, inputs in self._by_side(rows, range(len(rows))):
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
        votes: list[list[Grid]] = [[] for _ in rows]
        hits = [0] * len(rows)
        shown = [(i, seen) for i, row in enumerate(rows) for seen in self._views(row)]
        numbers, views = zip(*shown, strict=True)
        for part, logits, _ in self._by_side(views, numbers):
            colours = logits[..., :-1].argmax(-1).cpu().numpy()
            # what is beyond the canvas counts as wrong
            side = colours.shape[1]
            for place, drawn, answer in zip(part, colours, answers(logits), strict=True):
                i, symmetry = numbers[place], views[place].symmetry
                votes[i].append(dihedral(answer, inverse(symmetry)))
                if not symmetry:
                    height, width = truths[i].shape
                    hits[i] = int((drawn[:height, :width] == truths[i][:side, :side]).sum())
        return [most_frequent(grids) for grids in votes], hits, [truth.size for truth in truths]

    def _views(self, row: Example) -> list[Example]:
        """Return the views of a row whose answers are asked for, the row as it is first.

        An adapter that brings an embedding of the task has been trained on views under all symmetries.
        """
        trained = self.pack.bank is not None and row.task_id not in self.index and self.tasks[row.task_id].augment
        return [view(row, symmetry, IDENTITY) for symmetry in range(SYMMETRIES if trained else 1)]

    def _by_side(self, rows: Sequence[Example], numbers: Sequence[int]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Run the model on the rows of each canvas side; yield places of n rows, logits [n, S, S, 11] and inputs
        [n, S, S].

        Args:
            rows: The rows.
            numbers: What the pack calls each of them; views of one row have the same number.
        """
        by_side: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            by_side.setdefault(self.side(row), []).append(place)
        for side, places in by_side.items():
            count = rows_at_once((side // PATCH) ** 2, self.config.heads, self.patches)
            for start in range(0, len(places), count):
                part = places[start : start + count]
                some = [rows[place] for place in part]
                inputs = torch.from_numpy(on_canvas([row.query.input for row in some], side)).to(self.device)
                sizes = torch.tensor([row.query.input.shape for row in some], device=self.device)
                tasks = torch.tensor([self.place(row) for row in some], device=self.device)
                owned = self.pack.rows([numbers[place] for place in part])
                with owned, torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    logits = self.model(inputs, sizes, tasks)
                yield part, logits, inputs
