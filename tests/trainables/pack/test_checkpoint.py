"""A slot's state as bytes, and an adapter in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save

from tests.trainables.pack.tiny import INPUTS, job, net, same, train
from trainables.pack.bank import AdapterBank, AdapterPack
from trainables.pack.checkpoint import CheckpointError, dump_slot, parse_slot, save_peft

torch.set_num_threads(1)


def _factors(seed: int, rank: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"up": (INPUTS, 8), "body.hidden": (8, 8)}
    return {n: (torch.randn(rank, i, generator=g), torch.randn(o, rank, generator=g)) for n, (i, o) in shapes.items()}


# ----------------------------------------------------------------------------------------------------------- slot state


def test_a_slot_survives_the_round_trip() -> None:
    states = {"weights": _factors(0), "first_moment": _factors(1)}
    facts = {"epoch": 3, "best_loss": float("inf"), "history": [{"epoch": 1, "eval_loss": 0.1 + 0.2}]}
    read, read_facts = parse_slot(dump_slot(states, facts, "base a"), "base a")
    assert read_facts == facts
    assert read.keys() == states.keys()
    assert all(same(read[name], states[name]) for name in states)


def test_the_type_survives_the_round_trip() -> None:
    exact = {"up": tuple(t.double() for t in _factors(0)["up"])}
    read, _ = parse_slot(dump_slot({"weights": exact}, {}, ""), "")  # type: ignore[dict-item]
    assert read["weights"]["up"][0].dtype == torch.float64


def test_another_signature_is_refused_with_both_names() -> None:
    with pytest.raises(CheckpointError, match="belongs to base a, not to base b"):
        parse_slot(dump_slot({"weights": _factors(0)}, {}, "base a"), "base b")


def _newer() -> bytes:
    return save(
        {"x": torch.zeros(1)}, metadata={"format": "adapter-slot", "version": "2", "signature": "", "facts": "{}"}
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"not a checkpoint at all", "cannot be read"),
        (dump_slot({"weights": _factors(0)}, {}, "")[:-40], "cannot be read"),
        (save({"x": torch.zeros(1)}), "cannot be read"),
        (save({"x": torch.zeros(1)}, metadata={"format": "pt"}), "format 'pt'"),
        (_newer(), "version 2"),
    ],
    ids=["empty", "garbage", "truncated", "no header", "foreign", "newer"],
)
def test_anything_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_slot(data, "")


# -------------------------------------------------------------------------------------------------------- PEFT's format


def test_peft_loads_an_exported_adapter_to_the_same_logits(tmp_path: Path) -> None:
    factors, model = _factors(4, rank=3), net(torch.float32)
    pack = AdapterPack(model, ["all-linear"])
    bank = AdapterBank(pack.layers, 2, 4)
    bank.write(0, factors, alpha=6.0)
    x = torch.randn(2, 5, INPUTS)
    with torch.no_grad(), pack.use(bank):
        packed, bare = model(x)[0], model(x)[1]
    save_peft(tmp_path, factors, 6.0, "some/base")
    base = net(torch.float32)
    torch.testing.assert_close(bare, base(x[1:])[0], rtol=1e-6, atol=1e-6)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(x[:1])[0], packed, rtol=1e-5, atol=1e-5)
    assert (packed - net(torch.float32)(x[:1])[0]).abs().max() > 0.1


def test_the_folder_is_what_peft_writes(tmp_path: Path) -> None:
    save_peft(tmp_path, _factors(4), 6.0, "some/base")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 6.0, "some/base")
    assert sorted(config["target_modules"]) == ["body.hidden", "up"]
    assert config["inference_mode"] and config["lora_dropout"] == 0.0
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(stored) == [
        f"base_model.model.{layer}.lora_{side}.weight" for layer in ("body.hidden", "up") for side in "AB"
    ]


def test_the_best_weights_are_exported_not_the_last(tmp_path: Path) -> None:
    # an absurd learning rate and validation labels of another map: the loss soon rises
    done = train([job("a", lr=0.8, epochs=12, patience=6, rank=3, alpha=3.0)], slots=1, dtype=torch.float32)
    row = done.last("a").metrics
    assert row["best_loss"] < row["final_loss"] - 0.01
    save_peft(tmp_path, done.workload.exported["a"], 3.0, "base")
    loaded = PeftModel.from_pretrained(net(torch.float32), str(tmp_path))
    plan = done.workload.plan(job("a"))
    total, count = 0.0, 0
    for place, example in enumerate(plan.validation):
        logits = loaded(example.inputs[None])[0]
        packed = done.workload.logits["a"][place, : len(example.classes)]
        torch.testing.assert_close(logits, packed, rtol=1e-5, atol=1e-5)
        total += float(torch.nn.functional.cross_entropy(logits, example.classes, reduction="sum"))
        count += len(example.classes)
    assert total / count == pytest.approx(row["best_loss"], rel=1e-5)
