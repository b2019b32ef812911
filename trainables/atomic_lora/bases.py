"""The frozen base that adapters are trained on: which one a name means, and whether it can be adapted as asked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainables.atomic_lora.config import HUB

# of a Hugging Face base, whose layers have other names: what the field adapts where nobody says otherwise
HF_DEFAULTS = {"target_modules": ("all-linear",)}
DEFAULT_BASE = Path(__file__).resolve().parent / "base"


def absolute(base: str) -> str:
    """Return a base as every machine's worker understands it: paths in full, names on a hub as they are."""
    if not base.startswith(HUB):
        return str(Path(base).expanduser().absolute())
    folder = Path(base.removeprefix(HUB)).expanduser()
    return f"{HUB}{folder.absolute()}" if folder.exists() else base


def check_base(base: str, target_module_sets: Iterable[tuple[str, ...]]) -> tuple[str, int]:
    """Refuse a base that cannot be loaded, or layers that it does not have; return its fingerprint and parameters.

    Args:
        base: What `absolute` returned.
        target_module_sets: Each choice of layers to adapt, at least one.

    Raises:
        InputError: If the base cannot be loaded, or has none of the layers of a choice.
    """
    # torch and transformers are loaded where a base is
    from trainables.atomic_lora.model import load_champion
    from trainables.pack.bank import AdapterPack

    hub = base.startswith(HUB)
    if hub:
        from trainables.atomic_lora import causal_lm
    for modules in target_module_sets:
        model = causal_lm.skeleton(base) if hub else load_champion(base).model
        AdapterPack(model, modules)
    digest = causal_lm.fingerprint(base) if hub else load_champion(base).fingerprint
    return digest, sum(parameter.numel() for parameter in model.parameters())
