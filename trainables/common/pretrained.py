"""What tells pre-trained models in folders apart: their weights, tokenizer and configuration, wherever they lie.

A model is the same in another folder, under another name, in other shards or after a change of what is only told of
it. Nothing here imports torch or transformers, so a driver may ask.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trainables.common import embedded
from trainables.common.errors import InputError
from trainables.common.text import json_kind, parse_json, read_text

# whole file, and index of its shards, in the order in which ``from_pretrained`` looks for them
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
# entries of the JSON files that say where a model is from, or which library wrote it
TOLD = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "torch_dtype", "dtype")


def fingerprint(name: str) -> str:
    """Return what names the weights of a pre-trained model: an embedded one's digest, a folder's, or a hub's own name.

    Raises:
        InputError: If a file of a folder cannot be read.
    """
    if name in embedded.MODELS:
        return embedded.MODELS[name].fingerprint
    folder = Path(name).expanduser()
    return folder_fingerprint(folder) if folder.is_dir() else name


def folder_fingerprint(folder: Path) -> str:
    """Return 16 hex digits of the model in a folder as ``save_pretrained`` writes it.

    Raises:
        InputError: If one of its files cannot be read.
    """
    digest = hashlib.sha256()
    for name in ("config.json", *TOKENIZER, *ADAPTER):
        file = folder / name
        if file.is_file():
            digest.update(f"{name} {_said(file) if name.endswith('.json') else _bytes(file)}".encode())
    for part in sorted(part for file in weight_files(folder) for part in _weights(file)):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def weights_fingerprint(weights: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    """Return 16 hex digits of weights by name, and of what else decides what they compute."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].shape} {weights[name].dtype}".encode() + weights[name].tobytes())
    return digest.hexdigest()[:16]


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that ``from_pretrained`` loads from a folder; a shard need not exist.

    Raises:
        InputError: If the index of the shards cannot be read.
    """
    for whole, index in WEIGHTS:
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            shards = parse_json(read_text(folder / index, str(folder / index)), str(folder / index))
            places = shards.get("weight_map") if isinstance(shards, dict) else None
            if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
                raise InputError(f"{folder / index} holds {json_kind(shards)}, not the index of a model's shards.")
            return [folder / name for name in sorted(set(places.values()))]
    return []


def _weights(file: Path) -> list[str]:
    """Return a text for each tensor of a file that names it and its content; for other files than safetensors one."""
    if not file.is_file():
        return []
    status = file.stat()
    return _tensors(file, status.st_size, status.st_mtime_ns)


@cache
def _tensors(file: Path, size: int, mtime_ns: int) -> list[str]:
    """Read a file of weights; it is read again only after its size or modification time has changed."""
    if file.suffix != ".safetensors":
        return [_bytes(file)]
    if size < 8:
        return [_bytes(file)]
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        length = int.from_bytes(data[:8], "little")
        if 8 + length > size:
            return [hashlib.sha256(data).hexdigest()]
        header = parse_json(data[8 : 8 + length], f"The header of {file}")
        return [
            f"{name} {entry['dtype']} {entry['shape']} {_digest(data, 8 + length, entry['data_offsets'])}"
            for name, entry in header.items()
            if name != "__metadata__"
        ]


def _digest(data: mmap.mmap, start: int, offsets: list[int]) -> str:
    with memoryview(data) as view:
        return hashlib.sha256(view[start + offsets[0] : start + offsets[1]]).hexdigest()


def _bytes(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _said(file: Path) -> str:
    value = parse_json(read_text(file, str(file)), str(file))
    return json.dumps(dict(_without_told(value)) if isinstance(value, dict) else value, sort_keys=True)


def _without_told(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, entry in value.items():
        if name not in TOLD:
            yield name, dict(_without_told(entry)) if isinstance(entry, dict) else entry
