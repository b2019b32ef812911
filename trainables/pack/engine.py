"""The pack engine: S adapters trained in one batched step, each exactly as it would be alone.

The engine takes jobs from a queue, trains each in a slot of its own, and reports at rungs. It brings everything that
adapters must not share: the loss is the mean over a slot's own tokens, its gradient is clipped by its own norm, and
learning rate, step counter, moments, patience and random numbers are its own. A step's rows share batches, whosever
they are. A finished or cancelled slot is refilled from the queue at once; finished adapters wait aside until
enough of them are there to be evaluated in one batch.

What a job means (its examples, its loss, its metrics) is the `Workload`'s; which layers are adapted, the `AdapterPack`.
Not covered: dropout (refused by having no setting for it), training of the base, several devices in one engine.
"""

from __future__ import annotations

import logging
import math
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trainables.common.folder import Folder
from trainables.common.jobs import Job, JobQueue, Report, Status
from trainables.common.monitor import DeadComponentError, require_gradients
from trainables.common.schedules import DECAYS
from trainables.pack.bank import AdapterBank, AdapterPack, initial_factors
from trainables.pack.batching import BatchCost, group
from trainables.pack.checkpoint import Factors, dump_slot, read_slot, write_slot
from trainables.pack.optimizer import SlotStep, StackedAdamW
from trainables.pack.plan import AdapterPlan, Evaluation, Workload
from trainables.pack.slots import KEPT, EngineStats, Finished, Row, Slot

log = logging.getLogger(__name__)

# A slot's gradients lie in one row of a flat buffer, so a layer's stack is not dense: that is intended.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

E = TypeVar("E")
T = TypeVar("T")


class DivergedError(RuntimeError):
    """An adapter's loss is no longer a finite number."""


