"""What servers ask of an adapter's files."""

from __future__ import annotations

from pathlib import Path

import torch

from trainables.pack.checkpoint import save_peft
from trainables.pack.serving import unservable


def written(folder: Path, layer: str, rank: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    save_peft(folder, {layer: (torch.ones(rank, 4), torch.ones(6, rank))}, 8.0, "base", dtype=dtype)
    return unservable(folder)


def test_what_peft_writes_is_taken(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert written(tmp_path, "model.layers.0.self_attn.q_proj", dtype=dtype) == {"vLLM": "", "SGLang": ""}


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    assert written(tmp_path, "transformer.h.0.attn.c_attn")["SGLang"] == "it has no LoRA for c_attn"
    assert "rank 513 is above 512" in written(tmp_path, "model.layers.0.mlp.up_proj", rank=513)["vLLM"]
    assert "is of type F64" in written(tmp_path, "model.layers.0.mlp.up_proj", dtype=torch.float64)["vLLM"]
