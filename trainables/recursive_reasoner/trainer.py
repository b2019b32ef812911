"""One worker's training of a recursive reasoner, step by step, and the whole of its state.

Rows of the batch that halt are refilled from the stream of training puzzles; the others take their next supervision
step. With several workers each has its share of the batch, and gradients are averaged.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.common.monitor import ComponentMonitor, require_movement
from trainables.common.precision import has_fast_bf16
from trainables.common.schedules import Schedule, total_steps, warm_up
from trainables.puzzles.puzzles import Puzzles
from trainables.recursive_reasoner import evaluation
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import Dataset, Stream
from trainables.recursive_reasoner.halting import (
    CONTINUE,
    EXPAND,
    HALT,
    HALTING,
    BceHalting,
    DqnHalting,
    Exploration,
    Transitions,
    end_reward,
    reward,
)
from trainables.recursive_reasoner.loss import log_stablemax, row_losses, score
from trainables.recursive_reasoner.model import Reasoner, State
from trainables.recursive_reasoner.planner import hint_share

# weight of the halting loss, as published
HALTING_WEIGHT = 0.5
# held-out puzzles whose answers after each step are written down
SHOWN_PUZZLES = 8


class Trainer:
    """One worker's model, its batch of rows under way, and everything that a checkpoint must hold.

    Args:
        config: The settings.
        dataset: The puzzles.
        seed: Of the weights, the order of puzzles and exploration.
        device: Torch device.
        rank: Index of this worker.
        world_size: Number of workers; each has an equal share of ``batch_size`` rows.

    Attributes:
        step: Optimizer steps taken.
        cpu_seconds: What all threads of this process computed in these steps, over all sessions of the run.
        total: Steps of the run.
        steps_per_epoch: Steps of an epoch.
        facts: What was measured once and belongs to the last row.
        metrics: The last row.
    """

    def __init__(
        self, config: ReasonerConfig, dataset: Dataset, seed: int, device: str, rank: int = 0, world_size: int = 1
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.rank, self.world_size = rank, world_size
        self.rows = config.batch_size // world_size
        self.steps_per_epoch = total_steps(len(dataset.train), config.views_per_puzzle, config.batch_size, 1)
        self.total = self.steps_per_epoch * config.epochs
        self.step, self.position = 0, 0
        self.facts: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        torch.manual_seed(seed)
        bf16 = config.precision == "auto" and has_fast_bf16(device)
        self.model = Reasoner(
            config, dataset.vocabulary, dataset.cells, dataset.rules, bf16, dataset.kind.modalities
        ).to(device)
        if config.compile:
            # in place: names of weights stay, and copies for evaluation, of other shapes, are not compiled
            self.model.network.compile()
        self.halting: Any = HALTING[config.halting](config).to(device)
        self.trained = nn.ModuleDict({"model": self.model, "halting": self.halting})
        self.parameters: list[Tensor] = [p for p in self.trained.parameters() if p.requires_grad]
        self.averaged = [p.detach().clone() for p in self.parameters]
        components = self.model.components()
        halting = [p for p in self.halting.parameters() if p.requires_grad]
        self.monitor = ComponentMonitor(components | ({"halting": halting} if halting else {}))
        matrices = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=torch.device(device).type in ("cpu", "cuda")
        )
        self.stream = Stream(dataset, seed)
        # exploration is drawn for the rows of all workers, so that their number changes nothing
        self.generator = torch.Generator().manual_seed(seed)
        self.schedules = schedules_of(config)
        self.carry = self._empty_carry()
        self.sums: dict[str, Any] = {}
        # The start of the epoch under way, and the seconds since then that were no training.
        self.started, self.seconds_aside = time.perf_counter(), 0.0
        self.cpu_seconds = 0.0

    # ------------------------------------------------------------------------------------------------------- one step

    def scheduled(self, step: int) -> dict[str, float]:
        """Return every scheduled value that takes part at a global step."""
        values = {name: schedule.value(step, self.total) for name, schedule in self.schedules.items()}
        return values | {"lr": values["lr"] * warm_up(step, self.config.warmup_steps)}

    def train_step(self) -> None:
        """Refill rows that have halted, do one supervision step of all rows, learn from it, and let rows halt."""
        config, carry, values = self.config, self.carry, self.scheduled(self.step)
        computed = time.process_time()
        thoughts = int(values.get("thoughts", 0))
        draws = torch.rand(config.batch_size, 4, generator=self.generator)
        draws = draws[self.rank * self.rows : (self.rank + 1) * self.rows].to(self.device)
        replay_draws = torch.rand(config.replay_batch, generator=self.generator)
        self._refill(thoughts, draws[:, 2:], values.get("epsilon", 0.0))
        output = self.model(State(carry["z_h"], carry["z_l"]), carry["inputs"], thoughts, carry["ids"])
        carry["steps"] += 1
        log_p = log_stablemax(output.logits)
        seen, answers = evaluation.see(output.summary, output.logits, log_p, carry["answers"], carry["steps"])
        cells, solved = score(answers, carry["targets"], carry["asked"])
        answer_loss = row_losses(log_p, carry["targets"]).mean()
        judged = self.halting.values(seen)
        loss, halting_loss = answer_loss, None
        if isinstance(self.halting, BceHalting):
            halting_loss = self.halting.loss(judged, solved)
        elif isinstance(self.halting, DqnHalting):
            halting_loss = self.halting.loss(replay_draws)
        if halting_loss is not None:
            loss = loss + HALTING_WEIGHT * halting_loss
        if output.children is not None:
            read_back = self.model.reconstruction_losses(output.children, carry["inputs"], carry["ids"]).mean()
            loss = loss + config.reconstruction_weight * read_back
            self._note("reconstruction_loss", read_back)
        norm = self._learn(loss, values["lr"])
        with torch.no_grad():
            finished = self._carry_on(output.state, seen, answers, cells, solved, judged.detach(), draws, values)
        self._note("train_loss", loss)
        self._note("answer_loss", answer_loss)
        if halting_loss is not None:
            self._note("halting_loss", halting_loss)
        self._note("grad_norm", norm)
        self._note("finished", finished.sum() * self.world_size)
        self._note("finished_solved", (finished & solved).sum() * self.world_size)
        self._note("finished_steps", torch.where(finished, carry["steps"], 0).sum() * self.world_size)
        self.step += 1
        self.cpu_seconds += time.process_time() - computed

    def _refill(self, thoughts: int, draws: Tensor, epsilon: float) -> None:
        carry = self.carry
        rows = carry["halted"].nonzero().squeeze(1)
        counts = self._gather(len(rows))
        positions = self.position + sum(counts[: self.rank]) + np.arange(len(rows))
        self.position += sum(counts)
        if not len(rows):
            return
        given, targets, asked, ids = self.stream.at(positions, hint_share(self.config, thoughts))
        shown = self.dataset.kind.show(given, ids)
        fresh = {"inputs": shown, "targets": targets, "asked": asked, "ids": ids, "answers": given}
        for name, array in fresh.items():
            carry[name][rows] = torch.from_numpy(array).to(self.device, carry[name].dtype)
        start = self.model.start(len(rows))
        carry["z_h"][rows], carry["z_l"][rows] = (z.to(carry["z_h"].dtype) for z in start)
        carry["steps"][rows] = 0
        # as published: some rows must take a random number of steps, at least two
        least = 2 + (draws[rows, 1] * (self.config.max_steps - 1)).long()
        carry["least"][rows] = torch.where(draws[rows, 0] < epsilon, least, 0)

    def _learn(self, loss: Tensor, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.world_size > 1:
            # a worker whose replay is still too small has no gradient where another has one
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            _average([p.grad for p in self.parameters if p.grad is not None], self.world_size)
        self.monitor.after_backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters, 1 - self.config.ema)
            if isinstance(self.halting, DqnHalting):
                self.halting.follow()
        return norm

    def _carry_on(
        self,
        state: State,
        seen: evaluation.Seen,
        answers: Tensor,
        cells: Tensor,
        solved: Tensor,
        judged: Tensor,
        draws: Tensor,
        values: Mapping[str, float],
    ) -> Tensor:
        """Let rows halt, expand or go on, and remember what they did; return which rows ended, bool [N]."""
        config, carry = self.config, self.carry
        exploration = Exploration(
            values.get("epsilon", 0.0),
            values.get("temperature", 1.0),
            values.get("expansion_penalty", 0.0),
            self.step >= config.dqn_warmup * self.total,
        )
        action = self.halting.explore(judged, draws[:, :2], exploration)
        if isinstance(self.halting, BceHalting):
            action = torch.where(carry["steps"] < carry["least"], CONTINUE, action)
        out_of_steps = carry["steps"] >= config.max_steps
        # an expansion is a step of its own, and the answer after it is another
        action = torch.where((action == EXPAND) & (carry["steps"] + 1 >= config.max_steps), CONTINUE, action)
        ended = out_of_steps | (action == HALT)
        carry["z_h"], carry["z_l"] = state.z_h, state.z_l
        if isinstance(self.halting, DqnHalting):
            self._remember(seen, cells, solved, action, out_of_steps, exploration.expansion_penalty)
            carry["cells"], carry["action"] = cells, action
            expand = (action == EXPAND) & ~ended
            if expand.any():
                deeper = self.model.expand(
                    State(*(z[expand] for z in state)), carry["inputs"][expand], carry["ids"][expand]
                )
                carry["z_h"][expand], carry["z_l"][expand] = deeper
                carry["steps"] += expand
        carry["answers"], carry["halted"] = answers, ended
        return ended

    def _remember(
        self, seen: evaluation.Seen, cells: Tensor, solved: Tensor, action: Tensor, out_of_steps: Tensor, price: float
    ) -> None:
        carry, features = self.carry, seen.features(self.config.max_steps)
        # a row that was refilled before this step has nothing to look back on
        later = ~carry["halted"]
        came = reward(
            cells - carry["cells"], carry["action"] == EXPAND, out_of_steps, solved, self.config.step_penalty, price
        )
        self.halting.replay.add(
            Transitions(
                carry["features"][later], carry["action"][later], came[later], features[later], out_of_steps[later]
            )
        )
        halts = (action == HALT) & ~out_of_steps
        self.halting.replay.add(
            Transitions(features[halts], action[halts], end_reward(solved)[halts], features[halts], halts[halts])
        )
        carry["features"] = features

    # ------------------------------------------------------------------------------------------------ around the steps

    def end_epoch(self) -> dict[str, Any]:
        """Return the row of the epoch that ends, without held-out metrics and `lap`."""
        epoch, values = self.step // self.steps_per_epoch, self.scheduled(self.step - 1)
        if self.world_size > 1:
            _average(list(self.sums.values()), self.world_size)
        means = {name: float(total) / self.steps_per_epoch for name, total in self.sums.items()}
        if not np.isfinite(means["train_loss"]) or not np.isfinite(means["grad_norm"]):
            raise FloatingPointError(
                f"The training loss is {means['train_loss']} and the gradient norm {means['grad_norm']} in epoch "
                f"{epoch}; lower lr ({self.config.lr}) or clip_norm."
            )
        if epoch == 1 and self.steps_per_epoch > 1:
            moving = {name for name, schedule in self.schedules.items() if schedule.moves}
            require_movement(self.scheduled(0), values, moving)
        seconds = time.perf_counter() - self.started - self.seconds_aside
        finished, solved, steps = (means.pop(n) for n in ("finished", "finished_solved", "finished_steps"))
        row = {
            "epoch": epoch,
            "cpu_seconds": self.cpu_seconds,
            "step": self.step,
            **values,
            **means,
            "examples": round(finished * self.steps_per_epoch),
            "train_exact_accuracy": solved / finished if finished else 0.0,
            "train_mean_steps": steps / finished if finished else 0.0,
            "puzzles_per_second": finished * self.steps_per_epoch / seconds,
            "rows_per_second": self.config.batch_size * self.steps_per_epoch / seconds,
            **self.monitor.end_epoch(),
        }
        self.sums = {}
        return row

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time spent in the ``with`` block out of the epoch's throughput, but not out of its seconds."""
        begun = time.perf_counter()
        yield
        self.seconds_aside += time.perf_counter() - begun

    def lap(self) -> float:
        """Return the wall time since the last call, or since the start of training, in seconds.

        What an earlier session spent on the epoch before its last checkpoint is included.
        """
        now = time.perf_counter()
        seconds, self.started, self.seconds_aside = now - self.started, now, 0.0
        return seconds

    def evaluate(self) -> dict[str, Any]:
        """Return held-out metrics of the averaged weights."""
        model, halting = self.evaluated()
        kind, puzzles = self.dataset.kind, self.dataset.held_out
        solved = evaluation.solve(model, halting, kind, puzzles, self.device, self._thoughts())
        row = evaluation.metrics(solved) | evaluation.valid_metrics(solved, kind, puzzles)
        row |= evaluation.metrics_by_modality(solved, puzzles, kind.modalities)
        flops = evaluation.flops_per_step(model, self.device, self._thoughts())
        return row | {"flops_per_puzzle": flops * row["mean_steps"]}

    def evaluate_levels(self) -> dict[str, Any]:
        """Return the accuracies on puzzles harder than those trained on, and on each level of these and the held-out
        ones; nothing of puzzles that all are alike."""
        if not len(self.dataset.harder):
            return {}
        kind, puzzles = self.dataset.kind, Puzzles.concatenate([self.dataset.held_out, self.dataset.harder])
        solved = evaluation.solve(*self.evaluated(), kind, puzzles, self.device, self._thoughts())
        harder = evaluation.solve(*self.evaluated(), kind, self.dataset.harder, self.device, self._thoughts())
        row = evaluation.metrics(harder) | evaluation.valid_metrics(harder, kind, self.dataset.harder)
        names = [name for name in ("exact_accuracy", "valid_accuracy") if name in row]
        levels = evaluation.metrics_by_level(solved, kind.level(puzzles))
        return {f"harder_{name}": row[name] for name in names} | levels

    def solved_puzzles(self) -> dict[str, Any]:
        """Return the first held-out puzzles with the averaged weights' answer after each step, for pictures."""
        first = np.arange(min(SHOWN_PUZZLES, len(self.dataset.held_out)))
        kind, shown = self.dataset.kind, self.dataset.held_out.take(first)
        solved = evaluation.solve(*self.evaluated(), kind, shown, self.device, self._thoughts())
        return {
            "side": kind.side,
            "inputs": shown.inputs.tolist(),
            "targets": shown.targets.tolist(),
            "answers": solved.answers.transpose(0, 1).tolist(),
            "steps": solved.steps.tolist(),
            "answered": solved.answered.tolist(),
        }

    def evaluated(self) -> tuple[Reasoner, Any]:
        """Return copies of model and halting rule with the averaged weights, or without ``ema`` the trained ones."""
        copied = copy.deepcopy(self.trained)
        if self.config.ema:
            for parameter, average in zip(
                (p for p in copied.parameters() if p.requires_grad), self.averaged, strict=True
            ):
                parameter.data.copy_(average)
        return copied["model"], copied["halting"]  # type: ignore[return-value]

    def exported(self) -> bytes:
        """Return a file with the evaluated weights and the configuration, for `torch.load`."""
        model, halting = self.evaluated()
        buffer = io.BytesIO()
        weights = {n: t for n, t in halting.state_dict().items() if not n.startswith("replay.")}
        torch.save(
            {
                "config": dataclasses.asdict(self.config),
                "dataset": self.dataset.name,
                "step": self.step,
                "total_steps": self.total,
                "cpu_seconds": self.cpu_seconds,
                "model": model.state_dict(),
                "halting": weights,
            },
            buffer,
        )
        return buffer.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run's future depends on; all workers must call it together."""
        own = {"carry": self.carry, "sums": self.sums, "halting": self.halting.state_dict()}
        parts = [own]
        if self.world_size > 1:
            parts = [{}] * self.world_size
            torch.distributed.all_gather_object(parts, own)
        return {
            "parts": parts,
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "position": self.position,
            "facts": self.facts,
            "metrics": self.metrics,
            "seconds": time.perf_counter() - self.started,
            "seconds_aside": self.seconds_aside,
            "cpu_seconds": self.cpu_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the configuration must be the same, the number of workers need not."""
        parts = state["parts"]
        # the rows of all workers, in order, are the rows of the batch
        mine = slice(self.rank * self.rows, (self.rank + 1) * self.rows)
        self.carry = {
            name: torch.cat([part["carry"][name].to(self.device) for part in parts])[mine] for name in self.carry
        }
        self.sums = {name: sum(part["sums"][name] for part in parts) / len(parts) for name in parts[0]["sums"]}
        self.model.load_state_dict(state["model"])
        self.halting.load_state_dict(parts[self.rank % len(parts)]["halting"])
        for average, saved in zip(self.averaged, state["averaged"], strict=True):
            average.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])
        self.generator.set_state(state["generator"].cpu())
        for name in ("step", "position", "facts", "metrics"):
            setattr(self, name, state[name])
        # Checkpoints of older versions do not hold the times.
        self.started = time.perf_counter() - state.get("seconds", 0.0)
        self.seconds_aside = state.get("seconds_aside", 0.0)
        self.cpu_seconds = state.get("cpu_seconds", 0.0)

    def _empty_carry(self) -> dict[str, Tensor]:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(self.rows, *shape, dtype=dtype, device=self.device)

        cells, state = self.dataset.cells, torch.bfloat16 if self.model.bf16 else torch.float32
        start = self.model.start(self.rows)
        return {
            "z_h": start.z_h.to(state, copy=True),
            "z_l": start.z_l.to(state, copy=True),
            "inputs": zeros(self.model.shown),
            "targets": zeros(cells),
            "asked": zeros(cells, dtype=torch.bool),
            "answers": zeros(cells),
            "ids": zeros(),
            "steps": zeros(),
            "least": zeros(),
            "halted": ~zeros(dtype=torch.bool),
            "cells": zeros(dtype=torch.float32),
            "features": zeros(self.config.width + 4, dtype=torch.float32),
            "action": zeros(),
        }

    def _thoughts(self) -> int:
        return int(self.scheduled(self.step).get("thoughts", 0))

    def _note(self, name: str, value: Tensor) -> None:
        # kept on the device: one synchronisation an epoch, not one a step
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def _gather(self, count: int) -> list[int]:
        if self.world_size == 1:
            return [count]
        counts = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(self.world_size)]
        torch.distributed.all_gather(counts, torch.full_like(counts[0], count))
        return [int(c) for c in counts]


def schedules_of(config: ReasonerConfig) -> dict[str, Schedule]:
    """Return the schedules that take part with a halting rule and a planner, by name."""
    schedules = {"lr": Schedule(config.lr, config.lr * config.lr_floor, config.lr_schedule)}
    if config.halting != "fixed":
        schedules["epsilon"] = Schedule.parse(config.epsilon)
    if config.halting == "dqn":
        schedules["temperature"] = Schedule.parse(config.temperature)
        schedules["expansion_penalty"] = Schedule.parse(config.expansion_penalty)
    if config.planner == "continuous_thought":
        schedules["thoughts"] = Schedule.parse(config.thoughts)
    return schedules


def _average(tensors: list[Tensor], world_size: int) -> None:
    """Average tensors of all workers in place, in one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, mean in zip(tensors, (flat / world_size).split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
