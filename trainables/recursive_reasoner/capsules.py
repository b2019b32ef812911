"""The capsule front end: a puzzle becomes capsules, as many of them whether it is shown as text, image or grid.

An encoder for each modality turns characters, patches of pixels or cells into features; learned queries read these into
12 capsules of 4 children (pooling by attention as in "Set Transformer", Lee et al., 2019). A child's query is the sum
of its capsule's and of one for its place within the capsule. Decoders read what was shown back from the children, with
a query for each character, patch or cell ("Perceiver IO", Jaegle et al., 2021): the reconstruction loss. All that the
reasoner knows of a puzzle is what the queries of the cells read.

Letters in shape comments: N rows, L numbers that show a puzzle, F features, C = 48 children, T cells, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.puzzles import views
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.layers import CrossAttention, Linear, draw, normalise

CAPSULES, CHILDREN = 12, 4
# characters are 7-bit ASCII
CHARACTERS = 128


class TokenEncoder(nn.Module):
    """Characters or cells: an embedding of the token and of its place."""

    def __init__(self, width: int, tokens: int, places: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.places = places_of(places, width)

    def forward(self, shown: Tensor) -> Tensor:
        """Shown [N, F] -> features [N, F, D]."""
        return self.embedding(shown) + self.places


class PatchEncoder(nn.Module):
    """Pixels: a convolution that looks at one square patch after the other, and an embedding of the patch's place."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.pixels = side * views.CELL
        self.patches = nn.Conv2d(1, width, views.CELL, stride=views.CELL)
        self.out = Linear(width, width)
        self.places = places_of(side * side, width)

    def forward(self, shown: Tensor) -> Tensor:
        """Shown [N, L], row by row -> features [N, F, D]."""
        seen = self.patches(shown.view(-1, 1, self.pixels, self.pixels).to(self.patches.weight.dtype))
        # as large as the embedding of the place, as a token's is: strokes are a small part of a patch
        return normalise(self.out(F.silu(seen.flatten(2).transpose(1, 2)))) + self.places


class TokenDecoder(nn.Module):
    """Reads characters or cells back."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.head = Linear(width, tokens)

    def forward(self, read: Tensor, shown: Tensor) -> Tensor:
        """Read [N, F, D] and shown [N, F] -> cross-entropy of each row [N], the mean over characters or cells."""
        return F.cross_entropy(self.head(read).transpose(1, 2), shown, reduction="none").mean(1)


class PatchDecoder(nn.Module):
    """Reads the pixels of each patch back."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.head = Linear(width, views.CELL**2)

    def forward(self, read: Tensor, shown: Tensor) -> Tensor:
        """Read [N, F, D] and shown [N, L], row by row -> binary cross-entropy of each row [N], the mean over pixels."""
        logits = self.head(read)
        ink = shown.view(-1, self.side, views.CELL, self.side, views.CELL).transpose(2, 3).reshape(logits.shape)
        return F.binary_cross_entropy_with_logits(logits, ink.to(logits.dtype), reduction="none").mean((1, 2))


class CapsuleFrontEnd(nn.Module):
    """Encodes puzzles into children and reads them back.

    Args:
        config: Width, heads and expansion.
        side: Cells in a row of a puzzle.
        vocabulary: Tokens of a cell.
        modalities: What puzzles are shown as, of `views.MODALITIES`, the grid among them; each has an encoder and a
            decoder of its own.
    """

    def __init__(self, config: ReasonerConfig, side: int, vocabulary: int, modalities: Sequence[str]) -> None:
        super().__init__()
        width = config.width
        self.lengths = {name: views.length(name, side) for name in modalities}
        self.encoders, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for name, length in self.lengths.items():
            if name == "image":
                self.encoders[name], self.decoders[name] = PatchEncoder(width, side), PatchDecoder(width, side)
            else:
                tokens = CHARACTERS if name == "text" else vocabulary
                self.encoders[name] = TokenEncoder(width, tokens, length)
                self.decoders[name] = TokenDecoder(width, tokens)
        self.capsule_queries = places_of(CAPSULES, width)
        self.child_queries = places_of(CHILDREN, width)
        # one query for a cell, its patch of an image and its answer: what the reconstruction learns to read is of use
        # to the answer
        self.queries = nn.ParameterDict({"cells": places_of(side * side, width)})
        if "text" in modalities:
            self.queries["text"] = places_of(self.lengths["text"], width)
        # what is read goes on without the query: it is the same for all puzzles, and would hide how they differ
        self.routing, self.reading = CrossAttention(config, residual=True), CrossAttention(config, residual=False)

    def forward(self, shown: Tensor, modality: Tensor) -> Tensor:
        """Return children [N, C, D] of what is shown [N, L], as the modality of each row [N] says."""
        queries = (self.capsule_queries[:, None] + self.child_queries).flatten(0, 1)
        rows = self._rows(modality)
        parts = [
            self.routing(queries, self.encoders[name](shown[some, :length]))
            for some, (name, length) in zip(rows, self.lengths.items(), strict=True)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def cells(self, children: Tensor) -> Tensor:
        """Return what takes the place of embedded tokens, [N, T, D], read from children [N, C, D]."""
        return self.reading(self.queries["cells"], children)

    def losses(self, children: Tensor, shown: Tensor, modality: Tensor) -> Tensor:
        """Return how badly what is shown [N, L] is read back from children [N, C, D]: of each row [N], in nats.

        It is the mean over characters, pixels or cells.
        """
        rows = self._rows(modality)
        parts = [
            self.decoders[name](
                self.reading(self.queries["text" if name == "text" else "cells"], children[some]), shown[some, :length]
            )
            for some, (name, length) in zip(rows, self.lengths.items(), strict=True)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def components(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by component, for the component monitor."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name in self.lengths:
            groups[f"{name}_encoder"] = list(self.encoders[name].parameters())
            groups[f"{name}_decoder"] = list(self.decoders[name].parameters())
        capsules = [self.capsule_queries, self.child_queries, *self.routing.parameters()]
        reading = [*self.queries.parameters(), *self.reading.parameters()]
        return groups | {"capsules": capsules, "reading": reading}

    def _rows(self, modality: Tensor) -> list[Tensor]:
        # an encoder with no row takes part all the same: its gradient is zero, not absent, whatever the workers have
        return [(modality == index).nonzero().squeeze(1) for index in range(len(self.lengths))]


def places_of(count: int, width: int) -> nn.Parameter:
    """Return learned vectors [count, width] of unit variance."""
    return nn.Parameter(draw(torch.empty(count, width), 1.0))
