"""What a computation costs a device at best: its operations at the device's peak, its bytes at its bandwidth.

Used by ``adapters.py``. Peaks are those of data sheets for the GPUs in ``PEAKS`` in bfloat16, else what this device
reaches in products of 4096 x 4096 matrices and in copies of 1 GiB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

# dense bfloat16 operations, and bytes, a second
PEAKS = {
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.04e12),
}
# what PyTorch's counter does not know, and what it counts alike
ALIKE = {
    torch.ops.aten.addmm_: torch.ops.aten.addmm,
    torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}


@dataclass
class Spent:
    """What a computation spent: operations of matrix products and attention (of causal attention as if it were not),
    and bytes that forward passes left for backward passes, each written once and read once; frozen weights, which
    several batches may share, are not counted."""

    operations: int = 0
    bytes: int = 0


@contextmanager
def counted(frozen: Iterable[Tensor]) -> Iterator[Spent]:
    """Count what the block computes; ``frozen`` are the weights that its backward passes read."""
    spent, weights = Spent(), {weight.untyped_storage().data_ptr() for weight in frozen}
    kept: set[tuple[Any, ...]] = set()

    def keep(tensor: Tensor) -> Tensor:
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.untyped_storage().data_ptr() not in weights and place not in kept:
            kept.add(place)
            spent.bytes += 2 * tensor.numel() * tensor.element_size()
        return tensor

    def take(tensor: Tensor) -> Tensor:
        # the backward pass has begun: from here on memory is used again
        kept.clear()
        return tensor

    counter = FlopCounterMode(display=False)
    counter.flop_registry |= {name: counter.flop_registry[other] for name, other in ALIKE.items()}
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, take):
        yield spent
    spent.operations = counter.get_total_flops()


def peaks(device: str, bf16: bool) -> tuple[float, float]:
    """Return operations and bytes a second that the device is capable of, in the type that is computed in."""
    if device == "cuda" and bf16 and torch.cuda.get_device_name() in PEAKS:
        return PEAKS[torch.cuda.get_device_name()]
    matrix = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    memory = torch.zeros(2**30, device=device, dtype=torch.uint8)
    copy = torch.empty_like(memory)
    return 2 * 4096**3 / _best(lambda: matrix @ matrix), 2 * 2**30 / _best(lambda: copy.copy_(memory))


def _best(compute: Callable[[], Tensor]) -> float:
    """Return the seconds of the fastest of six computations."""
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        compute().flatten()[0].item()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
