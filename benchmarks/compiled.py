"""What `torch.compile` makes of the Champion's feed-forward layers, whose base is frozen; needs a C++ compiler.

    python benchmarks/compiled.py --device cpu --threads 1
    python benchmarks/compiled.py --device cuda --mode reduce-overhead

Normalisation, two linear layers with GELU between, and the residual sum, forward and backward, without adapters and
under autocast to bfloat16, compiled once with dynamic shapes, since batches of grids have many. Prints the best of
several times in ms with and without, and the seconds until the first compiled step has ended; in the environment of a
sweep's workers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.machine import as_worker, record
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.model import EncoderLayer


def best(act: Callable[[], None], device: str, repeats: int = 9) -> float:
    """Return the seconds of the fastest of several turns, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        act()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def step(feed: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.autocast(x.device.type, torch.bfloat16):
        y = feed(x)
    y.backward(torch.ones_like(y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mode", default="default", help="of torch.compile; reduce-overhead takes CUDA graphs")
    parser.add_argument("--tokens", default="512,2048,4096")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    as_worker()
    torch.set_num_threads(args.threads)
    config = ChampionConfig()
    sizes = {
        "encoder": (config.width, config.heads, config.feedforward),
        "context": (config.context_width, config.context_heads, config.context_feedforward),
    }
    rows = []
    print(f"{'layer':>8} {'tokens':>7} {'eager ms':>9} {'compiled ms':>12} {'times':>6} {'first step s':>13}")
    for name, (width, heads, feedforward) in sizes.items():
        layer = EncoderLayer(width, heads, feedforward).to(args.device).requires_grad_(False)
        for linear in (layer.linear1, layer.linear2):
            linear.bfloat16()
        compiled = torch.compile(layer.feed, dynamic=True, mode=args.mode)
        for tokens in map(int, args.tokens.split(",")):
            x = torch.randn(tokens, width, device=args.device, requires_grad=True)
            started = time.perf_counter()
            step(compiled, x)
            if args.device == "cuda":
                torch.cuda.synchronize()
            first = time.perf_counter() - started
            eager, ours = (1000 * best(partial(step, feed, x), args.device) for feed in (layer.feed, compiled))
            print(f"{name:>8} {tokens:>7} {eager:>9.2f} {ours:>12.2f} {eager / ours:>6.2f} {first:>13.1f}")
            rows.append(
                {"layer": name, "tokens": tokens, "eager_ms": eager, "compiled_ms": ours, "first_step_s": first}
            )
    record(args.json, {"device": args.device, "mode": args.mode, "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
