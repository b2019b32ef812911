"""What leaves a pack: a slot's state, to be continued in any pack, and an adapter in PEFT's own format."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from safetensors.torch import save_file
from torch import Tensor

from trainables.common.folder import Folder

log = logging.getLogger(__name__)

FORMAT = "adapter-slot"
VERSION = 1
# ending of the checkpoint before the newest
BEFORE = ".before"

Factors = Mapping[str, tuple[Tensor, Tensor]]


class CheckpointError(ValueError):
    """A slot checkpoint that is not one, is of a newer version, or belongs to another base or configuration."""


def dump_slot(states: Mapping[str, Factors], facts: Mapping[str, Any], signature: str) -> bytes:
    """Serialise a slot.

    Args:
        states: Factors by layer for each of ``weights``, ``first_moment``, ``second_moment`` and ``best``.
        facts: JSON-able counters and history.
        signature: What must be equal where it is continued: the base, the layers, the configuration.
    """
    tensors = {
        f"{state}/{layer}/{side}": tensor.cpu().contiguous()
        for state, factors in states.items()
        for layer, pair in factors.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    header = {"format": FORMAT, "version": str(VERSION), "signature": signature, "facts": json.dumps(dict(facts))}
    return save_tensors(tensors, metadata=header)


def parse_slot(data: bytes, signature: str) -> tuple[dict[str, dict[str, tuple[Tensor, Tensor]]], dict[str, Any]]:
    """Return what `dump_slot` was given. Raises CheckpointError where the data is something else."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors = load_tensors(data)
    except Exception as error:
        raise CheckpointError(f"The checkpoint cannot be read ({type(error).__name__}: {error}).") from error
    if header.get("format") != FORMAT or int(header["version"]) > VERSION:
        found = f"format {header.get('format')!r}, version {header.get('version')}"
        raise CheckpointError(f"The checkpoint is of {found}; this reads {FORMAT!r} up to version {VERSION}.")
    if header["signature"] != signature:
        raise CheckpointError(f"The checkpoint belongs to {header['signature']}, not to {signature}.")
    states: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for key in tensors:
        if key.endswith("/A"):
            state, layer, _ = key.split("/")
            states.setdefault(state, {})[layer] = (tensors[key], tensors[f"{state}/{layer}/B"])
    return states, json.loads(header["facts"])


def write_slot(folder: Folder, trial_id: str, data: bytes) -> None:
    """Write what `dump_slot` returned; what was there stays as the one before."""
    name = slot_file(trial_id)
    folder.move(name, f"{name}{BEFORE}")
    folder.write(name, data)


def read_slot(
    folder: Folder, trial_id: str, signature: str
) -> tuple[dict[str, dict[str, tuple[Tensor, Tensor]]], dict[str, Any]] | None:
    """Return what `dump_slot` was given, of the newest checkpoint that can be read; None where there is none.

    One that cannot be read is passed over, with a warning.
    """
    name, errors = slot_file(trial_id), []
    for file in (name, f"{name}{BEFORE}"):
        data = folder.read(file)
        if data is None:
            continue
        try:
            found = parse_slot(data, signature)
        except CheckpointError as error:
            errors.append(error)
            continue
        if errors:
            log.warning("%s goes on from the checkpoint before the last one: %s", trial_id, errors[0])
        return found
    if errors:
        log.warning("%s starts anew: %s", trial_id, errors[0])
    return None


def slot_file(trial_id: str) -> str:
    """Return the name of a trial's file in the folder of checkpoints."""
    return f"{trial_id}.safetensors"


def save_peft(
    folder: Path,
    factors: Factors,
    alpha: float,
    base_name: str,
    target_modules: Sequence[str] | None = None,
    task_type: str | None = None,
    dtype: torch.dtype = torch.float32,
    fan_in_fan_out: bool = False,
) -> None:
    """Write an adapter as PEFT does, for `PeftModel.from_pretrained(base, folder)`.

    Args:
        folder: An existing directory.
        factors: A [r, I] and B [O, r] by the layer's dotted name.
        alpha: LoRA alpha.
        base_name: Recorded as the adapter's base model.
        target_modules: Names or endings that mean the layers of ``factors``; their full names by default.
        task_type: PEFT's name for the kind of model, such as ``CAUSAL_LM``.
        dtype: Floating-point type of the file's tensors.
        fan_in_fan_out: Whether the base's layers keep their weights transposed, as GPT-2's do.
    """
    # takes longer to import than torch, and a driver that only checks its input writes no adapter
    from peft import LoraConfig

    rank = next(iter(factors.values()))[0].shape[0]
    # PEFT asks for an int alpha and takes any number
    config = LoraConfig(
        r=rank, lora_alpha=cast(int, alpha), lora_dropout=0.0, bias="none", task_type=cast(Any, task_type),
        target_modules=list(target_modules or factors), base_model_name_or_path=base_name, inference_mode=True,
        fan_in_fan_out=fan_in_fan_out,
    )  # fmt: skip
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{layer}.lora_{side}.weight": tensor.to("cpu", dtype).contiguous()
        for layer, pair in factors.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
