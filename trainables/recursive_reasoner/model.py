"""The recursive reasoner: one small network that updates an answer state and a latent state in turn.

After "Less is More: Recursive Reasoning with Tiny Networks" (Jolicoeur-Martineau, 2025). A supervision step is
``h_cycles`` cycles, each ``l_cycles`` updates ``z_L = f(z_L, z_H + x)`` and one ``z_H = f(z_H, z_L)``; only the last
cycle has a gradient, and the states go on to the next step detached.

Letters in shape comments: N rows, T cells, S positions (thought slots, prefix, cells), D width, V tokens.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.planner import PLANNERS, ContinuousThought, Update


class State(NamedTuple):
    """What a row takes from one supervision step to the next: answer state and latent state, both [N, S, D]."""

    z_h: Tensor
    z_l: Tensor


class Output(NamedTuple):
    """What a supervision step gives.

    Attributes:
        state: Detached states.
        logits: [N, T, V] of the answer, with gradient.
        summary: [N, D], the answer state at the sequence's first position, with gradient: what halting reads.
    """

    state: State
    logits: Tensor
    summary: Tensor


class Linear(nn.Linear):
    """A linear layer without bias whose weights are drawn as LeCun's."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs, bias=False)

    def reset_parameters(self) -> None:
        draw(self.weight, self.in_features**-0.5)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) over the last dimension; the inner width is a multiple of 32."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = 32 * math.ceil(expansion * width * 2 / 3 / 32)
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Attention(nn.Module):
    """Self-attention in both directions, with rotary positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        half = width // heads // 2
        angles = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, S, D] -> [N, S, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v)
        return self.out(y.transpose(1, 2).flatten(2))

    def _rotate(self, x: Tensor) -> Tensor:
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    """Mix positions, then features; the sum of each with its input is RMS-normalised afterwards."""

    def __init__(self, config: ReasonerConfig, positions: int) -> None:
        super().__init__()
        self.across = config.mixer == "mlp"
        self.mixer: nn.Module = (
            SwiGLU(positions, config.expansion) if self.across else Attention(config.width, config.heads, positions)
        )
        self.mlp = SwiGLU(config.width, config.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, S, D] -> [N, S, D]."""
        mixed = self.mixer(x.transpose(1, 2)).transpose(1, 2) if self.across else self.mixer(x)
        x = normalise(x + mixed)
        return normalise(x + self.mlp(x))


class Network(nn.Module):
    """f(hidden, injection): the sum of both through all blocks."""

    def __init__(self, config: ReasonerConfig, positions: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, positions) for _ in range(config.layers))

    def forward(self, hidden: Tensor, injection: Tensor) -> Tensor:
        """Hidden and injection [N, S, D] -> [N, S, D]."""
        x = hidden + injection
        for block in self.blocks:
            x = block(x)
        return x


