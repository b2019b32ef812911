"""Pre-training of the Champion on the demonstration pairs of all tasks; the test pairs are only measured on.

`pretrain(config, run)` is an ordinary training loop: it runs in a plain process, straight in a Tune trial, or as a Ray
Train worker, and resumes from `run.checkpoint()`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.arc import Example, Task, fingerprint, load_tasks, test_examples, training_examples
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.data import collate, example_tokens, padded_lengths
from trainables.atomic_lora.evaluation import autoregressive, teacher_forced
from trainables.atomic_lora.loss import row_losses
from trainables.atomic_lora.model import Champion, save_champion
from trainables.common.context import Run
from trainables.common.folder import Folder
from trainables.common.monitor import ComponentMonitor
from trainables.common.precision import has_fast_bf16
from trainables.common.schedules import cosine_warm_restarts

# tokens of all views of one pair in an epoch, where ``views_per_pair`` allows more than one
VIEW_TOKENS = 400


def pretrain(settings: Mapping[str, Any], run: Run) -> None:
    """Train a Champion and report once an epoch; every ``eval_every`` epochs and at the end with held-out metrics.

    Args:
        settings: ``config`` (`ChampionConfig` fields), ``data``, ``tasks`` (ids, or None for all), ``seed`` and
            ``folder``, where the trained ``champion.safetensors`` goes.
        run: Where it runs. Checkpoints hold ``champion.safetensors`` and ``state.pt``.

    Raises:
        DeadComponentError: If a component gets no gradient through the first epoch.
        FloatingPointError: If the loss or the gradient is no longer finite.
    """
    reported = time.perf_counter()
    config = ChampionConfig(**settings["config"])
    tasks = load_tasks(settings["data"], settings["tasks"])
    seed, device = settings["seed"], run.device
    bf16 = has_fast_bf16(device)
    torch.manual_seed(seed)
    model = Champion(config).to(device)
    # before a checkpoint is loaded, so that update norms of a resumed run still count from its initial weights
    monitor = ComponentMonitor(model.components())
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(config.beta1, config.beta2))
    held_out = [example for task in tasks.values() for example in test_examples(task)]
    facts: dict[str, Any] = {"data": settings["data"], "data_fingerprint": fingerprint(tasks), "seed": seed}
    first_epoch, step = 0, 0
    resumed = run.checkpoint()
    if resumed is None:
        facts["untrained"] = teacher_forced(model, held_out, device, bf16=bf16) | autoregressive(
            model, held_out, device
        )
    else:
        state = torch.load(resumed / "state.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, step, facts = state["epoch"], state["step"], state["facts"]
        if first_epoch == config.epochs:
            # killed between its end and the note of it
            run.report(state["metrics"])
            return
    cycle = first_cycle(config.epochs * steps_per_epoch(tasks, config))
    for epoch in range(first_epoch + 1, config.epochs + 1):
        losses, norms, examples, tokens = [], [], 0, 0
        model.train()
        for batch in epoch_batches(tasks, config, seed, epoch):
            lr = config.lr * cosine_warm_restarts(step, cycle, warmup=config.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            grids = collate(batch).to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                logits = model(grids)
            total, count = row_losses(logits, grids.target[:, 0])
            loss = (total / count).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            monitor.after_backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm))
            optimizer.step()
            losses.append(loss.detach())
            step, examples = step + 1, examples + len(batch)
            tokens += sum(example_tokens(example) for example in batch)
        train_loss = float(torch.stack(losses).mean())
        grad_norm = float(torch.stack(norms).mean())
        # the last step of an epoch can break the weights while every loss so far was finite
        if not np.isfinite(train_loss) or not np.isfinite(grad_norm):
            raise FloatingPointError(
                f"The training loss is {train_loss} and the gradient norm {grad_norm} in epoch {epoch}; "
                f"lower lr ({config.lr}) or clip_norm."
            )
        metrics: dict[str, Any] = {
            "epoch": epoch, "step": step, "train_loss": train_loss, "lr": lr, "examples": examples, "tokens": tokens,
            "grad_norm": grad_norm, **monitor.end_epoch(),
        }  # fmt: skip
        last = epoch == config.epochs
        evaluated = last or epoch % config.eval_every == 0
        if evaluated:
            metrics |= teacher_forced(model, held_out, device, bf16=bf16)
        if last:
            metrics |= autoregressive(model, held_out, device)
            metrics |= {f"untrained_{name}": value for name, value in facts["untrained"].items()}
        # Evaluations belong to the time of the trial as well, so the epochs' seconds add up to it.
        now = time.perf_counter()
        metrics["seconds"], reported = now - reported, now
        if not evaluated:
            run.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "champion.safetensors")
            save_champion(file, model, config, facts | {"metrics": {k: v for k, v in metrics.items() if "/" not in k}})
            if last:
                Folder(settings["folder"]).write(file.name, file.read_bytes())
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch,
                "step": step,
                "facts": facts,
                "metrics": metrics,
            }
            torch.save(state, Path(folder, "state.pt"))
            run.report(metrics, Path(folder))


def steps_per_epoch(tasks: Mapping[str, Task], config: ChampionConfig) -> int:
    """Number of optimizer steps in an epoch."""
    count = sum(views_of(task, config) for task in tasks.values())
    return max(1, -(-count // config.batch_size))


def views_of(task: Task, config: ChampionConfig) -> int:
    """Number of examples of a task in an epoch: small ones are cheap and count as much in a mean over tasks."""
    return len(task.train) * max(1, min(config.views_per_pair, VIEW_TOKENS // task.tokens))


def first_cycle(steps: int) -> int:
    """Length in steps of the first of three cosine cycles, each twice as long as the last, that fill ``steps``."""
    return -(-steps // 7)


def epoch_batches(tasks: Mapping[str, Task], config: ChampionConfig, seed: int, epoch: int) -> Iterator[list[Example]]:
    """Yield one epoch's batches in random order: `views_of` every task, similar sizes together."""
    examples = [
        example
        for task in tasks.values()
        for example in training_examples(task, views_of(task, config), seed, epoch, avoid=task.test)
    ]
    rng = np.random.default_rng([seed, epoch])
    # a batch is padded to its longest part, so examples whose longest parts are alike go together
    shuffled = (examples[i] for i in rng.permutation(len(examples)))
    ordered = sorted(shuffled, key=lambda example: max(padded_lengths(example)))
    size = config.batch_size
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    for index in rng.permutation(len(batches)):
        yield batches[index]
