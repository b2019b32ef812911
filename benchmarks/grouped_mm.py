"""The products of packed adapters: one `torch.bmm` over slots against `torch.nn.functional.grouped_mm`.

    python benchmarks/grouped_mm.py --device cpu --threads 2
    python benchmarks/grouped_mm.py --device cuda --slots 16,64

Both compute x A^T for [S, N, I] rows and [S, R, I] factors and the update hidden B^T, in bfloat16, forward and
backward, with the Champion's feed-forward sizes; ``bmm`` pads every slot to the same number of rows, ``grouped_mm``
takes each slot's own. Prints the best of several times in ms, for slots of equal size and for slots that differ up to
fourfold.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

RANK = 16
LAYERS = {"context linear1": (32, 2048), "encoder linear1": (160, 640)}


def seconds(act: Callable[[], None], device: str, repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats + 1):
        started = time.perf_counter()
        act()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def padded(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))


def grouped(x: Tensor, a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(F.grouped_mm(x, a.transpose(1, 2), offs=ends), b.transpose(1, 2), offs=ends)


def learn(y: Tensor) -> None:
    # grouped_mm's backward pass refuses the strides of a sum's gradient
    y.backward(torch.ones_like(y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--slots", default="4,16")
    parser.add_argument("--rows", type=int, default=1024, help="rows of the largest slot: examples times tokens")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{'layer':>16} {'slots':>6} {'rows':>8} {'bmm ms':>8} {'grouped ms':>11}")
    for name, (inputs, outputs) in LAYERS.items():
        for slots in map(int, args.slots.split(",")):
            for kind in ("equal", "unequal"):
                least = args.rows if kind == "equal" else args.rows // 4
                lengths = torch.linspace(least, args.rows, slots).int()

                def tensor(*shape: int) -> Tensor:
                    return torch.randn(*shape, device=args.device).bfloat16().requires_grad_()

                a, b = tensor(slots, RANK, inputs), tensor(slots, outputs, RANK)
                whole, packed = tensor(slots, args.rows, inputs), tensor(int(lengths.sum()), inputs)
                ends = lengths.cumsum(0).int().to(args.device)

                def one_bmm(x: Tensor = whole, a: Tensor = a, b: Tensor = b) -> None:
                    learn(padded(x, a, b))

                def one_grouped(x: Tensor = packed, a: Tensor = a, b: Tensor = b, ends: Tensor = ends) -> None:
                    learn(grouped(x, a, b, ends))

                times = [1000 * seconds(act, args.device) for act in (one_bmm, one_grouped)]
                print(f"{name:>16} {slots:>6} {kind:>8} {times[0]:>8.1f} {times[1]:>11.1f}")


if __name__ == "__main__":
    main()
