"""What scaled dot-product attention costs on a CPU: PyTorch's fused kernel in float32 and bfloat16, and two products
and a softmax in bfloat16, which is `trainables.atomic_lora.model.attend_by_products`.

    python benchmarks/attention.py --threads 1

Shapes of the Champion's context encoder (8 heads of 4, forward alone in an adapter's training) and of its encoder and
decoder (4 heads of 40), about 4,000 tokens each, the last fifth of the keys masked. Milliseconds, best of 5; errors are
those of the outputs against float64, relative to their norm.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path[0] = str(Path(__file__).resolve().parents[1])

from trainables.atomic_lora.model import attend_by_products

TOKENS = 4_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kinds = {
        "fused fp32": (F.scaled_dot_product_attention, torch.float32),
        "fused bf16": (F.scaled_dot_product_attention, torch.bfloat16),
        "products bf16": (attend_by_products, torch.bfloat16),
    }
    print(f"{'':>22} " + " ".join(f"{name:^29}" for name in kinds))
    titles = " ".join(f"{title:>9}" for _ in kinds for title in ("forward", "backward", "error"))
    print(f"{'heads x width':>14} {'length':>7} {titles}")
    for heads, width in ((8, 4), (4, 40)):
        for length in (32, 64, 128, 256, 512, 928):
            tensors = [torch.randn(TOKENS // length, heads, length, width) for _ in range(3)]
            mask = torch.ones(len(tensors[0]), 1, 1, length, dtype=torch.bool)
            mask[..., -length // 5 :] = False
            exact = F.scaled_dot_product_attention(*(t.double() for t in tensors), attn_mask=mask)
            cells = []
            for attend, dtype in kinds.values():
                q, k, v = (t.to(dtype).requires_grad_() for t in tensors)
                forward, backward, y = measure(partial(attend, q, k, v, mask))
                error = float((y.double() - exact).norm() / exact.norm())
                cells.append(f"{1e3 * forward:9.2f} {1e3 * backward:9.2f} {error:9.1e}")
            print(f"{heads:>8} x {width:<3} {length:>7} " + " ".join(cells))


def measure(attend: partial[Tensor]) -> tuple[float, float, Tensor]:
    """Return the least seconds of a forward and of a backward pass, and the outputs."""
    forward, backward = [], []
    for _ in range(5):
        started = time.perf_counter()
        y = attend()
        between = time.perf_counter()
        y.backward(torch.ones_like(y))
        forward.append(between - started)
        backward.append(time.perf_counter() - between)
    return min(forward), min(backward), y.detach()


if __name__ == "__main__":
    main()
