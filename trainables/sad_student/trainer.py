"""One worker's training of a student, step by step, and the whole of its state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.common.monitor import ComponentMonitor, require_movement
from trainables.common.precision import has_fast_bf16
from trainables.common.schedules import DECAYS, Schedule, warm_up
from trainables.sad_student.config import SadConfig
from trainables.sad_student.data import Material, computing
from trainables.sad_student.loss import Judged, consistency, guided_loss, span_loss
from trainables.sad_student.models import hidden_states
from trainables.sad_student.rollout import Episode, outcome, play
from trainables.sad_student.teacher import Targets
from trainables.sad_student.tokens import SPAN_IDS, Tokens, padded
from trainables.sad_student.trajectories import SPANS, WRITTEN, Trajectory

LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
KINDS_OF_LAYERS = ("_proj", "norm", "embed_tokens", "lm_head")
WEIGHTS = tuple(f"{span}_weight" for span in SPANS)
# weight of a span in the losses that know none
UNWEIGHTED = {"ce": {SPAN_IDS[span]: 1.0 for span in WRITTEN}, "token_kd": dict.fromkeys(SPAN_IDS.values(), 1.0)}


@dataclass(frozen=True)
class Item:
    """A trajectory to learn from.

    Attributes:
        tokens: Its tokens.
        targets: What the teacher says of them.
        own: [T] whether the student wrote a token; None for trajectories of the training set.
        turns: [T] turn of each token.
    """

    tokens: Tokens
    targets: Targets
    own: np.ndarray | None = None
    turns: np.ndarray | None = None


class Trainer:
    """One worker's student, optimizer and everything that a checkpoint must hold.

    Args:
        config: The settings.
        material: What is learned from.
        seed: Of the adapter's weights, the order of trajectories and the roll-outs.
        device: Torch device.
        rank: Index of this worker.
        world_size: Number of workers; each has an equal share of each batch.

    Attributes:
        step: Optimizer steps taken.
        total: Steps of the run.
        steps_per_epoch: Steps of an epoch.
        metrics: The last row.
    """

    def __init__(
        self, config: SadConfig, material: Material, seed: int, device: str, rank: int = 0, world_size: int = 1
    ) -> None:
        self.config, self.material, self.seed, self.device = config, material, seed, device
        self.rank, self.world_size = rank, world_size
        items = [Item(*pair) for pair in zip(material.train, material.train_targets, strict=True)]
        # the rest of the budget of teacher tokens is spent on-policy; the last roll-out may exceed it
        kept = len(items) - round(len(items) * config.on_policy) if config.loss == "guided" else len(items)
        self.items, self.budget = items[:kept], sum(len(item.tokens.ids) for item in items)
        self.teacher_tokens = sum(len(item.tokens.ids) for item in self.items)
        self.buffer: list[Item] = []
        self.per_step = config.batch_size * config.accumulation
        self.steps_per_epoch = max(1, len(items) // self.per_step)
        self.total = self.steps_per_epoch * config.epochs
        self.guided_from = self.total - int(self.total * config.on_policy) if config.loss == "guided" else self.total
        self.step = 0
        self.metrics: dict[str, Any] = {}
        torch.manual_seed(seed)
        self.bf16 = config.precision == "auto" and has_fast_bf16(device)
        self.student, self.adapted = prepared(material.student, config)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.monitor = ComponentMonitor(components(self.student))
        matrices = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=torch.device(device).type in ("cpu", "cuda"))
        self.schedules = schedules_of(config)
        self.judged = self._judged("reverse_kl" if config.loss == "guided" else config.divergence)
        self.judged_offline = self._judged(config.divergence)
        self.sums: dict[str, Any] = {}
        self.tokens = 0
        self.started, self.seconds_aside = time.perf_counter(), 0.0

    def _judged(self, kind: str) -> Judged:
        config = self.config
        wants_entropy = config.entropy_weight != 0
        return Judged(kind, config.mixture, config.temperature, config.adaptive_temperature, wants_entropy)

    # ------------------------------------------------------------------------------------------------------- one step

    def scheduled(self, step: int) -> dict[str, float]:
        """Return every scheduled value that takes part at a global step."""
        values = {name: schedule.value(step, self.total) for name, schedule in self.schedules.items()}
        if "teacher_share" in values:
            later = max(0, step - self.guided_from)
            values["teacher_share"] = self.schedules["teacher_share"].value(
                later, max(1, self.total - self.guided_from)
            )
        decay = DECAYS[self.config.lr_schedule](step, self.total)
        return values | {"lr": self.config.lr * decay * warm_up(step, self.config.warmup_steps)}

    def train_step(self) -> None:
        """Learn from the trajectories of one step."""
        values = self.scheduled(self.step)
        rows = self.rows_at(self.step, values)
        self.optimizer.zero_grad(set_to_none=True)
        self.student.train()
        # similar lengths in one forward pass
        rows = sorted(rows, key=lambda item: -len(item.tokens.ids))
        for start in range(0, len(rows), self.config.batch_size):
            mine = rows[start : start + self.config.batch_size][self.rank :: self.world_size]
            loss = self.loss(mine, values)
            (loss / self.config.accumulation).backward()
            self._note("train_loss", loss / self.config.accumulation)
            self.tokens += sum(len(item.tokens.ids) for item in mine) * self.world_size
        self._learn(values["lr"])
        self.step += 1

    def rows_at(self, step: int, values: Mapping[str, float]) -> list[Item]:
        """Return the trajectories of a step: a function of seed and step, but for those that were played on-policy."""
        items = self.items
        if step >= self.guided_from:
            if (step - self.guided_from) % self.config.rollout_every == 0 and self.teacher_tokens < self.budget:
                self.buffer = self.on_policy(values["teacher_share"]) or self.buffer
            items = self.buffer or self.items
        depth = int(values.get("depth", 10**9))
        shallow = [k for k, item in enumerate(items) if item.tokens.trajectory.difficulty <= depth]
        eligible = shallow or range(len(items))
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(eligible))
        return [items[eligible[order[(place * self.per_step + k) % len(order)]]] for k in range(self.per_step)]

    def loss(self, rows: Sequence[Item], values: Mapping[str, float]) -> Tensor:
        """Return the loss of some trajectories.

        Args:
            rows: Of the training set, or all played on-policy.
            values: Scheduled values.
        """
        config, on_policy = self.config, rows[0].own is not None
        weights = UNWEIGHTED.get(config.loss) or {SPAN_IDS[span]: values[f"{span}_weight"] for span in SPANS}
        picked = self.pick(rows, None if on_policy else [span for span, weight in weights.items() if weight])
        named = None if config.loss == "ce" else picked.ids
        judge = self.judged if on_policy else self.judged_offline
        found = judge(picked.hidden, self.student.lm_head, picked.targets, named, picked.log_p)
        for span in WRITTEN:
            mask = picked.spans == SPAN_IDS[span]
            if "kl" in found and mask.any():
                self._note(f"train_kl/{span}", found["kl"][mask].mean() / config.accumulation)
        if on_policy:
            own, turns = picked.extra  # type: ignore[misc]
            loss = guided_loss(found["divergence"], own, turns, config.trust)
        elif config.loss == "ce":
            loss = found["ce"].mean()
        elif config.loss == "token_kd":
            loss = found["divergence"].mean()
        else:
            loss = span_loss(found["divergence"], picked.spans, weights)
        if config.entropy_weight:
            loss = loss - config.entropy_weight * found["entropy"].mean()
        if config.consistency_weight and "divergence" in found:
            first, second = (SPAN_IDS[span] for span in WRITTEN)
            apart = consistency(found["divergence"], picked.spans, picked.rows, first, second)
            loss = loss + config.consistency_weight * apart
        return loss

    def pick(self, rows: Sequence[Item], spans: Sequence[int] | None) -> Picked:
        """Return what the student and the teacher say of the tokens in some spans; None for all.

        The first token of a trajectory is never predicted.
        """
        ids, mask = padded([item.tokens.ids for item in rows])
        of_span, _ = padded([item.tokens.spans for item in rows], fill=-1)
        wanted = of_span[:, 1:] >= 0 if spans is None else torch.isin(of_span[:, 1:], torch.tensor(list(spans)))
        chosen = [row[: len(item.tokens.ids) - 1].numpy() for row, item in zip(wanted, rows, strict=True)]
        kept = [(item.targets, keep) for item, keep in zip(rows, chosen, strict=True)]
        said = [(targets.ids[1:][keep], targets.log_p[1:][keep]) for targets, keep in kept]
        named, log_p = (torch.from_numpy(np.concatenate(part)).to(self.device) for part in zip(*said, strict=True))
        extra = None
        if rows[0].own is not None:
            own = torch.from_numpy(np.concatenate([i.own[1:][k] for i, k in zip(rows, chosen, strict=True)]))  # type: ignore[index]
            # turns of different trajectories are different ones
            turns = [i.turns[1:][k] + 1000 * n for n, (i, k) in enumerate(zip(rows, chosen, strict=True))]  # type: ignore[index]
            extra = own.to(self.device), torch.from_numpy(np.concatenate(turns)).to(self.device)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            hidden = hidden_states(self.student, ids.to(self.device), mask.to(self.device))[:, :-1][wanted]
        return Picked(
            hidden.float(), ids[:, 1:][wanted].to(self.device), of_span[:, 1:][wanted].to(self.device),
            wanted.nonzero()[:, 0].to(self.device), named, log_p, extra,
        )  # fmt: skip

    def on_policy(self, share: float) -> list[Item]:
        """Play training problems, some turns by the teacher; return what has tokens of the student, judged."""
        config, material = self.config, self.material
        start = self.step * config.rollouts
        chosen = [material.practice[(start + k) % len(material.practice)] for k in range(config.rollouts)]
        models = {"student": self.evaluated()} | ({"teacher": material.teacher.player} if share > 0 else {})
        with self.aside():
            episodes = play(
                {problem.name: problem.environment() for problem in chosen}, models, material.vocabulary,
                shares={"student": 1 - share, "teacher": share}, temperature=config.rollout_temperature,
                seed=self.seed * 1_000_003 + self.step,
            )  # fmt: skip
            episodes = [episode for episode in episodes if "student" in episode.writers]
            rows = [episode_tokens(episode) for episode in episodes]
            targets = material.teacher.judge(rows, config.top_k)
        self.teacher_tokens += sum(len(row.ids) for row in rows)
        self.teacher_tokens += sum(writer == "teacher" for episode in episodes for writer in episode.writers)
        return [
            Item(row, said, np.array([writer == "student" for writer in episode.writers]), np.array(episode.turn_of))
            for row, said, episode in zip(rows, targets, episodes, strict=True)
        ]

    def _learn(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.world_size > 1:
            _average([p.grad for p in self.parameters if p.grad is not None], self.world_size)
        self.monitor.after_backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self._note("grad_norm", norm)
        self.optimizer.step()

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
            moving = {name for name, schedule in self.schedules.items() if schedule.moves and name != "teacher_share"}
            require_movement(self.scheduled(0), values, moving)
        seconds = time.perf_counter() - self.started - self.seconds_aside
        row = {
            "epoch": epoch, "step": self.step, **values, **means, "examples": self.per_step * self.steps_per_epoch,
            "tokens": self.tokens, "tokens_per_second": self.tokens / seconds, "teacher_tokens": self.teacher_tokens,
            "trained_parameters": sum(p.numel() for p in self.parameters), **self.monitor.end_epoch(),
        }  # fmt: skip
        self.sums, self.tokens = {}, 0
        return row

    def measure_spans(self) -> dict[str, float]:
        """Return KL from the teacher and token accuracy by span on the held-out trajectories."""
        rows = [Item(*pair) for pair in zip(self.material.held_out, self.material.held_out_targets, strict=True)]
        plain, parts = Judged("forward_kl", 0.5, 1.0, False, False), []
        self.student.eval()
        with self.aside(), torch.inference_mode():
            for start in range(0, len(rows), 16):
                picked = self.pick(rows[start : start + 16], None)
                found = plain(picked.hidden, self.student.lm_head, picked.targets, picked.ids, picked.log_p)
                parts.append((picked.spans, found["kl"], found["right"], found["ce"]))
        spans, kl, right, ce = (torch.cat(part) for part in zip(*parts, strict=True))
        row = {
            "eval_loss": float(
                ce[torch.isin(spans, torch.tensor([SPAN_IDS[s] for s in WRITTEN], device=spans.device))].mean()
            )
        }
        for span, number in SPAN_IDS.items():
            mask = spans == number
            if mask.any():
                row[f"kl_{span}"] = float(kl[mask].mean())
                row |= {f"token_accuracy_{span}": float(right[mask].mean())} if span in WRITTEN else {}
        return row

    def evaluate(self, test: bool = False) -> dict[str, float]:
        """Return the outcome of validation episodes, or of test episodes, both greedy."""
        material = self.material
        problems = material.test if test else material.validation
        with self.aside():
            episodes = play(
                {p.name: p.environment() for p in problems}, {"student": self.evaluated()}, material.vocabulary
            )
        return {f"test_{n}" if test else n: value for n, value in outcome(episodes).items()}

    def shown(self) -> dict[str, Any]:
        """Return one validation episode with its spans and the KL from the teacher of each token, for a picture."""
        problem = self.material.validation[len(self.material.validation) // 2]
        with self.aside():
            (episode,) = play(
                {problem.name: problem.environment()}, {"student": self.evaluated()}, self.material.vocabulary
            )
            row = episode_tokens(episode)
            (targets,) = self.material.teacher.judge([row], self.config.top_k)
            with torch.inference_mode():
                picked = self.pick([Item(row, targets)], None)
                found = Judged("forward_kl", 0.5, 1.0, False, False)(
                    picked.hidden, self.student.lm_head, picked.targets, picked.ids, picked.log_p
                )
        texts = [self.material.vocabulary.decode([i]) for i in row.ids]
        return {
            "problem": problem.name, "success": episode.environment.success, "texts": texts,
            "spans": [SPANS[i] for i in row.spans], "kl": [None, *found["kl"].tolist()],
        }  # fmt: skip

    def evaluated(self) -> Any:
        """Return a copy of the student for roll-outs, its adapter merged."""
        copied = computing(self.adapted if self.adapted is not None else self.student, self.device)
        return copied.merge_and_unload() if self.adapted is not None else copied

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time spent in the ``with`` block out of the epoch's throughput, but not out of its seconds."""
        begun = time.perf_counter()
        yield
        self.seconds_aside += time.perf_counter() - begun

    def lap(self) -> float:
        """Return the wall time since the last call, or since the start of training, in seconds."""
        now = time.perf_counter()
        seconds, self.started, self.seconds_aside = now - self.started, now, 0.0
        return seconds

    def export(self, folder: Path) -> None:
        """Write the student for ``from_pretrained``: its whole vocabulary, its adapter merged, in bfloat16."""
        self.material.export(self.evaluated(), folder)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run's future depends on."""
        return {
            "weights": [p.detach().clone() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "buffer": [_packed(item) for item in self.buffer],
            "sums": self.sums,
            **{name: getattr(self, name) for name in ("step", "metrics", "teacher_tokens", "tokens")},
            "seconds": time.perf_counter() - self.started,
            "seconds_aside": self.seconds_aside,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["weights"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])
        self.buffer = [self._unpacked(packed) for packed in state["buffer"]]
        self.sums = dict(state["sums"])
        for name in ("step", "metrics", "teacher_tokens", "tokens"):
            setattr(self, name, state[name])
        self.started = time.perf_counter() - state["seconds"]
        self.seconds_aside = state["seconds_aside"]

    def _unpacked(self, packed: Mapping[str, Any]) -> Item:
        arrays = {name: value.numpy() for name, value in packed.items() if isinstance(value, Tensor)}
        trajectory = Trajectory(packed["name"], (), difficulty=packed["difficulty"])
        tokens = Tokens(arrays["ids"], arrays["spans"], trajectory)
        return Item(tokens, Targets(arrays["named"], arrays["log_p"]), arrays["own"], arrays["turns"])

    def _note(self, name: str, value: Tensor) -> None:
        # kept on the device: one synchronisation an epoch, not one a step
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()


@dataclass(frozen=True)
class Picked:
    """N tokens of some trajectories.

    Attributes:
        hidden: [N, H] the student's hidden states before them, float32.
        targets: [N] the tokens.
        spans: [N] ids of spans.
        rows: [N] trajectory.
        ids, log_p: [N, K] what the teacher says.
        extra: On-policy: [N] whether the student wrote them, and [N] their turn.
    """

    hidden: Tensor
    targets: Tensor
    spans: Tensor
    rows: Tensor
    ids: Tensor
    log_p: Tensor
    extra: tuple[Tensor, Tensor] | None = None


def prepared(student: Any, config: SadConfig) -> tuple[Any, Any]:
    """Return the student ready to be trained, and PEFT's model around it where it has an adapter."""
    if not config.rank:
        return student.requires_grad_(True), None
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(LORA_LAYERS), task_type="CAUSAL_LM")
    adapted = get_peft_model(student, lora)
    return adapted.base_model.model, adapted


