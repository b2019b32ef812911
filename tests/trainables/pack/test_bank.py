"""Stacked adapters: their layout, the layers that apply them, and the choice of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.trainables.pack.tiny import INPUTS, net
from trainables.common.errors import InputError
from trainables.pack.bank import AdapterBank, AdapterPack, Path, initial_factors

torch.set_num_threads(1)
LAYERS = {"up": (6, 8), "body.hidden": (8, 8), "down": (8, 5)}


def _random_factors(
    rank: int, seed: int, names: tuple[str, ...] = tuple(LAYERS)
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        n: (
            torch.randn(rank, LAYERS[n][0], generator=g, dtype=torch.float64),
            torch.randn(LAYERS[n][1], rank, generator=g, dtype=torch.float64),
        )
        for n in names
    }


def _bank(slots: int = 3, rank: int = 4) -> AdapterBank:
    bank = AdapterBank(LAYERS, slots, rank, dtype=torch.float64)
    for slot in range(slots):
        bank.write(slot, _random_factors(slot + 1, slot), alpha=2.0 + slot)
    return bank


# --------------------------------------------------------------------------------------------------------------- layout


def test_gradients_of_all_layers_land_in_the_flat_buffer() -> None:
    bank = _bank().take(torch.arange(3), trainable=True)
    assert bank.grad is not None
    loss = torch.stack([(bank.a[n] ** 2).sum() + 3.0 * bank.b[n].sum() for n in LAYERS]).sum()
    loss.backward()
    for n, place in bank.columns.items():
        assert torch.equal(bank.grad[:, place.start : place.middle], 2.0 * bank.flat[:, place.start : place.middle])
        assert torch.equal(bank.grad[:, place.middle : place.end], torch.full_like(bank.b[n], 3.0).flatten(1))


def test_write_replaces_everything_a_slot_held() -> None:
    bank, fresh = _bank(), AdapterBank(LAYERS, 3, 4, dtype=torch.float64)
    for b in (bank, fresh):
        b.write(2, _random_factors(1, 9, ("down",)), alpha=1.0)
    assert torch.equal(bank.flat[2], fresh.flat[2])
    assert torch.equal(bank.scale[:, 2], fresh.scale[:, 2])
    assert bank.scale[:, 2].tolist() == [0.0, 0.0, 1.0]


def test_read_gives_back_what_write_was_given() -> None:
    bank, factors = _bank(), _random_factors(2, 5)
    bank.write(1, factors, alpha=1.0)
    read = bank.read(bank.flat[1], list(LAYERS), 2)
    assert all(torch.equal(x, y) for n in LAYERS for x, y in zip(read[n], factors[n], strict=True))
    bank.flat.zero_()
    assert all(bool(x.any()) for pair in read.values() for x in pair), "a copy, not a view"


def test_initial_factors_are_pefts_own_distribution() -> None:
    layers = {"up": (64, 32)}
    a, b = initial_factors(layers, ["up"], 64, seed=3)["up"]
    model: Any = get_peft_model(nn.Sequential(nn.Linear(64, 32)), LoraConfig(r=64, target_modules=["0"]))
    reference = model.base_model.model[0].lora_A.default.weight.detach()
    assert not b.any()
    assert a.abs().max() <= 1 / 8 and a.abs().max() == pytest.approx(float(reference.abs().max()), rel=0.01)
    assert a.std() == pytest.approx(float(reference.std()), rel=0.05)


def test_initial_factors_depend_on_seed_and_layer_only() -> None:
    one = initial_factors(LAYERS, ["up", "down"], 2, seed=1)
    two = initial_factors(LAYERS, ["down"], 2, seed=1)
    other = initial_factors(LAYERS, ["down"], 2, seed=2)
    assert torch.equal(one["down"][0], two["down"][0])
    assert not torch.equal(one["down"][0], other["down"][0])
    assert not torch.equal(initial_factors({"x": (8, 5), "y": (8, 5)}, ["x", "y"], 2, 1)["x"][0],
                           initial_factors({"x": (8, 5), "y": (8, 5)}, ["x", "y"], 2, 1)["y"][0])  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- layers


def _outputs(path: Path, slots: list[int], owners: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    model = net()
    pack = AdapterPack(model, list(LAYERS), path)
    bank = _bank().take(torch.tensor(slots), trainable=True)
    x = torch.randn(len(owners), 3, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pack.use(bank, owners):
        y = model(x)
    y.square().sum().backward()
    assert bank.grad is not None
    return y.detach(), bank.grad


@pytest.mark.parametrize("path", ["bmm", "runs"])
@pytest.mark.parametrize(
    ("slots", "owners"), [([0, 1, 2], [0, 0, 1, 1, 2, 2]), ([0, 2], [1, 0, 1, 1]), ([2, 1], [0, 1]), ([0, 1, 2], [2])]
)
def test_all_paths_equal_the_loop(path: Path, slots: list[int], owners: list[int]) -> None:
    loop, loop_grad = _outputs("loop", slots, owners)
    batched, grad = _outputs(path, slots, owners)
    torch.testing.assert_close(batched, loop, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grad, loop_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["bmm", "runs"])
def test_each_row_sees_its_own_adapter_alone(path: Path) -> None:
    owners = [2, 0, 1, 1, 0, 2]
    y, _ = _outputs(path, [0, 1, 2], owners)
    x = torch.randn(6, 3, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for slot in range(3):
        model: Any = get_peft_model(net(), LoraConfig(r=slot + 1, lora_alpha=2 + slot, target_modules=list(LAYERS)))
        for name, (a, b) in _random_factors(slot + 1, slot).items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A.default.weight.data = a
            layer.lora_B.default.weight.data = b
        rows = [i for i, owner in enumerate(owners) if owner == slot]
        torch.testing.assert_close(y[rows], model(x[rows]), rtol=1e-12, atol=1e-12)


def test_a_taken_bank_is_a_copy_of_its_slots() -> None:
    bank = _bank()
    taken = bank.take(torch.tensor([2, 0]))
    assert torch.equal(taken.flat, bank.flat[[2, 0]]) and torch.equal(taken.scale, bank.scale[:, [2, 0]])
    bank.flat.zero_()
    assert taken.flat.any() and taken.slots == 2 and taken.grad is None


@pytest.mark.parametrize("owners", [None, [0, 1, 2]])
def test_a_pack_that_kept_some_rows_is_whole_again_after_its_block(owners: list[int] | None) -> None:
    pack, bank = AdapterPack(net(), list(LAYERS)), _bank()
    x = torch.randn(1, 3, INPUTS, dtype=torch.float64)
    with pack.use(bank, owners):
        all_three = pack.model(x.repeat(3, 1, 1))
        pack.keep([1, 2, 1])
        torch.testing.assert_close(pack.model(x.repeat(3, 1, 1)), all_three[[1, 2, 1]], rtol=1e-13, atol=1e-13)
        pack.keep([1])
        torch.testing.assert_close(pack.model(x), all_three[2:3], rtol=1e-13, atol=1e-13)
    assert pack.bank is None and pack.owners is None and bank.slots == 3


@torch.no_grad()
def test_rows_that_became_several_stay_with_their_adapter() -> None:
    pack, bank = AdapterPack(net(), list(LAYERS)), _bank()
    x = torch.randn(2, 4, 3, INPUTS, dtype=torch.float64)
    with pack.use(bank, [2, 0]):
        together = pack.model(x.flatten(0, 1)).unflatten(0, (2, 4))
        for part in range(4):
            torch.testing.assert_close(together[:, part], pack.model(x[:, part]), rtol=1e-13, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("path", ["bmm", "runs", "loop"])
def test_a_batch_of_tokens_has_as_many_of_each_owner_as_it_is_told(path: Path) -> None:
    pack, bank = AdapterPack(net(), list(LAYERS), path), _bank()
    x = torch.randn(6, INPUTS, dtype=torch.float64)
    with pack.use(bank, [2, 0]):
        whole = pack.model.up(x.unflatten(0, (2, 3))).flatten(0, 1)
        with pack.rows([0, 1, 0], [1, 2, 3]):
            parts = pack.model.up(torch.cat([x[:1], x[3:5], x[:3]]))
    torch.testing.assert_close(parts, torch.cat([whole[:1], whole[3:5], whole[:3]]), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("owners", [None, [0, 0, 2]])
def test_parts_of_a_batch_get_gradients_for_their_rows_adapters(owners: list[int] | None) -> None:
    pack, bank = AdapterPack(net(), list(LAYERS)), _bank().take(torch.arange(3), trainable=True)
    x = torch.randn(3, 3, INPUTS, dtype=torch.float64)
    picked = [2, 0, 2]
    with pack.use(bank, owners):
        whole = pack.model(x)[picked]
        whole.square().sum().backward()
        assert bank.grad is not None
        expected = bank.grad.clone()
        bank.grad.zero_()
        with pack.rows(picked):
            part = pack.model(x[picked])
            part.square().sum().backward()
        assert pack.owners == owners
    torch.testing.assert_close(part, whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(bank.grad, expected, rtol=1e-12, atol=1e-12)


def test_adapters_in_float32_on_a_bfloat16_base_compute_as_pefts_do() -> None:
    model: Any = get_peft_model(net(torch.bfloat16), LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"]))
    pack = AdapterPack(net(torch.bfloat16), ["up", "down"])
    bank = AdapterBank(pack.layers, 1, 2)
    factors = _random_factors(2, 0, ("up", "down"))
    bank.write(0, factors, alpha=3.0)
    for name, (a, b) in factors.items():
        layer = model.base_model.model.get_submodule(name)
        assert layer.lora_A.default.weight.dtype == torch.float32
        layer.lora_A.default.weight.data, layer.lora_B.default.weight.data = a.float(), b.float()
    x = torch.randn(2, 3, INPUTS, dtype=torch.bfloat16)
    with pack.use(bank, [0, 0]):
        assert torch.equal(pack.model(x), model(x))


def test_without_a_bank_the_model_is_the_bare_base() -> None:
    x = torch.randn(4, 3, INPUTS, dtype=torch.float64)
    model, bare = net(), net()
    pack = AdapterPack(model, ["all-linear"])
    assert torch.equal(model(x), bare(x))
    with pack.use(AdapterBank(pack.layers, 2, 2, dtype=torch.float64)):
        with pack.use(None):
            assert torch.equal(model(x), bare(x))
        assert pack.bank is not None
    assert pack.bank is None


def test_wrapping_adds_nothing_trainable_to_the_model() -> None:
    model = net()
    AdapterPack(model, ["all-linear"])
    assert not any(p.requires_grad for p in model.parameters())
    assert len(list(model.parameters())) == len(list(net().parameters()))


# --------------------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["all-linear"], ["up", "body.hidden", "down", "idle"]),
        (["down", "up"], ["up", "down"]),
        (["hidden"], ["body.hidden"]),
        (["body.hidden"], ["body.hidden"]),
    ],
)
def test_targets_are_names_or_dotted_endings(targets: list[str], names: list[str]) -> None:
    assert list(AdapterPack(net(), targets).layers) == names


@pytest.mark.parametrize("target", ["hiden", "ody.hidden"])
def test_an_unknown_target_is_refused_with_the_nearest_name(target: str) -> None:
    with pytest.raises(InputError, match=f"'{target}'.*did you mean .*hidden'"):
        AdapterPack(net(), ["up", target])


def test_layers_are_named_by_their_endings_where_those_mean_no_others() -> None:
    model = nn.ModuleDict({"a": net(), "b": net()})
    pack = AdapterPack(model, ["all-linear"])
    assert pack.endings(["a.up", "b.up"]) == ["up"]
    assert pack.endings(["a.up"]) == ["a.up"]
    assert pack.endings(["a.up", "b.up", "a.down"]) == ["a.up", "b.up", "a.down"]


def test_all_linear_spares_the_output_head_of_a_language_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 9)

        def get_output_embeddings(self) -> nn.Linear:
            return self.head

    assert list(AdapterPack(Model(), ["all-linear"]).layers) == ["body"]
    assert list(AdapterPack(Model(), ["head"]).layers) == ["head"]
    both = AdapterPack(Model(), ["all-linear", "head"])
    assert list(both.layers) == ["body", "head"]
    assert both.select(["all-linear"]) == ["body"] and both.select(["head"]) == ["head"]


def test_a_target_outside_the_pack_is_refused() -> None:
    pack = AdapterPack(net(), ["up", "down"])
    assert pack.select(["up"]) == ["up"]
    with pytest.raises(InputError, match="'hidden'"):
        pack.select(["hidden"])


def test_a_layer_that_is_not_linear_is_no_target() -> None:
    with pytest.raises(InputError, match="'norm' names no linear layer"):
        AdapterPack(nn.ModuleDict({"norm": nn.LayerNorm(INPUTS)}), ["norm"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
