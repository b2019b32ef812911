"""The settings of the family, as plain frozen dataclasses: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# what a base's name begins with where it is a Hugging Face model's, on the hub or in a folder
HUB = "hf:"
# adapters in training at once where nobody says otherwise: on a CPU 4 to 32 are as fast (benchmarks/README.md); on a
# GPU as many as a timing finds, at most this many
CPU_SLOTS, CUDA_SLOTS = 8, 256


@dataclass(frozen=True)
class ChampionConfig:
    """The Champion and its pre-training: the published settings but for those that `docs/log.md` explains.

    ``views_per_pair`` is the most examples that an epoch draws of a pair; large pairs get fewer, at least one.
    ``eval_every`` counts the epochs between evaluations on held-out pairs, which are also its checkpoints.
    """

    width: int = 160
    heads: int = 4
    feedforward: int = 640
    encoder_layers: int = 1
    decoder_layers: int = 3
    context_width: int = 32
    context_heads: int = 8
    context_feedforward: int = 2048
    architecture: Literal["autoregressive"] = "autoregressive"
    lr: float = 1.849e-3
    beta1: float = 0.95
    beta2: float = 0.999
    warmup_steps: int = 500
    batch_size: int = 32
    epochs: int = 100
    clip_norm: float = 1.0
    views_per_pair: int = 1
    eval_every: int = 5


@dataclass(frozen=True)
class LoRAConfig:
    """One adapter and its training, whatever it is trained on.

    Attributes:
        rank: LoRA rank r.
        alpha: LoRA alpha; the update is scaled by alpha / rank.
        target_modules: Names (or dotted endings of names) of the linear layers that get an adapter.
        lr_multiple: Learning rate as a multiple of the one the base was trained with.
        lr_schedule: Shape of the learning rate over the adapter's own steps.
        weight_decay: Decoupled weight decay of AdamW.
        batch_size: Examples per step.
        epochs: Most epochs an adapter may train.
        patience: Epochs without an improvement of ``eval_loss`` by ``min_delta`` after which it stops.
        min_delta: Smallest improvement that counts.
        clip_norm: Largest norm of the adapter's own gradient.
        report_every: Epochs between two rungs: reports, checkpoints and ASHA decisions happen there.
        export_dtype: Floating-point type of the adapter's file; ``base``: that of the base as it was loaded. Training
            and its checkpoints are in float32.
    """

    rank: int = 16
    alpha: float = 32.0
    target_modules: tuple[str, ...] = ("linear1", "linear2")
    lr_multiple: float = 0.1
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.01
    batch_size: int = 4
    epochs: int = 50
    patience: int = 10
    min_delta: float = 0.001
    clip_norm: float = 1.0
    report_every: int = 5
    export_dtype: Literal["base", "float32", "bfloat16"] = "base"


@dataclass(frozen=True)
class AdapterConfig(LoRAConfig):
    """An adapter for an ARC task.

    Attributes:
        examples_per_epoch: Augmented examples drawn for each epoch.
        validation_pairs: Demonstration pairs kept out of training (of tasks with at least three) for ``eval_loss``;
            with 0 the loss is measured on the demonstrations in colours that training never shows.
    """

    examples_per_epoch: int = 32
    validation_pairs: int = 0


@dataclass(frozen=True)
class TextConfig(LoRAConfig):
    """An adapter for a text task.

    Attributes:
        examples_per_epoch: Rows drawn for each epoch; 0 for all.
        loss: Which tokens count: those of completions, or all.
        max_tokens: Tokens of a row at most, and never more than the base reads.
        too_long: What becomes of a longer row: it is cut at its end, or left out.
        answers: How generated answers are compared with the completions: not at all, by exact match but for white
            space around them, or by a function ``package.module:function`` of answer and completion that returns a
            number from 0 to 1.
        answer_tokens: Tokens of a generated answer at most.
    """

    target_modules: tuple[str, ...] = ("all-linear",)
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = 0.0
    batch_size: int = 8
    epochs: int = 5
    patience: int = 3
    report_every: int = 1
    examples_per_epoch: int = 0
    loss: Literal["completion", "all"] = "completion"
    max_tokens: int = 1024
    too_long: Literal["cut", "leave_out"] = "cut"
    answers: str = "none"
    answer_tokens: int = 64


@dataclass(frozen=True)
class CanvasConfig:
    """The canvas model (`trainables.atomic_lora.canvas`) and its training.

    Attributes:
        width: Channels of a patch.
        heads: Attention heads.
        layers: Blocks.
        feedforward: Width of the gated feed-forward layer.
        task_width: Length of a task's vector, which modulates every block.
        task_tokens: Tokens of a task's own beside the patches.
        lr: Learning rate of the blocks' matrices, by Muon.
        embedding_lr: Learning rate of everything else, by AdamW.
        weight_decay: Decoupled weight decay of the matrices.
        warmup_steps: Steps over which both learning rates rise.
        decay_from: Share of the budget after which both fall to zero, linearly.
        batch_tokens: Patches of a step, all rows of one canvas size.
        size_bias: Schedule over the budget of how much more often small canvases are drawn: 0 draws every pair equally
            often, 1 spends equally many patches on every pair.
        official_repeats: How often each official demonstration counts among the pairs.
        minutes: Budget of training, in minutes of processor time (of the device's, on a GPU).
        epochs: Reports, evenly over the budget.
        eval_every: Epochs between two evaluations on held-out pairs, which are also the checkpoints.
        changed_weight: Weight of a pixel that differs from the input's.
        clip_norm: Largest gradient norm.
        compile: Compile the blocks; needs a compiler on CPUs, and takes half a minute.
    """

    width: int = 128
    heads: int = 4
    layers: int = 4
    feedforward: int = 344
    task_width: int = 64
    task_tokens: int = 2
    lr: float = 0.02
    embedding_lr: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    decay_from: float = 0.4
    batch_tokens: int = 2048
    size_bias: str = "linear:1:0.2"
    official_repeats: int = 20
    minutes: float = 40.0
    epochs: int = 60
    eval_every: int = 10
    changed_weight: float = 2.0
    clip_norm: float = 1.0
    compile: bool = False
    architecture: Literal["canvas"] = "canvas"


def choose_slots(slots: int | str, device: str) -> int:
    """Return the most slots that ``auto`` means on a torch device, ``cpu`` or ``cuda:<i>``, or the number given."""
    if slots == "auto":
        return CUDA_SLOTS if device.startswith("cuda") else CPU_SLOTS
    return int(slots)
