"""The ways to train the same adapters that `benchmarks/adapters.py` compares: alone, in a tuned PEFT loop, in packs."""

from __future__ import annotations

import copy
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import nn

from benchmarks.floor import Spent, counted
from benchmarks.machine import end_with_parent
from trainables.arc import Task
from trainables.atomic_lora.bases import is_canvas, is_causal_lm
from trainables.atomic_lora.canvas import load_canvas
from trainables.atomic_lora.causal_lm import load_causal_lm
from trainables.atomic_lora.data import collate, padded_lengths
from trainables.atomic_lora.loss import row_losses
from trainables.atomic_lora.model import load_champion
from trainables.atomic_lora.text_workload import TextWorkload, load_text_base
from trainables.atomic_lora.train import load_workload
from trainables.atomic_lora.workload import ChampionWorkload, LoRAWorkload
from trainables.common.environment import environment_without_ray
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.common.schedules import DECAYS
from trainables.pack.bank import initial_factors
from trainables.pack.batching import BatchCost
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Evaluation
from trainables.texts import TaskFiles

# ARC's tasks, or files of texts
Tasks = Mapping[str, Task] | Mapping[str, TaskFiles]


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

    def __init__(self, workload: LoRAWorkload[Any]) -> None:
        self.inner, self.pack, self.cost = workload, workload.pack, workload.cost
        self.plan, self.size, self.score = workload.plan, workload.size, workload.score

    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[Any]]]) -> list[Evaluation]:
        return [Evaluation({}) for _ in finished]

    def export(self, job: Job, plan: AdapterPlan[Any], factors: Any, evaluation: Any) -> str:
        return ""


# tasks whose operations and bytes are counted for the floor
COUNTED = 16


class Contest:
    """The same adapters, trained in several ways.

    Args:
        device: ``cpu`` or ``cuda``.
        base: What `trainables.atomic_lora.bases.absolute` returned.
        tasks: Tasks by id, all of one kind.
        config: Configuration of every adapter.
        bf16: Whether to compute in bfloat16.
    """

    def __init__(self, device: str, base: str, tasks: Tasks, config: dict[str, Any], bf16: bool) -> None:
        self.device, self.base, self.tasks, self.config, self.bf16 = device, base, tasks, config, bf16
        self.texts = isinstance(next(iter(tasks.values())), TaskFiles)
        self.planner = self._workload()
        self.layers = self.planner.pack.layers
        self.bare = self._bare()
        self._tuned = get_peft_model(self.bare, self._lora())
        if bf16:
            # once, as packs do: autocast would cast frozen weights at every product
            for name, module in self._tuned.named_modules():
                if isinstance(module, nn.Linear) and ".lora_" not in name:
                    module.bfloat16()
        self._engines: dict[int, PackEngine[Any]] = {}
        self._processes: list[ProcessPoolExecutor] = []

    def job(self, task_id: str) -> Job:
        return Job(task_id, task_id, 0, self.config)

    def deepcopy(self, task_ids: Sequence[str], tally: Tally) -> None:
        """Train each task on a fresh copy of the base."""
        base = self._bare()
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
        if self.texts:
            texts = load_text_base(self.base, self.device)
            return Untested(TextWorkload(texts, self.base, self.tasks, Folder("."), names, self.bf16))
        if not is_causal_lm(self.base) and not is_canvas(self.base):
            champion = load_champion(self.base, self.device)
            return Untested(ChampionWorkload(champion, self.base, self.tasks, Folder("."), names, self.bf16, cost))
        settings = {"base": self.base, "target_modules": names}
        return Untested(load_workload(settings, self.tasks, Folder("."), self.device))

    def _bare(self) -> nn.Module:
        """Return the base's model, frozen, as packs load it."""
        if self.texts:
            return load_text_base(self.base, self.device).model
        if is_causal_lm(self.base):
            return load_causal_lm(self.base, self.device).model
        load = load_canvas if is_canvas(self.base) else load_champion
        return load(self.base, self.device).model

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
        step, steps = 0, plan.epochs * plan.steps_per_epoch
        best, kept = float("inf"), [p.detach().clone() for p in parameters]
        for epoch in range(1, plan.epochs + 1):
            examples = list(plan.examples(epoch))
            for start in range(0, len(examples), plan.batch_size):
                rows = examples[start : start + plan.batch_size]
                loss = self._loss(model, rows, tally)
                optimizer.param_groups[0]["lr"] = plan.lr * DECAYS[plan.lr_schedule](step, steps)
                step += 1
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

    def _loss(self, model: nn.Module, rows: Sequence[Any], tally: Tally | None = None) -> torch.Tensor:
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
    device: str, base: str, tasks: Tasks, config: dict[str, Any], bf16: bool, slots: int, threads: int,
    *shared: Any,
) -> None:  # fmt: skip
    """Set up a process of a `Contest.shared`."""
    global _contest, _slots, _shared
    end_with_parent()
    torch.set_num_threads(threads)
    _contest, _slots, _shared = Contest(device, base, tasks, config, bf16), slots, shared
    _contest.packed(slots)


def _train_share(task_ids: Sequence[str]) -> Tally:
    tally = Tally()
    _contest.run(_slots, SharedQueue([_contest.job(task_id) for task_id in task_ids], *_shared), tally)
    tally.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return tally
