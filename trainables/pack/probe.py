"""How many adapters to train at once on a GPU: the most that fit and still gain speed, found by timing real steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TypeVar

import torch

from trainables.pack.bank import AdapterBank, AdapterPack
from trainables.pack.plan import Workload

log = logging.getLogger(__name__)

E = TypeVar("E")

# a pack twice as large that does less than this many times the examples a second is not worth its memory
WORTHWHILE = 1.05
# weights, gradient, two moments, best and initial weights
BUFFERS = 6


def probe_slots(
    pack: AdapterPack, workload: Workload[E], rows: Sequence[E], rank: int, dtype: torch.dtype = torch.float32,
    most: int = 512,
) -> int:  # fmt: skip
    """Return the number of slots to train with, a power of two.

    Doubles the slots, each with a forward and a backward pass of the same rows, until memory ends or the examples a
    second grow by less than 5 %.

    Args:
        pack: The adapted model.
        workload: What computes the losses.
        rows: One step's rows of the largest job.
        rank: Largest rank of any job.
        dtype: Type of the adapters.
        most: Slots at most.
    """
    slots, best, best_rate = 1, 1, 0.0
    while slots <= most:
        try:
            rate = _examples_per_second(pack, workload, rows, rank, dtype, slots)
        except torch.OutOfMemoryError:
            log.info("%d slots do not fit.", slots)
            break
        log.info("%d slots: %.0f examples/s.", slots, rate)
        if rate < WORTHWHILE * best_rate:
            break
        best, best_rate, slots = slots, rate, slots * 2
    if torch.cuda.is_available():
        # what the largest attempt took is of no use to the pack that follows, and not its peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return best


def _examples_per_second(
    pack: AdapterPack, workload: Workload[E], rows: Sequence[E], rank: int, dtype: torch.dtype, slots: int
) -> float:
    device = next(pack.model.parameters()).device
    bank = AdapterBank(pack.layers, slots, rank, device, dtype)
    others = torch.zeros(BUFFERS - 2, *bank.flat.shape, device=device, dtype=dtype)
    index = torch.arange(slots, device=device)
    trained = bank.take(index, trainable=True)
    owners = [slot for slot in range(slots) for _ in rows]
    seconds = 0.0
    # the first pass sets up kernels and memory
    for _ in range(2):
        started = time.perf_counter()
        with pack.use(trained, owners):
            losses, _ = workload.score(list(rows) * slots)
        losses.sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    del others
    return slots * len(rows) / seconds
