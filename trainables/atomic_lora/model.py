"""The Champion: a small encoder-decoder over ARC grids that every adapter of the family shares.

It reads the input grid and two solved pairs, and writes the output grid token by token, its size included. The
decoder's position at a step is that of the token to be written, which earlier tokens fix, so equal positions in input
and output can attend to each other; nothing of the target but its earlier tokens is ever seen.

Letters in shape comments: N rows, T source tokens, U target tokens, K context pairs, V tokens of a context pair,
D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
from trainables.common.errors import InputError
from trainables.common.pretrained import weights_fingerprint

ROLES = 2
# heads below this many numbers make attention mostly exponentials
NARROW = 16


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


@dataclass(frozen=True)
class Group:
    """Rows of equal lengths, one after another in a tensor of tokens, that attention takes together.

    Attributes:
        rows: n.
        queries: U, tokens of each row.
        keys: T, tokens of what each row attends to.
        mask: bool [n, T], True: may attend; None: to all.
    """

    rows: int
    queries: int
    keys: int
    mask: Tensor | None = None


class Attention(nn.Module):
    """Multi-head attention with separate projections, over `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def split(self, x: Tensor, rows: int) -> Tensor:
        """[n * T, D] -> [n, heads, T, D / heads]."""
        return x.unflatten(0, (rows, -1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [tokens, D], of ``x`` [tokens, D]."""
        return self.k_proj(x), self.v_proj(x)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, groups: Sequence[Group], causal: bool = False) -> Tensor:
        """Attend within groups: x [sum of n U, D], keys and values [sum of n T, D] -> [sum of n U, D]."""
        queries = self.q_proj(x).split([group.rows * group.queries for group in groups])
        sizes = [group.rows * group.keys for group in groups]
        parts = []
        for group, q, k, v in zip(groups, queries, keys.split(sizes), values.split(sizes), strict=True):
            mask = None if group.mask is None else group.mask[:, None, None]
            q, k, v = (self.split(t, group.rows) for t in (q, k, v))
            y = attend(q, k, v, mask, causal)
            parts.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        return self.out_proj(parts[0] if len(parts) == 1 else torch.cat(parts))

    def look_up(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from one token of each row, x [N, D], to keys and values [N, heads, T, D / heads]."""
        y = attend(self.split(self.q_proj(x), len(x)), keys, values, mask)
        return self.out_proj(y.flatten(1))


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention [N, heads, U, D / heads]; ``mask``, True: may attend, is [N or 1, 1, 1, T]."""
    on_cpu = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
    if on_cpu and (queries.shape[3] >= NARROW or torch.is_grad_enabled()):
        return attend_by_products(queries, keys, values, mask, causal)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)


def attend_by_products(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The same as two products and a softmax.

    On CPUs this is two to three times as fast in bfloat16 as the fused kernel up to some 256 tokens with heads of 40,
    and about as fast above; with heads of 4, slower forward and many times as fast backward (benchmarks/attention.py).
    For the one query of a decoding step it is faster at every length (docs/log.md).
    Scores are stored, and rounded to bfloat16.
    """
    rows, heads, length, width = queries.shape
    queries, keys, values = (t.flatten(0, 1) for t in (queries, keys, values))  # [N * heads, T, D / heads]
    bias = queries.new_zeros(1, length if causal else 1, keys.shape[1])
    if causal:
        bias = bias.masked_fill_(torch.ones_like(bias, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        allowed = mask.expand(rows, heads, 1, -1).flatten(0, 1)
        bias = bias.expand(len(allowed), -1, -1).masked_fill(~allowed, -torch.inf)
    biased = causal or mask is not None
    scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), beta=int(biased), alpha=width**-0.5)
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

    def forward(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """x [tokens, D]."""
        return self.feed(self.attend(x, groups))

    def attend(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """The layer's first half."""
        y = self.norm1(x)
        return x + self.self_attention(y, *self.self_attention.keys_values(y), groups)

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

    def attend(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """The layer's first part: x [tokens, D]. Padding at the end of a row is hidden by causality."""
        y = self.norm1(x)
        return x + self.self_attention(y, *self.self_attention.keys_values(y), groups, causal=True)

    def read(self, x: Tensor, keys: Tensor, values: Tensor, groups: Sequence[Group]) -> Tensor:
        """The rest of it: x [tokens of the target, D], keys and values [tokens of the source, D]."""
        x = x + self.cross_attention(self.norm2(x), keys, values, groups)
        return x + self.linear2(F.gelu(self.linear1(self.norm3(x))))

    def step(self, x: Tensor, cache: LayerCache, length: int, written: Tensor) -> Tensor:
        """Decode one token of each row, x [N, D], at index ``length - 1``; the cache is written in place.

        ``written``, bool [1, 1, 1, U], is True for what then is written: on a CPU part of a cache is copied to be read.
        """
        y = self.norm1(x)
        key, value = (self.self_attention.split(t, len(x)) for t in self.self_attention.keys_values(y))
        cache.keys[:, :, length - 1 : length] = key
        cache.values[:, :, length - 1 : length] = value
        x = x + self.self_attention.look_up(y, cache.keys, cache.values, written)
        x = x + self.cross_attention.look_up(self.norm2(x), cache.memory_keys, cache.memory_values, cache.memory_mask)
        return x + self.linear2(F.gelu(self.linear1(self.norm3(x))))


@dataclass
class LayerCache:
    """Keys and values of one decoder layer: with room for U tokens [N, heads, U, D / heads], and of the memory."""

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
        """All [tokens] -> [tokens, D]."""
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
        used = real.any(1)
        # a pair that is all padding still needs one key, or its softmax is 0 / 0
        groups = [Group(len(real), real.shape[1], real.shape[1], real | ~used[:, None])]
        x = self.finish(self.begin(pairs.transpose(0, 1).flatten(1), groups))
        place = torch.arange(len(pairs), device=x.device)[:, None].expand_as(real)
        means = mean_of_tokens(x, torch.where(real, place, len(pairs)).flatten(), len(pairs))
        return mean_of_pairs(means.unflatten(0, context.shape[:2]), used.unflatten(0, context.shape[:2]))

    def begin(self, pairs: Tensor, groups: Sequence[Group]) -> Tensor:
        """Pairs [4, tokens] -> [tokens, D], embedded and attended to each other."""
        return self.layer.attend(self.embedding(*pairs), groups)

    def finish(self, x: Tensor) -> Tensor:
        """What `begin` gave [tokens, D] -> outputs [tokens, D]."""
        return self.norm(self.layer.feed(x))


def mean_of_tokens(x: Tensor, place: Tensor, count: int) -> Tensor:
    """Tokens [tokens, D] and the sequence of each, int64 [tokens] -> means [count, D]; without those of ``count``."""
    sums = x.new_zeros(count + 1, x.shape[-1]).index_add(0, place, x)[:count]
    tokens = place.new_zeros(count + 1).index_add(0, place, torch.ones_like(place))[:count]
    return sums / tokens.clamp_min(1)[:, None]


def mean_of_pairs(means: Tensor, used: Tensor) -> Tensor:
    """Vectors of pairs [N, K, D] and which of them count, bool [N, K] -> [N, D]; zeros where none does."""
    # filled, not multiplied: what does not count may be another adapter's that diverged
    return means.masked_fill(~used[..., None], 0.0).sum(1) / used.sum(1).clamp_min(1)[:, None]


class Champion(nn.Module):
    """The encoder-decoder of the module docstring.

    Its parts work on the tokens of all rows one after another, [tokens, D]; groups say where the rows are.

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

    def begin_source(self, source: Tensor, groups: Sequence[Group]) -> Tensor:
        """Tokens, rows and columns [3, tokens] -> [tokens, D]: embedding, first encoder layer's self-attention."""
        return cast(EncoderLayer, self.encoder[0]).attend(self.source_embedding(*source), groups)

    def begin_target(self, target: Tensor, groups: Sequence[Group]) -> Tensor:
        """Earlier tokens, rows and columns [3, tokens] -> [tokens, D]: embedding, first decoder layer's
        self-attention."""
        return cast(DecoderLayer, self.decoder[0]).attend(self.target_embedding(*target), groups)

    def remember(self, x: Tensor, groups: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
        """What `begin_source` gave [tokens, D] -> the keys and values, each [tokens, D], that each decoder layer
        reads."""
        x = cast(EncoderLayer, self.encoder[0]).feed(x)
        for layer in self.encoder[1:]:
            x = layer(x, groups)
        x = self.encoder_norm(x)
        return [layer.cross_attention.keys_values(x) for layer in cast(Iterable[DecoderLayer], self.decoder)]

    def write(
        self, x: Tensor, memory: Sequence[tuple[Tensor, Tensor]], groups: Sequence[Group], own: Sequence[Group]
    ) -> Tensor:
        """What `begin_target` gave [tokens, D] and memory -> the decoder's output [tokens, D].

        Args:
            x: Of the target's tokens.
            memory: From `remember`.
            groups: How the target's rows attend to the source's.
            own: How they attend to themselves.
        """
        for i, layer in enumerate(cast(Iterable[DecoderLayer], self.decoder)):
            x = layer.read(x if i == 0 else layer.attend(x, own), *memory[i], groups)
        return x

    def read_out(self, x: Tensor, context: Tensor) -> Tensor:
        """Decoder output [tokens, D] and the context vector of each token's row [tokens, C] -> [tokens, vocabulary]."""
        joined = torch.cat([self.decoder_norm(x), context], dim=-1)
        return self.head(self.join_norm(F.relu(self.join(joined))))

    def forward(self, batch: GridBatch) -> Tensor:
        """Return teacher-forced logits [N, U, vocabulary] for ``batch.target``."""
        real = batch.source[:, 0] != PAD
        (rows, sources), length = real.shape, batch.target.shape[2]
        memory = self.encode(batch.source, real)
        tokens, *positions = batch.target.unbind(1)
        previous = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], dim=1)
        own = [Group(rows, length, length)]
        x = self.begin_target(torch.stack([previous, *positions]).flatten(1), own)
        x = self.write(x, memory, [Group(rows, length, sources, real)], own)
        context = self.context_encoder(batch.context).repeat_interleave(length, 0)
        return self.read_out(x, context).unflatten(0, (rows, length))

    def encode(self, source: Tensor, real: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Source [N, 3, T] and bool [N, T], False at padding -> what `remember` gives."""
        groups = [Group(len(real), real.shape[1], real.shape[1], real)]
        return self.remember(self.begin_source(source.transpose(0, 1).flatten(1), groups), groups)

    def start_cache(self, source: Tensor, length: int) -> list[LayerCache]:
        """Return the caches for decoding up to ``length`` tokens from ``source`` [N, 3, T]."""
        real = source[:, 0] != PAD
        caches = []
        layers = cast(Iterable[DecoderLayer], self.decoder)
        for layer, memory in zip(layers, self.encode(source, real), strict=True):
            # read at every token: worth one copy into the order in which they are read
            keys, values = (layer.cross_attention.split(t, len(source)).contiguous() for t in memory)
            empty = keys.new_zeros(keys.shape[0], keys.shape[1], length, keys.shape[3])
            caches.append(LayerCache(empty, empty.clone(), keys, values, real[:, None, None]))
        return caches

    def step(
        self, previous: Tensor, row: Tensor, column: Tensor, context: Tensor, caches: list[LayerCache], length: int
    ) -> Tensor:
        """Return logits [N, vocabulary] of the token at (row, column), all [N], after ``length - 1`` earlier ones."""
        x = self.target_embedding(previous, row, column)
        written = (torch.arange(caches[0].keys.shape[2], device=x.device) < length)[None, None, None]
        for layer, cache in zip(cast(Iterable[DecoderLayer], self.decoder), caches, strict=True):
            x = layer.step(x, cache, length, written)
        return self.read_out(x, context)

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
        fingerprint: 16 hex digits of its weights and configuration.
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
    digits = weights_fingerprint({name: weight.cpu().numpy() for name, weight in weights.items()}, asdict(config))
    return Base(model.to(device).eval().requires_grad_(False), config, digits)
