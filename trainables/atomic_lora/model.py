"""The Champion: a small encoder-decoder over ARC grids that every adapter of the family shares.

It reads the input grid and two solved pairs, and writes the output grid token by token, its size included. The
decoder's position at a step is that of the token to be written, which earlier tokens fix, so equal positions in input
and output can attend to each other; nothing of the target but its earlier tokens is ever seen.

Letters in shape comments: N rows, T source tokens, U target tokens, K context pairs, V tokens of a context pair,
D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.arc import BOS, MAX_SIDE, PAD, VOCABULARY
from trainables.atomic_lora.config import ChampionConfig
from trainables.errors import InputError

ROLES = 2


@dataclass
class GridBatch:
    """A padded batch of examples, rows in any order the caller likes. All tensors are int64.

    Attributes:
        source: [N, 3, T] tokens, rows and columns of the input grids, padded with ``PAD``.
        context: [N, K, 4, V] tokens, rows, columns and roles (0 input, 1 output) of the solved pairs.
        target: [N, 3, U] tokens, rows and columns of the output grids; ``PAD`` carries no loss.
    """

    source: Tensor
    context: Tensor
    target: Tensor

    def to(self, device: str | torch.device) -> GridBatch:
        """Return the batch on ``device``."""
        return GridBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


class Attention(nn.Module):
    """Multi-head attention with separate projections, over `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[N, T, D] -> [N, heads, T, D / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, heads, T, D / heads] of ``x`` [N, T, D]."""
        return self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def attend(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from x [N, U, D] to keys and values; ``mask``, True: may attend, broadcasts to [N, heads, U, T]."""
        queries = self.split(self.q_proj(x))
        if queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and x.shape[1] > 1:
            y = attend_by_products(queries, keys, values, mask, causal)
        else:
            y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))


def attend_by_products(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention as two products and a softmax, [N, heads, U, D / heads].

    On CPUs this is two to three times as fast in bfloat16 as the fused kernel up to some 256 tokens with heads of 40,
    and about as fast above (benchmarks/attention.py). Scores are stored, and rounded to bfloat16.
    """
    rows, heads, length, width = queries.shape
    queries, keys, values = (t.flatten(0, 1) for t in (queries, keys, values))  # [N * heads, T, D / heads]
    bias = queries.new_zeros(1, length if causal else 1, keys.shape[1])
    if causal:
        bias = bias.masked_fill_(torch.ones_like(bias, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        allowed = mask.expand(rows, heads, 1, -1).flatten(0, 1)
        bias = bias.expand(len(allowed), -1, -1).masked_fill(~allowed, -torch.inf)
    scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), values).unflatten(0, (rows, heads))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and GELU feed-forward."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [N, T, D]; mask [N, 1, 1, T], False at padding."""
        return self.feed(self.attend(x, mask))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """The layer's first half."""
        y = self.norm1(x)
        return x + self.self_attention.attend(y, *self.self_attention.keys_values(y), mask=mask)

    def feed(self, x: Tensor) -> Tensor:
        """Its second half."""
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention, cross-attention and GELU feed-forward."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """x [N, U, D]; memory [N, T, D]; memory_mask [N, 1, 1, T]. Padding at the end of x is hidden by causality."""
        return self.read(self.attend(x), memory, memory_mask)

    def attend(self, x: Tensor) -> Tensor:
        """The layer's first part, which does not need the memory."""
        y = self.norm1(x)
        return x + self.self_attention.attend(y, *self.self_attention.keys_values(y), causal=True)

    def read(self, x: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """The rest of it."""
        x = x + self.cross_attention.attend(self.norm2(x), *self.cross_attention.keys_values(memory), mask=memory_mask)
        return x + self.linear2(F.gelu(self.linear1(self.norm3(x))))

    def step(self, x: Tensor, cache: LayerCache, length: int) -> Tensor:
        """Decode one token: x [N, 1, D] at index ``length - 1``; the cache is written in place."""
        y = self.norm1(x)
        key, value = self.self_attention.keys_values(y)
        cache.keys[:, :, length - 1 : length] = key
        cache.values[:, :, length - 1 : length] = value
        x = x + self.self_attention.attend(y, cache.keys[:, :, :length], cache.values[:, :, :length])
        x = x + self.cross_attention.attend(
            self.norm2(x), cache.memory_keys, cache.memory_values, mask=cache.memory_mask
        )
        return x + self.linear2(F.gelu(self.linear1(self.norm3(x))))


@dataclass
class LayerCache:
    """Keys and values of one decoder layer: written so far [N, heads, U, D / heads], and of the memory."""

    keys: Tensor
    values: Tensor
    memory_keys: Tensor
    memory_values: Tensor
    memory_mask: Tensor

    def keep(self, rows: Tensor) -> LayerCache:
        """Return the cache of some rows, bool [N]."""
        return LayerCache(*(getattr(self, f.name)[rows] for f in fields(self)))

    def grow(self, tokens: int) -> LayerCache:
        """Return the cache with room for more tokens."""
        keys, values = (F.pad(t, (0, 0, 0, tokens)) for t in (self.keys, self.values))
        return replace(self, keys=keys, values=values)


class Embedding(nn.Module):
    """Token (and role) embedding plus sinusoidal row and column positions, each half of the width."""

    position: Tensor

    def __init__(self, width: int, roles: int = 0) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.role = nn.Embedding(roles, width) if roles else None
        self.register_buffer("position", sinusoids(MAX_SIDE + 1, width // 2), persistent=False)

    def forward(self, tokens: Tensor, rows: Tensor, columns: Tensor, roles: Tensor | None = None) -> Tensor:
        """All [N, T] -> [N, T, D]."""
        x = self.token(tokens) + torch.cat([self.position[rows], self.position[columns]], dim=-1)
        return x + self.role(roles) if self.role is not None else x


def sinusoids(length: int, width: int) -> Tensor:
    """Return the sinusoidal table [length, width] of Vaswani et al. (2017); ``width`` is even."""
    rates = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class ContextEncoder(nn.Module):
    """Two solved pairs -> one vector: each pair is a sequence of its own, averaged over its tokens and the pairs."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = Embedding(width, roles=ROLES)
        self.layer = EncoderLayer(width, heads, feedforward)
        self.norm = nn.LayerNorm(width)

    def forward(self, context: Tensor) -> Tensor:
        """[N, K, 4, V] -> [N, D]; a row without any pair gives zeros."""
        pairs = context.flatten(0, 1)  # [N * K, 4, V]
        real = pairs[:, 0] != PAD  # [N * K, V]
        means = self.finish(self.begin(pairs), real).unflatten(0, context.shape[:2])  # [N, K, D]
        return mean_of_pairs(means, real.any(1).unflatten(0, context.shape[:2]))

    def begin(self, pairs: Tensor) -> Tensor:
        """Pairs [P, 4, V] -> [P, V, D], embedded and attended to each other."""
        real = pairs[:, 0] != PAD  # [P, V]
        # a pair that is all padding still needs one key, or its softmax is 0 / 0
        mask = real | (~real.any(1, keepdim=True))
        return self.layer.attend(self.embedding(*pairs.unbind(1)), mask[:, None, None])

    def finish(self, x: Tensor, real: Tensor) -> Tensor:
        """What `begin` gave and real [P, V], False at padding -> means over tokens [P, D]."""
        x = self.norm(self.layer.feed(x))
        weight = real.to(x.dtype)
        return (x * weight[..., None]).sum(1) / weight.sum(1).clamp_min(1.0)[:, None]


def mean_of_pairs(means: Tensor, used: Tensor) -> Tensor:
    """Vectors of pairs [N, K, D] and which of them count, bool [N, K] -> [N, D]; zeros where none does."""
    weight = used.to(means.dtype)
    return (means * weight[..., None]).sum(1) / weight.sum(1).clamp_min(1.0)[:, None]


class Champion(nn.Module):
    """The encoder-decoder of the module docstring.

    Args:
        config: Sizes; training settings are not read here.
    """

    def __init__(self, config: ChampionConfig) -> None:
        super().__init__()
        width = config.width
        self.source_embedding = Embedding(width)
        self.target_embedding = Embedding(width)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, config.heads, config.feedforward) for _ in range(config.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, config.heads, config.feedforward) for _ in range(config.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.context_encoder = ContextEncoder(config.context_width, config.context_heads, config.context_feedforward)
        self.join = nn.Linear(width + config.context_width, width)
        self.join_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Source [N, 3, T] -> memory [N, T, D] and its mask [N, 1, 1, T]."""
        mask = (source[:, 0] != PAD)[:, None, None]
        return self.remember(self.begin_source(source), mask), mask

    def begin_source(self, source: Tensor) -> Tensor:
        """Source [N, 3, T] -> [N, T, D]: embedding and self-attention of the first encoder layer."""
        mask = (source[:, 0] != PAD)[:, None, None]
        return cast(EncoderLayer, self.encoder[0]).attend(self.source_embedding(*source.unbind(1)), mask)

    def begin_target(self, target: Tensor) -> Tensor:
        """Target [N, 3, U] -> [N, U, D]: embedding of earlier tokens and self-attention of the first decoder layer."""
        tokens, rows, columns = target.unbind(1)
        previous = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], dim=1)
        return cast(DecoderLayer, self.decoder[0]).attend(self.target_embedding(previous, rows, columns))

    def remember(self, x: Tensor, mask: Tensor) -> Tensor:
        """What `begin_source` gave [N, T, D] and its mask [N, 1, 1, T] -> memory [N, T, D]."""
        x = cast(EncoderLayer, self.encoder[0]).feed(x)
        for layer in self.encoder[1:]:
            x = layer(x, mask)
        return self.encoder_norm(x)

    def write(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """What `begin_target` gave [N, U, D], memory and its mask -> the decoder's output [N, U, D]."""
        x = cast(DecoderLayer, self.decoder[0]).read(x, memory, mask)
        for layer in self.decoder[1:]:
            x = layer(x, memory, mask)
        return x

    def read_out(self, x: Tensor, context: Tensor) -> Tensor:
        """Decoder output [N, U, D] and context vector [N, C] -> logits [N, U, vocabulary]."""
        joined = torch.cat([self.decoder_norm(x), context[:, None].expand(-1, x.shape[1], -1)], dim=-1)
        return self.head(self.join_norm(F.relu(self.join(joined))))

    def forward(self, batch: GridBatch) -> Tensor:
        """Return teacher-forced logits [N, U, vocabulary] for ``batch.target``."""
        memory, mask = self.encode(batch.source)
        written = self.write(self.begin_target(batch.target), memory, mask)
        return self.read_out(written, self.context_encoder(batch.context))

    def start_cache(self, source: Tensor, length: int) -> list[LayerCache]:
        """Return the caches for decoding up to ``length`` tokens from ``source`` [N, 3, T]."""
        memory, mask = self.encode(source)
        caches = []
        for layer in cast(Iterable[DecoderLayer], self.decoder):
            # read at every token: worth one copy into the order in which they are read
            keys, values = (t.contiguous() for t in layer.cross_attention.keys_values(memory))
            empty = keys.new_zeros(keys.shape[0], keys.shape[1], length, keys.shape[3])
            caches.append(LayerCache(empty, empty.clone(), keys, values, mask))
        return caches

    def step(
        self, previous: Tensor, row: Tensor, column: Tensor, context: Tensor, caches: list[LayerCache], length: int
    ) -> Tensor:
        """Return logits [N, vocabulary] of the token at (row, column), all [N], after ``length - 1`` earlier ones."""
        x = self.target_embedding(previous[:, None], row[:, None], column[:, None])
        for layer, cache in zip(cast(Iterable[DecoderLayer], self.decoder), caches, strict=True):
            x = layer.step(x, cache, length)
        return self.read_out(x, context)[:, 0]

    def components(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by component, for the component monitor."""
        groups: dict[str, list[nn.Module]] = {
            "embedding": [self.source_embedding, self.target_embedding],
            "encoder": [self.encoder, self.encoder_norm],
            "decoder": [self.decoder, self.decoder_norm],
            "context_encoder": [self.context_encoder],
            "head": [self.join, self.join_norm, self.head],
        }
        return {name: [p for m in modules for p in m.parameters()] for name, modules in groups.items()}


# ---------------------------------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Base:
    """A frozen Champion and what is known of it.

    Attributes:
        model: The model, in evaluation mode, no parameter requiring a gradient.
        config: What it was trained with; adapters derive their learning rate from ``config.lr``.
        fingerprint: 16 hex digits of its weights.
    """

    model: Champion
    config: ChampionConfig
    fingerprint: str


def save_champion(path: Path, model: Champion, config: ChampionConfig, facts: Mapping[str, Any]) -> None:
    """Write weights and, in the safetensors metadata, the configuration and ``facts`` (JSON)."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, path, metadata={"config": json.dumps(asdict(config)), "facts": json.dumps(dict(facts))})


def load_champion(path: str | Path, device: str = "cpu") -> Base:
    """Load a Champion that `save_champion` wrote, frozen.

    Args:
        path: The safetensors file, or the folder that holds ``champion.safetensors``.
        device: Where to put it.

    Raises:
        InputError: If there is no such file, or it does not hold a Champion of the shape its configuration says.
    """
    file = Path(path).expanduser()
    file = file / "champion.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise InputError(
            f"--base {str(path)!r}: there is no such checkpoint; train one with 'python sweeps/champion.py'."
        )
    try:
        with safe_open(file, framework="pt", device=device) as store:
            metadata = store.metadata() or {}
            weights = {name: store.get_tensor(name) for name in store.keys()}  # noqa: SIM118 - not a mapping
        config = ChampionConfig(**json.loads(metadata["config"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"--base {str(path)!r} is not a Champion checkpoint ({type(error).__name__}: {error})."
        ) from error
    model = Champion(config)
    extra = sorted(weights.keys() - model.state_dict().keys())
    if extra:
        raise InputError(
            f"--base {str(path)!r} has {extra[0]!r}, which a Champion of its configuration does not have; "
            "give a checkpoint that 'python sweeps/champion.py' wrote."
        )
    for name, parameter in model.state_dict().items():
        if name not in weights or weights[name].shape != parameter.shape:
            found = tuple(weights[name].shape) if name in weights else "nothing"
            raise InputError(
                f"--base {str(path)!r} has {found} for {name!r} where its configuration asks for "
                f"{tuple(parameter.shape)}; give a checkpoint that 'python sweeps/champion.py' wrote."
            )
    model.load_state_dict(weights)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].cpu().numpy().tobytes())
    return Base(model.to(device).eval().requires_grad_(False), config, digest.hexdigest()[:16])
