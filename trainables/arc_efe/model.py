"""The grid agent, its backward model, and the encoder of pairs that the prompt is compared with.

Letters in shapes: B pairs, S side of the canvas, T predictive steps, C channels, E width of the prompt embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.arc import COLOURS, MAX_SIDE
from trainables.arc_efe.config import EfeConfig
from trainables.arc_efe.data import OUTSIDE

# one-hot colours, whether a cell lies within the grid, and its relative row and column
CHANNELS = COLOURS + 3
# width of the vectors that the prompt term compares
PAIR_WIDTH = 128


class Prediction(NamedTuple):
    """What the agent predicts.

    Attributes:
        logits: Of the hidden colour of each cell after each step, [B, T, S, S, 10].
        size: Logits of height and width, from 1 to 30, [B, 2, 30].
    """

    logits: Tensor
    size: Tensor


class Block(nn.Module):
    """A residual block: a convolution, means of rows, columns and grid, all modulated by the prompt (FiLM).

    FiLM is from Perez et al. (2018). Channels are normalised at each cell, so nothing depends on the rest of a batch.
    """

    def __init__(self, channels: int, embedding: int, dilation: int) -> None:
        super().__init__()
        self.film = nn.Linear(embedding, 2 * channels)
        self.near = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.rows, self.columns = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)
        self.whole = nn.Linear(channels, channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: Tensor, prompt: Tensor) -> Tensor:
        """Return [B, C, S, S] from the same and prompts [B, E]."""
        scale, shift = self.film(prompt)[:, :, None, None].chunk(2, 1)
        x = _normalised(hidden) * (1 + scale) + shift
        y = self.near(x)
        rows, columns = x.mean(3), x.mean(2)
        y = y + self.rows(rows)[:, :, :, None] + self.columns(columns)[:, :, None, :]
        y = y + self.whole(rows.mean(2))[:, :, None, None]
        return hidden + self.out(F.gelu(y))


class Agent(nn.Module):
    """Predicts the output of an input under a prompt, and its size; it never sees an output.

    The prediction starts from the input and is changed at each of T steps by the same blocks, which read the colours
    predicted so far.
    """

    def __init__(self, config: EfeConfig, lm_width: int) -> None:
        super().__init__()
        self.steps = config.steps
        self.prompt = PromptReader(lm_width, config.embedding)
        self.memory_reader = nn.Linear(lm_width, config.embedding) if config.memory else None
        self.stem = nn.Sequential(
            nn.Conv2d(CHANNELS, config.width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.width, config.hidden, 3, padding=1),
        )
        self.blocks = nn.ModuleList(Block(config.hidden, config.embedding, 1 + k % 2) for k in range(config.depth))
        self.read = nn.Conv2d(COLOURS, config.hidden, 1)
        self.step = nn.ModuleList(Block(config.hidden, config.embedding, 1 + k % 2) for k in range(config.step_depth))
        self.head = nn.Conv2d(config.hidden, COLOURS, 1)
        self.copy = nn.Parameter(torch.tensor(2.0))
        self.size_head = nn.Sequential(
            nn.Linear(config.hidden + config.embedding + 2 * MAX_SIDE, config.embedding),
            nn.GELU(),
            nn.Linear(config.embedding, 2 * MAX_SIDE),
        )
        self.copy_size = nn.Parameter(torch.tensor(2.0))
        # P(o|s): how surely a colour is seen as itself; columns are states
        self.likelihood_logits = nn.Parameter(8.0 * torch.eye(COLOURS))

    @property
    def likelihood(self) -> Tensor:
        """``P(o|s)`` [10, 10]: columns are hidden colours and sum to 1."""
        return self.likelihood_logits.float().softmax(0)

    def embed(self, texts: Tensor | None, remembered: Tensor | None, count: int) -> Tensor:
        """Return prompt embeddings [B, E] of the language model's [B, D] and of what memory holds [B, D] (0: nothing).

        Without prompts (None) they are zero.
        """
        if texts is None:
            return self.copy.new_zeros(count, self.prompt.project.out_features)
        embedding = self.prompt(texts)
        if remembered is not None and self.memory_reader is not None:
            found = (remembered != 0).any(1, keepdim=True)
            embedding = embedding + found * self.memory_reader(F.layer_norm(remembered, remembered.shape[1:]))
        return embedding

    def forward(self, inputs: Tensor, input_size: Tensor, prompt: Tensor) -> Prediction:
        """Predict from inputs [B, S, S], their sizes [B, 2] and prompt embeddings [B, E]."""
        seen, within = features(inputs, input_size)
        hidden = self.stem(seen)
        for block in self.blocks:
            hidden = block(hidden, prompt)
        pooled = (_normalised(hidden) * within).sum((2, 3)) / within.sum((2, 3))
        own = F.one_hot(input_size - 1, MAX_SIDE).float()
        size = self.size_head(torch.cat([pooled, prompt, own.flatten(1)], 1)).view(-1, 2, MAX_SIDE)
        logits = self.copy * seen[:, :COLOURS]
        predicted = []
        for _ in range(self.steps):
            hidden = hidden + self.read(logits.softmax(1))
            for block in self.step:
                hidden = block(hidden, prompt)
            logits = logits + self.head(_normalised(hidden))
            predicted.append(logits)
        return Prediction(
            torch.stack(predicted, 1).permute(0, 1, 3, 4, 2).float(), (size + self.copy_size * own).float()
        )


class PromptReader(nn.Module):
    """Brings mean hidden states, standardised by those of the training prompts, to the width of the agent."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, lm_width: int, embedding: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(lm_width))
        self.register_buffer("deviation", torch.ones(lm_width))
        self.project = nn.Linear(lm_width, embedding)

    def standardise(self, texts: Tensor) -> Tensor:
        """Return [B, D] with the mean and the deviation of the training prompts taken out."""
        return (texts - self.mean) / self.deviation

    def forward(self, texts: Tensor) -> Tensor:
        """Return [B, E] of standardised mean hidden states [B, D]."""
        return F.layer_norm(self.project(texts), self.project.weight.shape[:1])


