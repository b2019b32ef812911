"""What number formats a device is fast in."""

from __future__ import annotations

import torch


def has_fast_bf16(device: str) -> bool:
    """Whether the hardware computes matrix products in bfloat16: CUDA from Ampere on, CPUs with AMX or AVX512-BF16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
