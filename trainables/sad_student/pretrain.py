"""The teacher: a LoRA adapter that learns the generated tasks from their expert.

``python sweeps/sad_student.py --train-teacher FOLDER`` writes an adapter in PEFT's format with ``run.json`` beside it.
The one that ships was made so.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from trainables.common.errors import InputError
from trainables.common.precision import has_fast_bf16
from trainables.common.schedules import cosine, warm_up
from trainables.sad_student.environments import problems
from trainables.sad_student.models import cut_model, hidden_states, load_model, load_tokenizer
from trainables.sad_student.rollout import outcome, play
from trainables.sad_student.tokens import SPAN_IDS, Tokens, Vocabulary, batches, padded
from trainables.sad_student.trajectories import WRITTEN, expert_trajectory

# The kinds of its training problems in turn. A look-up is learned at once; counting in sums and trees of rooms take
# longest.
MIX = ("lookup", "hops", "sums", "rooms", "sums", "rooms")


@dataclass(frozen=True)
class TeacherConfig:
    """How a teacher is trained.

    Attributes:
        problems: Training problems, each of which the expert does once.
        batch_size: Trajectories of a step.
        lr: Highest learning rate; cosine to 0.
        warmup_steps: Steps of its linear warm-up.
        rank, alpha: Of the LoRA adapter on all linear layers.
        clip_norm: Largest norm of the gradient.
        evaluated: Validation problems on which its success is measured.
        seed: Of the adapter and of the order.
    """

    problems: int = 4800
    batch_size: int = 8
    lr: float = 1e-3
    warmup_steps: int = 10
    rank: int = 8
    alpha: int = 16
    clip_norm: float = 1.0
    evaluated: int = 240
    seed: int = 0


def train_teacher(base: str, folder: Path, config: TeacherConfig, device: str = "cpu") -> dict[str, Any]:
    """Train an adapter, write it and ``run.json`` into ``folder``, and return what ``run.json`` holds.

    Raises:
        InputError: If the base cannot be loaded, or the folder holds an adapter.
    """
    from peft import LoraConfig, get_peft_model

    if (folder / "run.json").exists():
        raise InputError(f"--train-teacher {folder} holds a teacher; give a new folder.")

    started = time.perf_counter()
    tokenizer = load_tokenizer(base)
    trajectories = [expert_trajectory(p) for p in problems("train", config.problems, config.seed, MIX)]
    vocabulary = Vocabulary.of(tokenizer, [trajectory.text for trajectory in trajectories])
    rows = [vocabulary.tokens(trajectory) for trajectory in trajectories]
    torch.manual_seed(config.seed)
    model = cut_model(load_model(base, device), vocabulary.kept)
    model = model.to(torch.bfloat16) if has_fast_bf16(device) else model
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, lora)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.0)
    order = np.random.default_rng(config.seed).permutation(len(rows)).tolist()
    steps = batches([len(row.ids) for row in rows], config.batch_size, order)
    np.random.default_rng(config.seed + 1).shuffle(steps)
    tokens, losses = 0, []
    for step, batch in enumerate(steps):
        loss = written_loss(adapted.base_model.model, [rows[i] for i in batch], device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * cosine(step, len(steps)) * warm_up(step, config.warmup_steps)
        optimizer.step()
        tokens += sum(len(rows[i].ids) for i in batch)
        losses.append(float(loss.detach()))
        if step % 10 == 9 or step + 1 == len(steps):
            seconds = time.perf_counter() - started
            left = seconds / (step + 1) * (len(steps) - step - 1)
            print(
                f"step {step + 1}/{len(steps)}: loss {np.mean(losses[-10:]):.4f}, {tokens / seconds:.0f} tokens/s, "
                f"{left:.0f} s left",
                flush=True,
            )
    save_adapter(adapted, folder, base)
    trained_seconds = time.perf_counter() - started
    model = cut_model(load_model(base, device, str(folder)), vocabulary.kept)
    model = model.to(torch.bfloat16) if has_fast_bf16(device) else model
    held_out = {
        problem.name: problem.environment() for problem in problems("validation", config.evaluated, config.seed)
    }
    measured = outcome(play(held_out, {"teacher": model}, vocabulary)) if held_out else {}
    record = {
        "base": base,
        "config": dataclasses.asdict(config),
        "tokens": tokens,
        "final_loss": float(np.mean(losses[-10:])),
        "training_seconds": round(trained_seconds),
        "seconds": round(time.perf_counter() - started),
        "threads": torch.get_num_threads(),
        "device": device if device != "cpu" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "validation": measured,
    }
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def written_loss(model: Any, rows: list[Tokens], device: str) -> torch.Tensor:
    """Return the mean cross-entropy of what the agent wrote itself in some trajectories."""
    ids, mask = (t.to(device) for t in padded([row.ids for row in rows]))
    spans, _ = (t.to(device) for t in padded([row.spans for row in rows], fill=SPAN_IDS["other"]))
    wanted = torch.isin(spans, torch.tensor([SPAN_IDS[span] for span in WRITTEN], device=device))[:, 1:]
    hidden = hidden_states(model, ids, mask)[:, :-1][wanted]
    return F.cross_entropy(model.lm_head(hidden).float(), ids[:, 1:][wanted])


def save_adapter(adapted: Any, folder: Path, base: str) -> None:
    """Write an adapter in PEFT's format, in bfloat16, without the embeddings, which are cut but not trained."""
    from safetensors.torch import load_file, save_file

    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    # PEFT's empty model card
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file)
    file.chmod(0o644)