class BackwardModel(nn.Module):
    """Predicts the input from an output: what `Agent` should not have to invent."""

    def __init__(self, config: EfeConfig) -> None:
        super().__init__()
        hidden = config.backward_hidden
        self.stem = nn.Conv2d(COLOURS + 1, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(Block(hidden, config.embedding, 1 + k) for k in range(2))
        self.head = nn.Conv2d(hidden, COLOURS, 1)
        self.copy = nn.Parameter(torch.tensor(2.0))

    def forward(self, outcome: Tensor, prompt: Tensor) -> Tensor:
        """Return logits of the input's colours [B, S, S, 10] from distributions of the output's [B, S, S, 10].

        Cells beyond the output are all zero.
        """
        seen = outcome.permute(0, 3, 1, 2)
        hidden = self.stem(torch.cat([seen, seen.sum(1, keepdim=True)], 1))
        for block in self.blocks:
            hidden = block(hidden, prompt)
        return (self.head(_normalised(hidden)) + self.copy * seen).permute(0, 2, 3, 1).float()


class PairEncoder(nn.Module):
    """Vectors of solved pairs and of prompts that should be near where both are of one task; training alone uses it."""

    def __init__(self, config: EfeConfig) -> None:
        super().__init__()
        hidden = config.backward_hidden
        self.pair = nn.Sequential(
            nn.Conv2d(2 * (COLOURS + 1), hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
        )
        self.pooled = nn.Linear(hidden, PAIR_WIDTH)
        self.prompt = nn.Linear(config.embedding, PAIR_WIDTH)

    def forward(self, inputs: Tensor, targets: Tensor, prompt: Tensor) -> Tensor:
        """Return cosine similarities [B, B] of pairs (rows) and prompts (columns)."""
        both = torch.cat([F.one_hot(inputs, COLOURS + 1), F.one_hot(targets, COLOURS + 1)], 3).float()
        pair = self.pooled(self.pair(both.permute(0, 3, 1, 2)).mean((2, 3)))
        return F.normalize(pair.float(), dim=1) @ F.normalize(self.prompt(prompt).float(), dim=1).T


def features(grids: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the agent sees of grids [B, S, S]: [B, 13, S, S], and which cells are within, [B, 1, S, S]."""
    colours = F.one_hot(grids, COLOURS + 1)[..., :COLOURS].permute(0, 3, 1, 2).float()
    within = (grids != OUTSIDE)[:, None].float()
    line = torch.arange(grids.shape[1], device=grids.device)
    rows = (line[None, :] / size[:, :1])[:, None, :, None].expand_as(within)
    columns = (line[None, :] / size[:, 1:])[:, None, None, :].expand_as(within)
    return torch.cat([colours, within, rows, columns], 1), within


def _normalised(hidden: Tensor) -> Tensor:
    """Normalise the channels of [B, C, S, S] at each cell."""
    return F.layer_norm(hidden.permute(0, 2, 3, 1), hidden.shape[1:2]).permute(0, 3, 1, 2)
