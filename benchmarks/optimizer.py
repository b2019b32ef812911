"""An optimizer step of S adapters: clipping and AdamW over the stack, against PyTorch's fused AdamW for each adapter.

    python benchmarks/optimizer.py --device cpu --threads 1
    python benchmarks/optimizer.py --device cuda --slots 16,64,256

Adapters of rank 16 on the feed-forward layers of the Champion, as a sweep trains them. Milliseconds, best of several,
in the environment of a sweep's workers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.compiled import best
from benchmarks.machine import as_worker, record
from trainables.atomic_lora.config import AdapterConfig, ChampionConfig
from trainables.atomic_lora.model import Champion
from trainables.pack.bank import AdapterBank, AdapterPack
from trainables.pack.optimizer import SlotStep, StackedAdamW


def together(stacked: StackedAdamW, steps: list[SlotStep], grad: Tensor) -> None:
    stacked.step(steps, grad, grad.square().sum(1).sqrt())


def one_by_one(adapters: Sequence[tuple[list[Tensor], torch.optim.Optimizer]], clip_norm: float) -> None:
    for parameters, optimizer in adapters:
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--slots", default="1,4,8,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    as_worker()
    torch.set_num_threads(args.threads)
    config = AdapterConfig()
    layers = AdapterPack(Champion(ChampionConfig()), config.target_modules).layers
    rows = []
    print(f"{'slots':>6} {'stack ms':>9} {'each ms':>9} {'times':>6}")
    for slots in map(int, args.slots.split(",")):
        bank = AdapterBank(layers, slots, config.rank, args.device)
        grad, stacked = torch.randn_like(bank.flat), StackedAdamW(bank.flat)
        steps = [SlotStep(slot, 1, 1e-3, config.weight_decay, config.clip_norm) for slot in range(slots)]
        adapters = []
        for slot in range(slots):
            factors = [stack[slot] for stack in (*bank.a.values(), *bank.b.values())]
            parameters = [torch.nn.Parameter(factor.clone()) for factor in factors]
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            fused = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=config.weight_decay, fused=True)
            adapters.append((parameters, fused))

        ours = 1000 * best(partial(together, stacked, steps, grad), args.device)
        theirs = 1000 * best(partial(one_by_one, adapters, config.clip_norm), args.device)
        print(f"{slots:>6} {ours:>9.2f} {theirs:>9.2f} {theirs / ours:>6.2f}")
        rows.append({"slots": slots, "stack_ms": ours, "each_ms": theirs})
    record(args.json, {"device": args.device, "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
