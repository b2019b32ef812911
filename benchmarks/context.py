"""What reading the solved pairs costs the Champion: seconds of a training step, whole and context encoder alone.

    python benchmarks/context.py --threads 2

Batches of 32 examples from the smallest to the largest of all tasks, with context pairs as they are and capped as
`trainables.atomic_lora.data.CONTEXT_TOKENS` says. Forward and backward, bfloat16 where the processor has it, best of 3.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).resolve().parents[1])

from trainables.arc import MAX_TOKENS, load_tasks, training_examples
from trainables.atomic_lora import data
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.loss import row_losses
from trainables.atomic_lora.model import Champion
from trainables.common.precision import has_fast_bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Champion(ChampionConfig())
    examples = [example for task in load_tasks().values() for example in training_examples(task, 2, 0, 0)]
    examples.sort(key=data.example_tokens)
    capped = data.CONTEXT_TOKENS
    print(f"{'examples':>12} {'cap':>6} {'context s':>10} {'step s':>8} {'context share':>14}")
    for start in (100, 400, 600, len(examples) - 32):
        for cap in (2 * MAX_TOKENS, capped):
            data.CONTEXT_TOKENS = cap
            batch = data.collate(examples[start : start + 32])

            def context() -> torch.Tensor:
                return model.context_encoder(batch.context).sum()  # noqa: B023 - called at once

            def step() -> torch.Tensor:
                total, count = row_losses(model(batch), batch.target[:, 0])  # noqa: B023 - called at once
                return (total / count).mean()

            alone, whole = best(context), best(step)
            name = "none" if cap > capped else str(cap)
            print(f"{start:>6}-{start + 31:<5} {name:>6} {alone:>10.3f} {whole:>8.3f} {alone / whole:>14.0%}")


def best(compute: Callable[[], torch.Tensor], repeats: int = 3) -> float:
    """Return the least seconds of forward and backward."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16("cpu")):
            value = compute()
        value.backward()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
