"""Memory of solved prompts: written above a moving threshold, read by similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# entries that a reader mixes, and how sharply it prefers the nearest
NEAREST = 4
SHARPNESS = 10.0


class Memory:
    """Embeddings of prompts under which a pair was predicted well, found by the embedding of the unchanged prompt.

    Args:
        size: Entries, at most; the oldest goes first.
        width: Of an embedding.
        similarity: Cosine similarity from which on an entry is read.
        factor: An entry is written when its score reaches ``factor`` times the moving average of scores (or the
            highest possible score, 1).
        alpha: Share by which the average moves at each step.
        start: Where the average starts.
    """

    def __init__(
        self, size: int, width: int, similarity: float, factor: float, alpha: float, start: float, device: str
    ) -> None:
        self._size, self._similarity = size, similarity
        self._factor, self._alpha, self.average = factor, alpha, start
        self.keys = torch.zeros(0, width, device=device)
        self.values = torch.zeros(0, width, device=device)
        self.prompts = torch.zeros(0, dtype=torch.long, device=device)
        self.scores = torch.zeros(0, device=device)

    @property
    def threshold(self) -> float:
        """The score from which on a prompt is written."""
        return min(1.0, self._factor * self.average)

    def read(self, keys: Tensor, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what is remembered of prompts like those with embeddings ``keys`` [B, D], and which found something.

        Args:
            keys: Standardised embeddings of unchanged prompts.
            prompts: Their places [B], whose own entries are not read; None reads all.

        Returns:
            Values [B, D], 0 where nothing is near enough, and a mask [B].
        """
        if not len(self.keys):
            return torch.zeros_like(keys), torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
        near = F.normalize(keys.detach(), dim=1) @ F.normalize(self.keys, dim=1).T
        usable = near >= self._similarity
        if prompts is not None:
            usable &= prompts[:, None] != self.prompts[None, :]
        best, places = near.masked_fill(~usable, -torch.inf).topk(min(NEAREST, len(self.keys)), dim=1)
        hit = best[:, 0] > -torch.inf
        weights = torch.where(hit[:, None], (SHARPNESS * best).softmax(1), 0.0)
        return (weights[:, :, None] * self.values[places]).sum(1), hit

    def write(self, keys: Tensor, values: Tensor, prompts: Tensor, scores: Tensor) -> int:
        """Write the entries whose score reaches the threshold, then move the average; return how many were written.

        Args:
            keys, values: Standardised embeddings of the unchanged prompts and of those that were used, [B, D].
            prompts: Places of the unchanged prompts [B]; an older entry of the same prompt is replaced.
            scores: In [0, 1], [B].
        """
        good = scores >= self.threshold
        self.average += self._alpha * (float(scores.mean()) - self.average)
        if not good.any():
            return 0
        kept = ~torch.isin(self.prompts, prompts[good])
        for name, new in (("keys", keys), ("values", values), ("prompts", prompts), ("scores", scores)):
            setattr(self, name, torch.cat([getattr(self, name)[kept], new[good].detach()])[-self._size :])
        return int(good.sum())

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint must hold."""
        return {name: getattr(self, name) for name in ("keys", "values", "prompts", "scores", "average")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)
