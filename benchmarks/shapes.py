"""Shapes of the products of a run on text tasks: how many there are, and what oneDNN's kernels for them take.

    python benchmarks/shapes.py --data jsonl:DIR

oneDNN makes kernels for each new shape of a product of matrices, and keeps as many of them as the environment's
``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` says. First the seconds and the memory that a new shape takes are measured, on
products as wide as those of the base, in bfloat16 where the processor has it and else in float32 by the same kernels.
Then the batches of a worker's share of a sweep are made as the engine makes them, nothing is computed, and the shapes
of their products go through caches of several capacities, with rows padded to multiples of several numbers of tokens.
Autoregressive answers are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import as_worker, record
from search_spaces.atomic_lora import TEXT_SPACE
from trainables.atomic_lora.causal_lm import (
    CPU_BATCH_OVERHEAD,
    context_length,
    end_of_sequence,
    load_tokenizer,
    read_config,
    skeleton,
)
from trainables.atomic_lora.text_tokens import TaskTokens, task_tokens
from trainables.atomic_lora.text_workload import CPU_TEXT_TOKENS
from trainables.common.precision import has_fast_bf16
from trainables.pack.bank import AdapterPack
from trainables.pack.batching import BatchCost, group
from trainables.texts import find_tasks, load_task

# a batch: its tokens a row, and how many rows each adapter has, one after another
Batch = tuple[int, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="jsonl:DIR")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--workers", type=int, default=2, help="among which the tasks are dealt out")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--multiples", default="1,4,8,16")
    parser.add_argument("--capacities", default="1024,2048,4096,16384")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    as_worker()
    torch.set_num_threads(1)
    config: Any = TEXT_SPACE.resolve("demo")[0]
    layers = sorted(set(AdapterPack(skeleton(args.base), config.target_modules).layers.values()))
    bytes_each, seconds_each = kernels(layers, config.rank)
    print(f"a new shape takes {bytes_each / 2**20:.2f} MiB and {1e3 * seconds_each:.1f} ms")
    tokenizer, limit = load_tokenizer(args.base), context_length(read_config(args.base))
    eos = end_of_sequence(tokenizer, args.base)
    files = find_tasks(args.data)
    tokens = [task_tokens(load_task(name, one), tokenizer, eos, limit, config) for name, one in files.items()]
    tokens.sort(key=lambda task: -sum(len(row.ids) for row in task.train))
    rows = []
    for multiple in map(int, args.multiples.split(",")):
        cost = BatchCost(CPU_BATCH_OVERHEAD, CPU_TEXT_TOKENS, multiple=multiple)
        made = list(batches(tokens[:: args.workers], config, args.slots, cost))
        computed = sum(width * sum(runs) for width, runs in made)
        for capacity in map(int, args.capacities.split(",")):
            new, most = through_cache(made, layers, config.rank, capacity)
            rows.append({
                "multiple": multiple, "capacity": capacity, "batches": len(made), "tokens": computed,
                "kernels_made": new, "kernels_kept": most, "bytes": most * bytes_each, "seconds": new * seconds_each,
            })  # fmt: skip
    print(" ".join(f"{title:>12}" for title in rows[0]))
    for row in rows:
        print(" ".join(f"{value:>12.3g}" if isinstance(value, float) else f"{value:>12}" for value in row.values()))
    record(args.json, {"bytes_each": bytes_each, "seconds_each": seconds_each, "caches": rows})


def kernels(layers: Sequence[tuple[int, int]], rank: int, most: int = 120) -> tuple[float, float]:
    """Return the bytes and the seconds that a new shape takes, means over products of the base and of LoRA."""
    dtype = torch.bfloat16 if has_fast_bf16("cpu") else torch.float32
    widths = [*layers, *((inputs, rank) for inputs, _ in layers), *((rank, outputs) for _, outputs in layers)]
    used, seconds, count = 0, 0.0, 0
    for inputs, outputs in widths:
        x, weight = torch.randn(most, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        product(x, weight)
        before, times = resident(), []
        for _ in range(2):
            begun = time.perf_counter()
            for length in range(3, most, 4):
                product(x[:length], weight)
            times.append(time.perf_counter() - begun)
        used, seconds, count = used + resident() - before, seconds + times[0] - times[1], count + len(range(3, most, 4))
    return used / count, seconds / count


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return x [M, I] times weight [O, I] transposed, by oneDNN, which in float32 PyTorch does not use by itself."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def batches(tasks: Sequence[TaskTokens], config: Any, slots: int, cost: BatchCost) -> Iterator[Batch]:
    """Yield the batches of a worker that trains tasks, ``slots`` at a time, as long as the configuration allows."""
    for start in range(0, len(tasks), slots):
        own = tasks[start : start + slots]

        def of(rows: Sequence[tuple[int, int]]) -> Iterator[Batch]:
            for places in group([(length,) for _, length in rows], cost):
                width = max(rows[place][1] for place in places)
                owners = groupby(rows[place][0] for place in places)
                yield -(-width // cost.multiple) * cost.multiple, tuple(len(list(run)) for _, run in owners)

        validation = [(slot, len(row.ids) - 1) for slot, task in enumerate(own) for row in task.validation]
        yield from of(validation)
        for epoch in range(1, config.epochs + 1):
            drawn = []
            for task in own:
                order = np.random.default_rng((0, epoch)).permutation(len(task.train))
                drawn.append([task.train[place] for place in order[: config.examples_per_epoch or None]])
            for step in range(0, max(map(len, drawn)), config.batch_size):
                yield from of(
                    [
                        (slot, len(row.ids) - 1)
                        for slot, rows in enumerate(drawn)
                        for row in rows[step : step + config.batch_size]
                    ]
                )
            yield from of(validation)
        for _ in ("the adapters", "the base"):
            yield from of([(slot, len(row.ids) - 1) for slot, task in enumerate(own) for row in task.test])


def through_cache(
    made: Sequence[Batch], layers: Sequence[tuple[int, int]], rank: int, capacity: int
) -> tuple[int, int]:  # fmt: skip
    """Return how many kernels a cache of the least recently used makes, and how many it holds at most."""
    cache: OrderedDict[tuple[Any, ...], None] = OrderedDict()
    new = most = 0
    for batch in made:
        for key in dict.fromkeys(products(batch, layers, rank)):
            new += key not in cache
            cache[key] = None
            cache.move_to_end(key)
            if len(cache) > capacity:
                cache.popitem(last=False)
        most = max(most, len(cache))
    return new, most


def products(batch: Batch, layers: Sequence[tuple[int, int]], rank: int) -> Iterator[tuple[Any, ...]]:
    """Yield the products of a batch as `trainables.pack.bank` computes them, forward and backward."""
    width, runs = batch
    whole = width * sum(runs)
    for inputs, outputs in layers:
        yield whole, inputs, outputs
        yield whole, outputs, inputs, "input"
        for run in runs:
            length = width * run
            if inputs > outputs:
                yield length, inputs, outputs + rank
            else:
                yield length, inputs, rank
            yield length, rank, outputs
            yield length, outputs, rank, "hidden"
            yield rank, length, inputs, "A"
            yield rank, length, outputs, "B"
            yield length, rank, inputs, "input of A"


if __name__ == "__main__":
    main()