class PackEngine(Generic[E]):
    """Trains jobs from a queue, S at a time.

    Args:
        pack: The adapted model.
        workload: What to train on.
        slots: S, adapters in training at once.
        rank: Largest rank of any job.
        folder: Where checkpoints of rungs and of adapters that wait for their evaluation go
            (``checkpoints/<trial_id>.safetensors``); None keeps none.
        signature: Names the base; a checkpoint of another one is not continued.
        dtype: Type of the adapters and their optimizer state.
        evaluation_slots: Finished adapters that are evaluated together; as many as train together by default.
        evaluation_dtype: Type of finished adapters while they are evaluated, ``dtype`` by default.
        cost: What a batch costs the device; decides which rows share one.
        component: Names the component that a layer's gradient norms are recorded under; by default the first part
            of the layer's name.
    """

    def __init__(
        self, pack: AdapterPack, workload: Workload[E], slots: int, rank: int, folder: Folder | None = None,
        signature: str = "", dtype: torch.dtype = torch.float32, evaluation_slots: int | None = None,
        evaluation_dtype: torch.dtype | None = None, cost: BatchCost | None = None,
        component: Callable[[str], str] | None = None,
    ) -> None:  # fmt: skip
        self.pack, self.workload, self.folder, self.signature = pack, workload, folder, signature
        self.device = next(pack.model.parameters()).device
        self.bank = AdapterBank(pack.layers, slots, rank, self.device, dtype)
        self.optimizer = StackedAdamW(self.bank.flat)
        self.grad, self.best, self.initial = (torch.zeros_like(self.bank.flat) for _ in range(3))
        self.evaluation_slots, self.evaluation_dtype = evaluation_slots or slots, evaluation_dtype or dtype
        self.cost = cost or BatchCost()
        self.component = component or (lambda layer: layer.partition(".")[0])
        self.components: dict[str, list[str]] = {}
        for name in pack.layers:
            self.components.setdefault(self.component(name), []).append(name)
        # the loss of a step or validation, and the sum over an epoch's steps
        self.losses, self.loss_sums = (torch.zeros(slots, device=self.device, dtype=dtype) for _ in range(2))
        # share of the validation examples that are answered exactly
        self.exact = torch.zeros_like(self.losses)
        self.norm_sums = torch.zeros(1 + len(self.components), slots, device=self.device, dtype=dtype)
        self.slots: list[Slot[E] | None] = [None] * slots
        self.finished: list[Finished[E]] = []
        # most rows of a batch; halved when memory runs out
        self.together: int | None = None
        self.stats = EngineStats()

    # ------------------------------------------------------------------------------------------------------------- loop

    def run(self, queue: JobQueue) -> None:
        """Train until the queue has no more jobs. A job that goes wrong is reported as failed and harms no other."""
        while True:
            self._cancel(queue)
            idle = not any(self.slots)
            free = self.slots.count(None)
            if free:
                jobs = queue.take(free, wait=idle and not self.finished)
                for job in jobs:
                    self._admit(job, queue)
                if not jobs and idle:
                    if not self.finished:
                        return
                    self._evaluate_some(queue)
                    continue
            if any(self.slots):
                self._step(queue)
            while len(self.finished) >= self.evaluation_slots:
                self._evaluate_some(queue)

    def _cancel(self, queue: JobQueue) -> None:
        cancelled = queue.cancelled()
        for slot in self._active():
            if slot.job.trial_id in cancelled:
                self.slots[slot.index] = None
                queue.report([self._report(slot, "stopped")])
        for item in [f for f in self.finished if f.slot.job.trial_id in cancelled]:
            self.finished.remove(item)
            queue.report([self._report(item.slot, "stopped")])

    def _active(self) -> list[Slot[E]]:
        return [slot for slot in self.slots if slot is not None]

    # ------------------------------------------------------------------------------------------------------------ slots

    def _admit(self, job: Job, queue: JobQueue) -> None:
        index = self.slots.index(None)
        try:
            plan = self.workload.plan(job)
            if plan.rank > self.bank.rank:
                raise ValueError(f"rank {plan.rank} is above the pack's largest rank {self.bank.rank}.")
            if plan.lr_schedule not in DECAYS:
                raise ValueError(f"lr_schedule {plan.lr_schedule!r} is none of {', '.join(DECAYS)}.")
            if not plan.validation:
                raise ValueError("there are no examples to validate on.")
            slot = Slot(index, job, plan, self.pack.select(plan.target_modules))
            # rows that cannot be measured must fail here, where they are one job's
            self._rows(slot, plan.validation)
            self._load(slot)
        except Exception as error:
            queue.report([Report(job.trial_id, "failed", 0, {}, (), *_said(error))])
            return
        if slot.is_over:
            # Only its evaluation was missing when the engine that trained it was killed.
            self._set_aside(slot)
        else:
            self.slots[index] = slot

    @torch.no_grad()
    def _load(self, slot: Slot[E]) -> None:
        # everything that the slot's last tenant left is overwritten
        i, plan = slot.index, slot.plan
        self.optimizer.reset(i)
        for buffer in (self.grad, self.best):
            buffer[i].zero_()
        self.loss_sums[i] = 0
        self.norm_sums[:, i] = 0
        self.bank.write(i, initial_factors(self.pack.layers, slot.names, plan.rank, slot.job.seed), plan.alpha)
        self.initial[i] = self.bank.flat[i]
        checkpoints, signature = self.folder and self.folder.sub("checkpoints"), self._signature(plan)
        kept = read_slot(checkpoints, slot.job.trial_id, signature) if checkpoints else None
        if kept is not None:
            states, facts = kept
            # the weights come last and stay
            for state, buffer in self._buffers().items():
                self.bank.write(i, states[state], plan.alpha)
                buffer[i] = self.bank.flat[i]
            for name in KEPT:
                # a checkpoint of an earlier version lacks some
                setattr(slot, name, facts.get(name, getattr(slot, name)))
            slot.earlier_seconds = facts["seconds"]

    def _save(self, slot: Slot[E]) -> None:
        if self.folder is None:
            return
        rows = {name: buffer[slot.index] for name, buffer in self._buffers().items()}
        states = {name: self.bank.read(row, slot.names, slot.plan.rank) for name, row in rows.items()}
        facts = {name: getattr(slot, name) for name in (*KEPT, "seconds")}
        data = dump_slot(states, facts, self._signature(slot.plan))
        write_slot(self.folder.sub("checkpoints"), slot.job.trial_id, data)

    def _signature(self, plan: AdapterPlan[E]) -> str:
        return ", ".join(filter(None, (self.signature, plan.signature)))

    def _buffers(self) -> dict[str, Tensor]:
        first, second = self.optimizer.first_moment, self.optimizer.second_moment
        return {"first_moment": first, "second_moment": second, "best": self.best, "weights": self.bank.flat}

    # ------------------------------------------------------------------------------------------------------------ steps

    def _step(self, queue: JobQueue) -> None:
        begun = time.perf_counter()
        rows: list[Row[E]] = []
        slots = self._active()
        self._measure_starts([slot for slot in slots if not slot.step and math.isinf(slot.best_loss)], queue)
        slots = self._active()
        for slot in slots:
            try:
                rows += self._rows(slot, self._next_batch(slot))
            except Exception as error:
                self._fail(slot, error, queue)
        self.grad.zero_()
        self.losses.zero_()
        self._in_batches(rows, self._backward, queue)
        # those whose every row came through
        trained = [slot for slot in slots if self.slots[slot.index] is slot]
        if trained:
            self._update(trained)
        ended = [slot for slot in trained if not slot.waiting]
        if ended:
            self._end_epoch(ended, queue)
        for slot in slots:
            slot.busy_seconds += (time.perf_counter() - begun) / len(slots)

    @torch.no_grad()
    def _measure_starts(self, slots: Sequence[Slot[E]], queue: JobQueue) -> None:
        """Make the base's own validation what a new adapter has to be better than."""
        slots = self._validate_all(slots, queue) if slots else []
        if not slots:
            return
        losses, exact = (values[self._index(slots)].tolist() for values in (self.losses, self.exact))
        for slot, loss, share in zip(slots, losses, exact, strict=True):
            slot.best_exact, slot.best_loss = slot.patience_exact, slot.patience_loss = share, loss
            self.best[slot.index] = self.bank.flat[slot.index]

    def _rows(self, slot: Slot[E], examples: Sequence[E]) -> list[Row[E]]:
        sizes = [self.workload.size(example) for example in examples]
        weight = 1 / sum(size.targets for size in sizes)
        return [Row(slot, example, size, weight) for example, size in zip(examples, sizes, strict=True)]

    def _in_batches(self, rows: Sequence[Row[E]], act: Callable[[Sequence[Row[E]]], None], queue: JobQueue) -> None:
        """Apply ``act`` to the rows in batches; see `group`."""

        def act_on_the_living(items: Sequence[Row[E]]) -> None:
            items = [row for row in items if self.slots[row.slot.index] is row.slot]
            if items:
                act(items)

        for indices in group([row.size.lengths for row in rows], self.cost, self.together):
            self._isolate([rows[i] for i in indices], act_on_the_living, queue, lambda row: row.slot, self._fewer_rows)

    def _fewer_rows(self, most: int) -> None:
        self.together = min(self.together or most, most)
        log.warning("Out of memory in a batch of rows; from now on at most %d share one.", self.together)

    def _isolate(
        self, items: Sequence[T], act: Callable[[Sequence[T]], None], queue: JobQueue,
        slot_of: Callable[[T], Slot[E]], shrink: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Apply ``act`` to all items together; where that raises, to each half, until only the culprit fails.

        ``shrink`` is told how many were half, where it was memory that ran out.
        """
        try:
            act(items)
            return
        except Exception as error:
            if len(items) == 1:
                self._fail(slot_of(items[0]), error, queue)
                return
            if isinstance(error, torch.OutOfMemoryError):
                shrink(len(items) // 2)
        # out of the handler: the error holds on to the tensors of the batch that was too large
        half = len(items) // 2
        self._isolate(items[:half], act, queue, slot_of, shrink)
        self._isolate(items[half:], act, queue, slot_of, shrink)

    def _backward(self, rows: Sequence[Row[E]]) -> None:
        """Add the gradients of some rows, in one batch, to those of their slots."""
        slots, owners = self._owners(rows)
        bank = self.bank.take(slots, trainable=True)
        losses, _ = self._forward(bank, rows, owners)
        # a sum, so that each slot's gradient is that of its own rows alone
        losses.sum().backward()
        assert bank.grad is not None
        self.grad.index_add_(0, slots, bank.grad)
        # last: where anything before it raises, the rows are tried again
        self._add_losses(rows, losses.detach())
        padded = self.cost.tokens([row.size.lengths for row in rows])
        for row in rows:
            row.slot.epoch_examples += 1
            row.slot.epoch_padded += padded / len(rows)
            row.slot.epoch_tokens += row.size.tokens
        self.stats.batches += 1
        self.stats.examples += len(rows)
        self.stats.tokens += sum(row.size.tokens for row in rows)
        self.stats.padded_tokens += padded

    def _next_batch(self, slot: Slot[E]) -> Sequence[E]:
        if not slot.waiting:
            examples = slot.plan.examples(slot.epoch + 1)
            if not examples:
                raise ValueError(f"epoch {slot.epoch + 1} has no examples.")
            size = slot.plan.batch_size
            slot.waiting = [examples[i : i + size] for i in range(0, len(examples), size)][::-1]
            slot.epoch_started, slot.epoch_examples, slot.epoch_tokens = time.perf_counter(), 0, 0
            slot.epoch_padded = 0.0
        return slot.waiting.pop()

    def _validate(self, rows: Sequence[Row[E]]) -> None:
        """Add the losses of some rows, in one batch, and what was exactly right, to those of their slots."""
        slots, owners = self._owners(rows)
        losses, exact = self._forward(self.bank.take(slots), rows, owners)
        shares = torch.tensor([1 / len(row.slot.plan.validation) for row in rows], device=self.device) * exact
        self.exact.index_add_(0, self._index([row.slot for row in rows]), shares.to(self.exact))
        self._add_losses(rows, losses)

    @torch.no_grad()
    def _validate_all(self, slots: Sequence[Slot[E]], queue: JobQueue) -> list[Slot[E]]:
        """Fill the slots' places in ``losses`` and ``exact``; return the slots whose every row came through."""
        self.losses.zero_()
        self.exact.zero_()
        rows = [row for slot in slots for row in self._rows(slot, slot.plan.validation)]
        self._in_batches(rows, self._validate, queue)
        return [slot for slot in slots if self.slots[slot.index] is slot]

    def _add_losses(self, rows: Sequence[Row[E]], losses: Tensor) -> None:
        self.losses.index_add_(0, self._index([row.slot for row in rows]), losses.to(self.losses))

    def _forward(
        self, bank: AdapterBank, rows: Sequence[Row[E]], owners: Sequence[int]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the weighted losses [N] of rows under the adapters of their owners, places in the bank, and whether
        each row is exactly right, [N]."""
        with self.pack.use(bank, owners):
            losses, exact = self.workload.score([row.example for row in rows])
        return losses * torch.tensor([row.weight for row in rows], dtype=losses.dtype, device=self.device), exact

    def _owners(self, rows: Sequence[Row[E]]) -> tuple[Tensor, list[int]]:
        """Return the slots of some rows, [k], and for each row the place of its own among them."""
        slots = list({row.slot.index: row.slot for row in rows}.values())
        places = {slot.index: place for place, slot in enumerate(slots)}
        return self._index(slots), [places[row.slot.index] for row in rows]

    def _index(self, slots: Sequence[Slot[E]]) -> Tensor:
        return torch.tensor([slot.index for slot in slots], device=self.device)

    @torch.no_grad()
    def _update(self, slots: Sequence[Slot[E]]) -> None:
        """Take one optimizer step with the gradients of ``slots``."""
        steps = []
        for slot in slots:
            plan = slot.plan
            slot.lr = plan.lr * DECAYS[plan.lr_schedule](slot.step, plan.epochs * plan.steps_per_epoch)
            slot.step += 1
            steps.append(SlotStep(slot.index, slot.step, slot.lr, plan.weight_decay, plan.clip_norm))
        self.loss_sums += self.losses
        squares = self._squares(self.grad)
        norm = squares.sum(0).sqrt()
        index = self._index(slots)
        self.norm_sums.index_add_(1, index, torch.cat([norm[None], squares.sqrt()])[:, index])
        self.optimizer.step(steps, self.grad, norm)
        self.stats.steps += 1
        self.stats.slots_used += len(slots)

    def _squares(self, values: Tensor) -> Tensor:
        """Return the sum of squares of each component of each slot, [components, S], of values [S, P]."""
        spans = [[self.bank.columns[name] for name in names] for names in self.components.values()]
        sums = [[values[:, c.start : c.end].square().sum(1) for c in columns] for columns in spans]
        return torch.stack([torch.stack(parts).sum(0) for parts in sums])

    # ----------------------------------------------------------------------------------------------------------- epochs

    def _end_epoch(self, ended: Sequence[Slot[E]], queue: JobQueue) -> None:
        ended = self._validate_all(ended, queue)
        if not ended:
            return
        with torch.no_grad():
            changes = self._squares(self.bank.flat - self.initial).sqrt()
            sums = torch.cat([self.loss_sums[None], self.norm_sums, changes, self.losses[None], self.exact[None]])
            # the epoch's one synchronisation with the device
            *numbers, evaluation_losses, exact = sums[:, self._index(ended)].double().cpu()
        count = len(self.components)
        for place, slot in enumerate(ended):
            steps = -(-slot.epoch_examples // slot.plan.batch_size)
            column = [float(values[place]) for values in numbers]
            self.loss_sums[slot.index] = 0
            self.norm_sums[:, slot.index] = 0
            slot.epoch += 1
            adapted = {self.component(name) for name in slot.names}
            norms = {c: n / steps for c, n in zip(self.components, column[2 : 2 + count], strict=True) if c in adapted}
            updates = {c: n for c, n in zip(self.components, column[2 + count :], strict=True) if c in adapted}
            slot.history.append({
                "epoch": slot.epoch, "step": slot.step, "train_loss": column[0] / steps,
                "eval_loss": float(evaluation_losses[place]), "eval_exact": float(exact[place]), "lr": slot.lr,
                "grad_norm": column[1] / steps, "examples": slot.epoch_examples, "tokens": slot.epoch_tokens,
                "padded_tokens": slot.epoch_padded,
                "seconds": time.perf_counter() - slot.epoch_started,
                **{f"grad_norm/{name}": norm for name, norm in norms.items()},
                **{f"update_norm/{name}": norm for name, norm in updates.items()},
            })  # fmt: skip
            try:
                self._judge(slot, norms, queue)
            except (DivergedError, DeadComponentError) as error:
                self._fail(slot, error, queue)

    def _judge(self, slot: Slot[E], norms: Mapping[str, float], queue: JobQueue) -> None:
        """Decide whether a slot goes on after an epoch: keep the best weights, count patience, report at a rung."""
        plan, row = slot.plan, slot.history[-1]
        for name in ("train_loss", "eval_loss"):
            if not math.isfinite(row[name]):
                where = f"epoch {slot.epoch} (learning rate {row['lr']:.3g})"
                raise DivergedError(f"{name} is {row[name]} in {where}; lower the learning rate.")
        if slot.epoch == 1:
            require_gradients(norms)
        exact, loss = row["eval_exact"], row["eval_loss"]
        if exact > slot.best_exact or (exact == slot.best_exact and loss < slot.best_loss):
            slot.best_epoch, slot.best_exact, slot.best_loss = slot.epoch, exact, loss
            self.best[slot.index] = self.bank.flat[slot.index]
        if exact > slot.patience_exact or (exact == slot.patience_exact and loss < slot.patience_loss - plan.min_delta):
            slot.patience_exact, slot.patience_loss, slot.stale_epochs = exact, loss, 0
        else:
            slot.stale_epochs += 1
        if slot.is_over:
            # It may wait long for its evaluation, and a kill must not throw it back to its last rung.
            self._save(slot)
            self._set_aside(slot)
            self.slots[slot.index] = None
        elif slot.epoch % plan.report_every == 0:
            # saved first: whatever was reported can be continued from
            self._save(slot)
            queue.report([self._report(slot, "running")])

    def _set_aside(self, slot: Slot[E]) -> None:
        early = slot.epoch < slot.plan.epochs
        self.finished.append(Finished(slot, self.best[slot.index].clone(), early_stopped=early))

    # ---------------------------------------------------------------------------------------------------------- results

    def _evaluate_some(self, queue: JobQueue) -> None:
        """Evaluate the adapters that wait aside, as many as go together; one that raises fails alone."""
        batch, self.finished = self.finished[: self.evaluation_slots], self.finished[self.evaluation_slots :]
        self._isolate(
            batch, lambda items: self._evaluate(items, queue), queue, lambda item: item.slot, self._fewer_evaluated
        )

    def _fewer_evaluated(self, most: int) -> None:
        self.evaluation_slots = min(self.evaluation_slots, most)
        log.warning("Out of memory in an evaluation; from now on %d adapters share one.", self.evaluation_slots)

    def _evaluate(self, batch: Sequence[Finished[E]], queue: JobQueue) -> None:
        """Evaluate and export a batch of adapters."""
        for item, evaluation in zip(batch, self._evaluated(batch), strict=True):
            try:
                place = self.workload.export(item.slot.job, item.slot.plan, self._factors(item), evaluation)
            except Exception as error:
                self._fail(item.slot, error, queue)
                continue
            kept = item.slot.best_epoch == 0
            more = {
                **evaluation.metrics, "early_stopped": item.early_stopped, "kept_base": kept, "checkpoint": place,
            }  # fmt: skip
            queue.report([replace(self._report(item.slot, "success", more), predictions=evaluation.predictions)])

    @torch.no_grad()
    def _evaluated(self, batch: Sequence[Finished[E]]) -> list[Evaluation]:
        begun = time.perf_counter()
        bank = AdapterBank(self.pack.layers, len(batch), self.bank.rank, self.device, self.evaluation_dtype)
        for place, item in enumerate(batch):
            bank.write(place, self._factors(item), item.slot.plan.alpha)
        with self.pack.use(bank):
            evaluations = self.workload.evaluate([(item.slot.job, item.slot.plan) for item in batch])
        share = (time.perf_counter() - begun) / len(batch)
        for item in batch:
            item.slot.busy_seconds += share
        return evaluations

    def _factors(self, item: Finished[E]) -> Factors:
        return self.bank.read(item.weights, item.slot.names, item.slot.plan.rank)

    def _report(
        self, slot: Slot[E], status: Status, more: Mapping[str, Any] | None = None, error: Exception | None = None
    ) -> Report:
        last = slot.history[-1] if slot.history else {}
        metrics = {
            **slot.plan.facts, "epochs": slot.epoch, "early_stopped": False,
            "train_loss": last.get("train_loss"), "eval_loss": last.get("eval_loss"),
            "final_loss": last.get("eval_loss"),
            "best_loss": slot.best_loss if math.isfinite(slot.best_loss) else None,
            "best_exact": max(0.0, slot.best_exact), "best_epoch": slot.best_epoch,
            "seconds": slot.seconds, "busy_seconds": slot.busy_seconds, "slot": slot.index,
            "gpu_seconds": slot.busy_seconds if self.device.type == "cuda" else 0.0,
            "peak_memory_bytes": self._peak_memory(), **(more or {}),
        }  # fmt: skip
        unreported, slot.reported = slot.history[slot.reported :], len(slot.history)
        return Report(slot.job.trial_id, status, slot.epoch, metrics, unreported, *_said(error))

    def _fail(self, slot: Slot[E], error: Exception, queue: JobQueue) -> None:
        if self.slots[slot.index] is slot:
            self.slots[slot.index] = None
        queue.report([self._report(slot, "failed", error=error)])

    def _peak_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _said(error: Exception | None) -> tuple[str | None, str | None]:
    if error is None:
        return None, None
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
