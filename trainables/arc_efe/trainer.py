"""Training of the agent, step by step, and the whole of its state."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.arc import COLOURS
from trainables.arc_efe import evaluation, loss, policy
from trainables.arc_efe.config import EfeConfig
from trainables.arc_efe.data import Dataset, Item, collate, epoch_batches
from trainables.arc_efe.prompts import CHANGES
from trainables.arc_efe.system import Answer, Prompts, System
from trainables.common.monitor import ComponentMonitor, require_gradients, require_movement
from trainables.common.schedules import Schedule, warm_up

# epochs that the size weight takes where its schedule gives no length
SIZE_EPOCHS = 3
# exact answers decide which trial is better, cells where these are as many
CELLS_COUNT = 1e-3
# what is measured of the official test pairs where generated ones are held out
OFFICIAL = ("exact_accuracy", "cell_accuracy", "copy_cell_accuracy")


class Trainer:
    """A system, its optimizer, and everything that a checkpoint must hold.

    Args:
        config: The settings.
        dataset: The pairs and the demonstrations of their prompts.
        seed: Of weights, order and changes of prompts.
        device: Torch device.

    Attributes:
        step: Optimizer steps taken.
        total: Steps of the run.
        steps_per_epoch: Steps of an epoch.
        facts: What was measured once and belongs to the last row.
        metrics: The last row.
    """

    def __init__(self, config: EfeConfig, dataset: Dataset, seed: int, device: str) -> None:
        self.config, self.dataset, self.seed, self.device = config, dataset, seed, device
        self.steps_per_epoch = len(self._epoch(0))
        whole = self.steps_per_epoch * config.epochs
        self.total = min(whole, config.max_batches or whole)
        self.step, self.steps_noted = 0, 0
        self.facts: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.sums: dict[str, Any] = {}
        self.term_norms: dict[str, float] = {}
        self.batches: tuple[int, list[list[Item]]] = (-1, [])
        torch.manual_seed(seed)
        prompts = None
        if config.prompt != "none":
            prompts = Prompts(config, dataset.prompts, (item.prompt for item in dataset.train), device)
        self.system = System(config, prompts, device)
        components = self.system.components()
        self.monitor = ComponentMonitor(components)
        self.parameters = [p for parameters in components.values() for p in parameters]
        slow = {id(p) for name in ("policy", "baseline") for p in components.get(name, ())}
        others = [p for p in self.parameters if id(p) not in slow]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay, "slow": False},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "slow": False},
            {"params": [p for p in self.parameters if id(p) in slow], "weight_decay": 0.0, "slow": True},
        ]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)
        scaled = self.system.reduced == torch.float16
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=scaled)
        self.generator = torch.Generator().manual_seed(seed)
        self.schedules = {
            "lr": Schedule(config.lr, config.lr * config.lr_floor, config.lr_schedule),
            "size_weight": size_schedule(config.size_weight, self.steps_per_epoch),
        }
        self.started = time.perf_counter()

    @property
    def epoch(self) -> int:
        """Epochs begun."""
        return math.ceil(self.step / self.steps_per_epoch)

    def scheduled(self, step: int) -> dict[str, float]:
        """Return every scheduled value at a global step."""
        values = {name: schedule.value(step, self.total) for name, schedule in self.schedules.items()}
        return values | {"lr": values["lr"] * warm_up(step, self.config.warmup_steps)}

    # ------------------------------------------------------------------------------------------------------- one step

    def train_step(self) -> None:
        """Answer a batch under unchanged and changed prompts, learn from both, and remember what was solved."""
        system, values = self.system, self.scheduled(self.step)
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self.batches[0] != epoch:
            self.batches = epoch, self._epoch(epoch)
        batch = collate(self.batches[1][place])
        inputs, input_size, prompt, task, grids, target_size = (
            torch.from_numpy(array).to(self.device)
            for array in (
                batch.inputs, batch.input_size, batch.prompt, batch.task, batch.targets, batch.target_size
            )
        )  # fmt: skip
        answer = system.answer(inputs, input_size, prompt, self.generator, learning=True)
        demonstrated = None if system.prompts is None else system.prompts.colours[prompt]
        targets = loss.Targets(grids, target_size, inputs, demonstrated)
        terms, scores = self._terms(answer, targets, task)
        weighed = {name: system.weights[name] * terms[name] for name in system.weights}
        free_energy = torch.stack(list(weighed.values())).sum()
        total = self.config.efe_share * values["size_weight"] * free_energy
        if answer.action_logits is not None and answer.expected is not None:
            reward = scores[1].total - scores[0].total
            terms["policy"] = policy.policy_loss(
                answer.action_logits, answer.expected, answer.change, reward, self.config.policy_entropy
            )
            total = total + (1 - self.config.efe_share) * terms["policy"]
        if place == 0:
            self.term_norms = self._norms({name: terms[name] for name in (*weighed, "policy") if name in terms})
        norm = self._learn(total, values["lr"])
        written = 0
        if system.memory is not None and answer.text is not None and answer.changed_text is not None:
            good = scores[1].total / policy.HIGHEST_SCORE
            written = system.memory.write(answer.text, answer.changed_text, prompt, good)
        self._note("train_loss", total)
        self._note("grad_norm", norm)
        for name, value in terms.items():
            self._note(f"term/{name}", value)
        self._note("train_score_before", scores[0].total.mean())
        self._note("train_score_after", scores[1].total.mean())
        self._note(
            "train_hard_share", (loss.hard_cells(answer.after.logits[:, -1], grids).sum() / (grids < COLOURS).sum())
        )
        self._note("train_memory_hits", answer.hit.float().mean())
        self._note("memory_written", torch.tensor(float(written)))
        for number, name in enumerate(CHANGES):
            self._note(f"change/{name}", (answer.change == number).float().mean())
        self._note("examples", torch.tensor(float(len(inputs))))
        self.step += 1
        self.steps_noted += 1

    def _terms(
        self, answer: Answer, targets: loss.Targets, task: Tensor
    ) -> tuple[dict[str, Tensor], list[policy.Score]]:
        """Return every term of the loss, and the scores before and after the prompt was changed."""
        config, system = self.config, self.system
        both = (answer.before,) if system.prompts is None else (answer.before, answer.after)
        each = [
            loss.prediction_terms(prediction, system.agent.likelihood, targets, config.smoothing, config.hard_weight)
            for prediction in both
        ]
        terms = {name: torch.stack([found[name] for found in each]).mean() for name in each[0]}
        truth = F.one_hot(targets.grids, COLOURS + 1)[..., :COLOURS].float()
        from_target = system.reconstruct(truth, answer.prompt)
        found = [
            evaluation.reconstructed(system, prediction, embedding)
            for prediction, embedding in zip(both, (answer.prompt, answer.changed), strict=False)
        ]
        terms |= loss.backward_terms(from_target, found[-1], targets.inputs)
        if "consistency" in system.weights:
            terms["consistency"] = loss.consistency(
                answer.before.logits[:, -1], answer.after.logits[:, -1], targets.grids
            )
        if "prompt" in system.weights:
            similarity = system.similarity(targets.inputs, targets.grids, answer.prompt)
            terms["prompt"] = loss.prompt_term(similarity, task)
        scores = [
            policy.score(prediction.logits[:, -1], prediction.size, shown, targets.grids, targets.size, targets.inputs)
            for prediction, shown in zip(both, found, strict=True)
        ]
        return terms, [scores[0], scores[-1]]

    def _norms(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the norm of each term's own gradient by all parameters."""
        norms = {}
        for name, term in terms.items():
            found = torch.autograd.grad(term, self.parameters, retain_graph=True, allow_unused=True)
            parts = [gradient.float() for gradient in found if gradient is not None]
            norms[name] = float(torch.stack(torch._foreach_norm(parts)).norm()) if parts else 0.0
        return norms

    def _learn(self, total: Tensor, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.policy_lr if group["slow"] else lr
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.scaler.is_enabled() and not torch.isfinite(norm):
            # the scale was too large: the scaler leaves the step out and lowers it
            norm = torch.zeros_like(norm)
        else:
            self.monitor.after_backward()
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _note(self, name: str, value: Tensor) -> None:
        # kept on the device: one synchronisation an epoch, not one a step
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def _epoch(self, epoch: int) -> list[list[Item]]:
        return epoch_batches(
            self.dataset.train, self.config.batch_size, self.config.examples_per_task, self.seed, epoch
        )

    # ------------------------------------------------------------------------------------------------ around the steps

    def end_epoch(self) -> dict[str, Any]:
        """Return the row of the epoch that ends, without held-out metrics.

        Raises:
            DeadComponentError: After the first epoch, if a term of the loss or a component got no gradient.
            FloatingPointError: If the loss or the gradient is no longer finite.
            FrozenScheduleError: After the first epoch, if a schedule that should move did not.
        """
        values = self.scheduled(self.step - 1)
        sums = {name: float(total) for name, total in self.sums.items()}
        means = {name: total / self.steps_noted for name, total in sums.items()}
        examples = round(sums["examples"])
        del means["examples"]
        if not math.isfinite(means["train_loss"]) or not math.isfinite(means["grad_norm"]):
            raise FloatingPointError(
                f"The training loss is {means['train_loss']} and the gradient norm {means['grad_norm']} in epoch "
                f"{self.epoch}; lower lr ({self.config.lr}) or clip_norm."
            )
        if self.epoch == 1 and self.step > 1:
            moving = {name for name, schedule in self.schedules.items() if schedule.moves}
            require_movement(self.scheduled(0), values, moving)
            require_gradients({f"the loss term {name}": norm for name, norm in self.term_norms.items()})
        watched = self.monitor.end_epoch()
        row = {
            "epoch": self.epoch,
            "step": self.step,
            **values,
            **means,
            **{f"term_grad_norm/{name}": norm for name, norm in self.term_norms.items()},
            "examples": examples,
            "lm_grad_norm": watched.get("grad_norm/language_model", 0.0),
            "reward": means["train_score_after"] - means["train_score_before"],
            **watched,
        }
        if self.system.memory is not None:
            row |= {
                "memory_entries": len(self.system.memory.keys), "memory_threshold": self.system.memory.threshold,
            }  # fmt: skip
        self.sums, self.steps_noted = {}, 0
        return row

    def evaluate(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return held-out metrics, and the answers that they are of."""
        rows = evaluation.solve(self.system, self.dataset.held_out, 2 * self.config.batch_size)
        found = evaluation.metrics(rows, self.dataset)
        answers = evaluation.solve(self.system, self.dataset.validation, 2 * self.config.batch_size)
        validated = evaluation.metrics(answers, self.dataset)
        found["validation_score"] = validated["exact_accuracy"] + CELLS_COUNT * validated["cell_accuracy"]
        if self.dataset.official:
            answers = evaluation.solve(self.system, self.dataset.official, 2 * self.config.batch_size)
            official = evaluation.metrics(answers, self.dataset)
            found |= {f"official_{name}": official[name] for name in OFFICIAL}
        return found, rows

    def lap(self) -> float:
        """Return the wall time since the last call, or since the start of training, in seconds."""
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return seconds

    def exported(self) -> bytes:
        """Return a file with the weights, the memory and the configuration, for `torch.load`."""
        buffer = io.BytesIO()
        torch.save(
            {
                "config": asdict(self.config),
                "tasks": list(self.dataset.ids),
                "system": self._weights(),
                "memory": self.system.memory.state_dict() if self.system.memory else {},
            },
            buffer,
        )
        return buffer.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run's future depends on."""
        return {
            "system": self._weights(),
            "memory": self.system.memory.state_dict() if self.system.memory else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "monitor": self.monitor.state_dict(),
            "generator": self.generator.get_state(),
            "seconds": time.perf_counter() - self.started,
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the configuration must be the same."""
        self.system.load_state_dict(state["system"], strict=False)
        if self.system.memory is not None:
            self.system.memory.load_state_dict(state["memory"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.monitor.load_state_dict(state["monitor"])
        self.generator.set_state(state["generator"].cpu())
        for name in self._PLAIN:
            setattr(self, name, state[name])
        self.started = time.perf_counter() - state["seconds"]

    _PLAIN = ("step", "steps_noted", "sums", "term_norms", "facts", "metrics")

    def _weights(self) -> dict[str, Tensor]:
        # a frozen language model is known by its name
        trained = {name for name, parameter in self.system.named_parameters() if parameter.requires_grad}
        kept = self.system.state_dict()
        return {n: tensor for n, tensor in kept.items() if n in trained or not n.startswith("prompts.")}


def size_schedule(text: str, steps_per_epoch: int) -> Schedule:
    """Return the schedule of the size weight, over `SIZE_EPOCHS` epochs where its text gives no length."""
    schedule = Schedule.parse(text)
    if schedule.moves and text.count(":") == 2:
        return Schedule(schedule.start, schedule.end, schedule.shape, steps=SIZE_EPOCHS * steps_per_epoch)
    return schedule


def shown(rows: Sequence[Mapping[str, Any]], trainer: Trainer, limit: int) -> list[dict[str, Any]]:
    """Return the first ``limit`` answers, those that are nearly right first, for pictures: grids as rows of digits."""
    prompts = trainer.system.prompts
    ordered = sorted(rows, key=lambda row: -row["score_after"])
    step = max(1, len(ordered) // limit)
    found = []
    for row in ordered[::step][:limit]:
        item = row["item"]
        number = CHANGES.index(row["change"])
        texts = prompts.texts[item.prompt] if prompts else ["", *[""] * (len(CHANGES) - 1)]
        found.append(
            {
                "task": trainer.dataset.ids[item.task],
                "input": _text(item.pair.input),
                "target": _text(item.pair.output),
                "before": _text(row["before"]),
                "after": _text(row["after"]),
                "change": row["change"],
                "prompt": texts[0],
                "changed_prompt": texts[number],
                "memory": row["memory"],
                "score_before": row["score_before"],
                "score_after": row["score_after"],
            }
        )
    return found


def _text(grid: Any) -> str:
    return "/".join("".join(map(str, row)) for row in grid.tolist())