def components(student: Any) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters by component: a kind of layer."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            parts = [part for part in name.split(".") if part.endswith(KINDS_OF_LAYERS)]
            found.setdefault(parts[-1] if parts else "other", []).append(parameter)
    return found


def episode_tokens(episode: Episode) -> Tokens:
    return Tokens(np.array(episode.ids, dtype=np.int64), np.array(episode.spans, dtype=np.int8), episode.trajectory)


def schedules_of(config: SadConfig) -> dict[str, Schedule]:
    """Return the schedules that take part with a loss, by name."""
    names = ["depth"]
    if config.loss in ("sad", "guided"):
        names += WEIGHTS
    if config.loss == "guided":
        names.append("teacher_share")
    return {name: Schedule.parse(getattr(config, name)) for name in names}


def _packed(item: Item) -> dict[str, Any]:
    arrays = {
        "ids": item.tokens.ids, "spans": item.tokens.spans, "named": item.targets.ids, "log_p": item.targets.log_p,
        "own": item.own, "turns": item.turns,
    }  # fmt: skip
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()} | {
        "name": item.tokens.trajectory.name,
        "difficulty": item.tokens.trajectory.difficulty,
    }


def _average(tensors: list[Tensor], world_size: int) -> None:
    """Average tensors of all workers in place, in one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, mean in zip(tensors, (flat / world_size).split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
