"""The Champion: size, causality, padding, independence of rows, and its checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from trainables.arc import COLOURS, PAD, Example, Pair
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.data import collate
from trainables.atomic_lora.loss import row_losses
from trainables.atomic_lora.model import Champion, GridBatch, attend, attend_by_products, load_champion, save_champion
from trainables.common.errors import InputError

TINY = ChampionConfig(
    width=16, heads=2, feedforward=24, decoder_layers=2, context_width=8, context_heads=2, context_feedforward=16
)
torch.set_num_threads(1)


def _champion(dtype: torch.dtype = torch.float64, config: ChampionConfig = TINY) -> Champion:
    torch.manual_seed(0)
    return Champion(config).to(dtype).eval()


def _pair(rng: np.random.Generator, side: int = 7) -> Pair:
    height, width, other_height, other_width = rng.integers(1, side, 4)
    return Pair(
        rng.integers(0, 10, (height, width)).astype(np.int8),
        rng.integers(0, 10, (other_height, other_width)).astype(np.int8),
    )


def _example(seed: int, context: int = 2) -> Example:
    rng = np.random.default_rng(seed)
    return Example(tuple(_pair(rng) for _ in range(context)), _pair(rng))


def _pad(batch: GridBatch, source: int, target: int, context: int) -> GridBatch:
    def longer(tensor: torch.Tensor, by: int) -> torch.Tensor:
        extra = tensor.new_zeros(*tensor.shape[:-1], by)
        extra[..., 0, :] = PAD
        return torch.cat([tensor, extra], dim=-1)

    return GridBatch(longer(batch.source, source), longer(batch.context, context), longer(batch.target, target))


# ---------------------------------------------------------------------------------------------------------------- shape


def test_the_published_size() -> None:
    model = Champion(ChampionConfig())
    assert sum(p.numel() for p in model.parameters()) == 1_723_854
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(("linear1", "linear2"))}
    # encoder, three decoder layers, context encoder
    assert len(linear) == 10
    assert sum(16 * (m.in_features + m.out_features) for m in linear.values()) == 168_960


def test_components_are_all_parameters_once() -> None:
    model = _champion()
    listed = [id(p) for parameters in model.components().values() for p in parameters]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_every_component_gets_a_gradient() -> None:
    model = _champion()
    batch = collate([_example(0), _example(1)])
    row_losses(model(batch), batch.target[:, 0])[0].sum().backward()
    for name, parameters in model.components().items():
        assert sum(float(p.grad.norm()) for p in parameters if p.grad is not None) > 0, name


def test_roles_positions_and_context_are_read() -> None:
    model, example = _champion(), _example(2)
    swapped = Example(tuple(Pair(p.output, p.input) for p in example.context), example.query)
    # swapping the two grids of a pair changes roles (and the order, to which only roles and positions are sensitive)
    context = [model.context_encoder(collate([e]).context) for e in (example, swapped)]
    assert not torch.allclose(context[0], context[1])
    example = Example(example.context, Pair(np.array([[1, 1], [2, 3]], np.int8), example.query.output))
    turned = Example(example.context, Pair(np.array([[2, 3], [1, 1]], np.int8), example.query.output))
    assert not torch.allclose(model(collate([example])), model(collate([turned])))


# ------------------------------------------------------------------------------------------------------------ causality


@given(st.integers(0, 1000), st.data())
@settings(max_examples=25, deadline=None)
def test_a_later_target_token_never_changes_earlier_logits(seed: int, data: st.DataObject) -> None:
    model, batch = _champion(), collate([_example(seed)])
    index = data.draw(st.integers(0, batch.target.shape[2] - 1))
    before = model(batch)
    batch.target[:, 0, index:] = (batch.target[:, 0, index:] + data.draw(st.integers(1, 9))) % COLOURS
    after = model(batch)
    # the token at index is the one that the logits at index are to predict
    assert torch.equal(before[:, : index + 1], after[:, : index + 1])
    if index + 1 < before.shape[1]:
        assert not torch.allclose(before[:, index + 1], after[:, index + 1])


def test_the_first_output_cell_is_predicted() -> None:
    model, example = _champion(), _example(3)
    logits = model(collate([example]))
    assert logits.shape[1] == example.query.output.size + example.query.output.shape[0] + 1
    other = Example(example.context, Pair(example.query.input, (example.query.output + 1) % 10))
    assert torch.equal(logits[:, 0], model(collate([other]))[:, 0])
    batch = collate([example])
    first, _ = row_losses(logits[:, :1], batch.target[:, 0, :1])
    expected = torch.logsumexp(logits[0, 0], 0) - logits[0, 0, int(example.query.output[0, 0])]
    assert first.item() == pytest.approx(expected.item(), rel=1e-12)


# -------------------------------------------------------------------------------------------------------- padding, rows


@given(st.integers(0, 1000), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_padding_changes_neither_logits_nor_loss(seed: int, source: int, target: int, context: int) -> None:
    model, batch = _champion(), collate([_example(seed), _example(seed + 1, context=1)])
    padded = _pad(batch, source, target, context)
    logits, longer = model(batch), model(padded)
    torch.testing.assert_close(longer[:, : logits.shape[1]], logits, rtol=0, atol=1e-10)
    for a, b in zip(row_losses(logits, batch.target[:, 0]), row_losses(longer, padded.target[:, 0]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_row_is_the_same_alone_and_among_others() -> None:
    model, examples = _champion(), [_example(seed, context=seed % 3) for seed in range(6)]
    together = model(collate(examples))
    for row, example in enumerate(examples):
        alone = model(collate([example]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-10)


def test_rows_are_bitwise_independent() -> None:
    model, batch = _champion(torch.float32), collate([_example(seed) for seed in range(4)])
    before = model(batch)
    batch.source[1, 0] = torch.where(batch.source[1, 0] < COLOURS, 9 - batch.source[1, 0], batch.source[1, 0])
    batch.context[1, 0, 0] = torch.where(batch.context[1, 0, 0] < COLOURS, 0, batch.context[1, 0, 0])
    batch.target[1, 0, 0] = 9 - batch.target[1, 0, 0].clamp(max=9)
    after = model(batch)
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_attention_by_products_equals_the_fused_kernel(causal: bool, masked: bool) -> None:
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    given = mask if masked else None
    mine = attend_by_products(q, k, v, given, causal)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=causal)
    torch.testing.assert_close(mine, fused)
    grad = torch.randn_like(fused)
    for one, other in zip(torch.autograd.grad(mine, (q, k, v), grad), torch.autograd.grad(fused, (q, k, v), grad),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other)


def test_a_decoding_step_attends_to_what_is_written_in_its_cache() -> None:
    """In bfloat16, where a CPU attends by products."""
    torch.manual_seed(0)
    q, keys, values = torch.randn(3, 2, 1, 40), torch.randn(3, 2, 8, 40), torch.randn(3, 2, 8, 40)
    written = (torch.arange(8) < 5)[None, None, None]
    expected = F.scaled_dot_product_attention(q, keys[:, :, :5], values[:, :, :5])
    y = attend(*(t.bfloat16() for t in (q, keys, values)), written)
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)


def test_no_context_gives_a_zero_context_vector() -> None:
    assert not _champion().context_encoder(collate([_example(0, context=0)]).context).any()


# ---------------------------------------------------------------------------------------------------------- checkpoints


def _saved(folder: Path) -> Path:
    save_champion(folder / "champion.safetensors", _champion(torch.float32), TINY, {"seed": 0, "score": float("nan")})
    return folder / "champion.safetensors"


def test_a_checkpoint_survives_the_round_trip(tmp_path: Path) -> None:
    file, model, batch = _saved(tmp_path), _champion(torch.float32), collate([_example(0)])
    base, by_folder = load_champion(file), load_champion(str(tmp_path))
    assert base.config == TINY and torch.equal(base.model(batch), model(batch))
    assert not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    assert len(base.fingerprint) == 16 and base.fingerprint == by_folder.fingerprint


def test_the_fingerprint_changes_with_any_weight(tmp_path: Path) -> None:
    before = load_champion(_saved(tmp_path)).fingerprint
    model = _champion(torch.float32)
    with torch.no_grad():
        model.head.bias[3] += 1e-3
    save_champion(tmp_path / "champion.safetensors", model, TINY, {})
    assert load_champion(tmp_path).fingerprint != before


def test_the_fingerprint_is_of_what_the_model_computes_not_of_its_file(tmp_path: Path) -> None:
    before = load_champion(_saved(tmp_path)).fingerprint
    save_champion(tmp_path / "renamed.safetensors", _champion(torch.float32), TINY, {"seed": 1})
    assert load_champion(tmp_path / "renamed.safetensors").fingerprint == before
    # the same weights in other heads
    save_champion(tmp_path / "other.safetensors", _champion(torch.float32), replace(TINY, heads=1), {})
    assert load_champion(tmp_path / "other.safetensors").fingerprint != before


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_a_missing_checkpoint_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="sweeps/champion.py") as caught:
        load_champion(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def _rewrite(file: Path, metadata: dict[str, str], weights: dict[str, torch.Tensor] | None = None) -> None:
    save_file(load_file(file) if weights is None else weights, file, metadata=metadata or None)


CONFIG = json.dumps(asdict(TINY))


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    file = _saved(tmp_path)
    _rewrite(file, {"config": json.dumps(asdict(TINY) | {"width": 32})})
    with pytest.raises(InputError, match=r"\(14, 16\) for 'source_embedding.token.weight'.*\(14, 32\)"):
        load_champion(file)


def test_a_missing_weight_is_refused_by_name(tmp_path: Path) -> None:
    file = _saved(tmp_path)
    _rewrite(
        file, {"config": CONFIG}, {name: tensor for name, tensor in load_file(file).items() if name != "head.bias"}
    )
    with pytest.raises(InputError, match="nothing for 'head.bias'"):
        load_champion(file)


def test_a_weight_too_many_is_refused_by_name(tmp_path: Path) -> None:
    file = _saved(tmp_path)
    _rewrite(file, {"config": json.dumps(asdict(TINY) | {"decoder_layers": 1})})
    with pytest.raises(InputError, match="decoder.1"):
        load_champion(file)


@pytest.mark.parametrize(
    "metadata",
    [{}, {"facts": "{}"}, {"config": "{"}, {"config": "[1]"}, {"config": '{"depth": 3}'}],
    ids=["none", "no config", "malformed", "a list", "unknown setting"],
)
def test_safetensors_of_something_else_are_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    file = _saved(tmp_path)
    _rewrite(file, metadata)
    with pytest.raises(InputError, match="not a Champion checkpoint"):
        load_champion(file)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x00" * 64])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "champion.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match="not a Champion checkpoint"):
        load_champion(file)
