"""What scaled dot-product attention costs on a CPU in bfloat16 and in float32: seconds forward and backward.

    python benchmarks/attention.py --threads 2

Shapes of the Champion's context encoder (8 heads of 4) and of its encoder and decoder (4 heads of 40), about 12,000
tokens each, the last fifth of the keys masked. Best of 3. It is why `trainables.atomic_lora.model.Attention` computes
in float32 when it trains on a CPU.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn import functional as F

TOKENS = 12_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    titles = " ".join(f"{title:>9}" for title in ("bf16 fwd", "bf16 bwd", "fp32 fwd", "fp32 bwd"))
    print(f"{'heads x width':>14} {'length':>7} {titles} {'ratio':>6}")
    for heads, width in ((8, 4), (4, 40)):
        for length in (32, 64, 128, 256, 512, 931):
            half, exact = (measure(heads, width, length, dtype) for dtype in (torch.bfloat16, torch.float32))
            times = " ".join(f"{seconds:9.4f}" for seconds in (*half, *exact))
            print(f"{heads:>8} x {width:<3} {length:>7} {times} {sum(half) / sum(exact):>6.1f}")


def measure(heads: int, width: int, length: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the least seconds of a forward and of a backward pass."""
    rows = TOKENS // length
    q, k, v = (torch.randn(rows, heads, length, width).to(dtype).requires_grad_() for _ in range(3))
    mask = torch.ones(rows, 1, 1, length, dtype=torch.bool)
    mask[..., -length // 5 :] = False
    forward, backward = [], []
    for _ in range(3):
        started = time.perf_counter()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        between = time.perf_counter()
        y.sum().backward()
        forward.append(between - started)
        backward.append(time.perf_counter() - between)
    return min(forward), min(backward)


if __name__ == "__main__":
    main()