class Reasoner(nn.Module):
    """The model. It is called outside of any autocast: it opens its own, see `forward`.

    Args:
        config: Sizes, cycles, mixer and planner.
        vocabulary: Tokens V of a cell.
        cells: Cells T of a puzzle.
        puzzle_ids: Puzzles that have a prefix of their own.
        bf16: Whether to compute in bfloat16 autocast.
    """

    start_h: Tensor
    start_l: Tensor

    def __init__(
        self, config: ReasonerConfig, vocabulary: int, cells: int, puzzle_ids: int = 1, bf16: bool = False
    ) -> None:
        super().__init__()
        self.config, self.cells, self.bf16 = config, cells, bf16
        width = config.width
        self.tokens = nn.Embedding(vocabulary, width)
        draw(self.tokens.weight, width**-0.5)
        self.scale = width**0.5
        self.prefix = nn.Embedding(puzzle_ids, config.prefix * width) if config.prefix else None
        if self.prefix is not None:
            nn.init.zeros_(self.prefix.weight)
        self.planner = PLANNERS[config.planner](config)
        positions = self.planner.slots + config.prefix + cells
        self.network = Network(config, positions)
        self.head = Linear(width, vocabulary)
        for name in ("start_h", "start_l"):
            self.register_buffer(name, draw(torch.empty(width), 1.0))

    def embed(self, inputs: Tensor, puzzle_ids: Tensor | None = None) -> Tensor:
        """Return the input x [N, S, D] of tokens [N, T] and, where puzzles differ in their prefix, their ids [N]."""
        parts = [self.tokens(inputs)]
        if self.prefix is not None:
            ids = inputs.new_zeros(len(inputs)) if puzzle_ids is None else puzzle_ids
            parts.insert(0, self.prefix(ids).unflatten(-1, (self.config.prefix, -1)))
        if isinstance(self.planner, ContinuousThought):
            parts.insert(0, self.planner.slot_inputs(len(inputs)))
        return self.scale * torch.cat(parts, dim=1)

    def start(self, rows: int) -> State:
        """Return the states of rows that have not begun."""
        positions = self.planner.slots + self.config.prefix + self.cells
        return State(self.start_h.expand(rows, positions, -1), self.start_l.expand(rows, positions, -1))

    def forward(self, state: State, inputs: Tensor, thoughts: int = 0, puzzle_ids: Tensor | None = None) -> Output:
        """Do one supervision step.

        Args:
            state: From `start` or the step before.
            inputs: [N, T] tokens.
            thoughts: Continuous thoughts to have, for the planner of that name.
            puzzle_ids: [N], where puzzles differ in their prefix.
        """
        x = self._cast(self.embed(inputs, puzzle_ids))
        # two contexts: autocast keeps the weights it has cast, and those of the first are cast without a gradient
        with torch.no_grad(), self._autocast():
            z_h, z_l = map(self._cast, state)
            for _ in range(self.config.h_cycles - 1):
                z_h, z_l = self._cycle(z_h, z_l, x)
        with self._autocast():
            z_l, x = self.planner(self.network, z_h, z_l, x, thoughts)
            z_h, z_l = self._cycle(z_h, z_l, x, last=True)
            logits = self.head(z_h[:, -self.cells :])
        return Output(State(z_h.detach(), z_l.detach()), logits.float(), z_h[:, 0].float())

    @torch.no_grad()
    def expand(self, state: State, inputs: Tensor, puzzle_ids: Tensor | None = None) -> State:
        """Return the states after ``h_cycles`` more cycles without an answer: twice the depth before the next step."""
        with self._autocast():
            x = self._cast(self.embed(inputs, puzzle_ids))
            z_h, z_l = map(self._cast, state)
            for _ in range(self.config.h_cycles):
                # another number of rows each time: not for a compiled network
                z_h, z_l = self._cycle(z_h, z_l, x, network=self.network.forward)
        return State(z_h, z_l)

    def components(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by component, for the component monitor."""
        modules = {
            "embedding": self.tokens,
            "puzzle_embedding": self.prefix,
            "network": self.network,
            "head": self.head,
            "planner": self.planner,
        }
        groups = {name: list(module.parameters()) for name, module in modules.items() if module is not None}
        return {name: parameters for name, parameters in groups.items() if parameters}

    def _cycle(
        self, z_h: Tensor, z_l: Tensor, x: Tensor, last: bool = False, network: Update | None = None
    ) -> tuple[Tensor, Tensor]:
        network = network or self.network
        cut = last and self.config.gradient == "one_step"
        with torch.no_grad() if cut else nullcontext():
            for _ in range(self.config.l_cycles - 1):
                z_l = network(z_l, z_h + x)
        z_l = network(z_l, z_h + x)
        return network(z_h, z_l), z_l

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.head.weight.device.type, torch.bfloat16, enabled=self.bf16)

    def _cast(self, x: Tensor) -> Tensor:
        # the states stay in the format of the products, as published: no conversion at every residual sum
        return x.to(torch.bfloat16) if self.bf16 else x


def normalise(x: Tensor) -> Tensor:
    """RMS-normalise over the last dimension, without weights."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-5).to(x.dtype)


def draw(tensor: Tensor, std: float) -> Tensor:
    """Fill a tensor from a normal distribution of that standard deviation, cut at two of them."""
    with torch.no_grad():
        # cutting at two standard deviations leaves 0.8796 of the deviation
        return nn.init.trunc_normal_(tensor, std=std / 0.8796, a=-2 * std / 0.8796, b=2 * std / 0.8796)
