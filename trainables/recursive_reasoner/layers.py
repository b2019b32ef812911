"""The layers that the network and the capsules are made of: no biases, weights drawn as LeCun's.

Letters in shape comments: N rows, S positions, M positions of a memory, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.recursive_reasoner.config import ReasonerConfig


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


class CrossAttention(nn.Module):
    """Learned queries read a memory, then a SwiGLU, both RMS-normalised afterwards.

    Args:
        config: Width, heads and expansion.
        residual: Whether what is read is added to the query, so that the result tells queries apart, or stands alone.
    """

    def __init__(self, config: ReasonerConfig, residual: bool) -> None:
        super().__init__()
        width, self.heads, self.residual = config.width, config.heads, residual
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.out = Linear(width, width)
        self.mlp = SwiGLU(width, config.expansion)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries [S, D], the same for all rows, and memory [N, M, D] -> [N, S, D]."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q.expand(len(memory), -1, -1, -1), k, v)
        y = self.out(y.transpose(1, 2).flatten(2))
        x = normalise(queries + y if self.residual else y)
        return normalise(x + self.mlp(x))


def normalise(x: Tensor) -> Tensor:
    """RMS-normalise over the last dimension, without weights."""
    return F.rms_norm(x, (x.shape[-1],), eps=1e-5).to(x.dtype)


def draw(tensor: Tensor, std: float) -> Tensor:
    """Fill a tensor from a normal distribution of that standard deviation, cut at two of them."""
    with torch.no_grad():
        # cutting at two standard deviations leaves 0.8796 of the deviation
        return nn.init.trunc_normal_(tensor, std=std / 0.8796, a=-2 * std / 0.8796, b=2 * std / 0.8796)
