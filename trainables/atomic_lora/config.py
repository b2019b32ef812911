"""The settings of the family, as plain frozen dataclasses: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainables.common.setting_types import ScheduleText, ShareBelow1

# what a base's name begins with where it is a Hugging Face model's, on the hub or in a folder
HUB = "hf:"
# adapters in training at once where nobody says otherwise: on a CPU 4 to 32 are as fast (benchmarks/README.md), but for
# a canvas model, whose rows share a batch only with those of their own canvas (docs/log.md); on a GPU as many as a
# timing finds, at most this many
CPU_SLOTS, CANVAS_CPU_SLOTS, CUDA_SLOTS = 8, 16, 256


def require_layers(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("is empty but must name at least one linear layer, such as linear1")
    if len(set(names)) < len(names):
        raise ValueError(f"is {','.join(names)} but must name each layer once")
    return names


def require_comparison(name: str) -> str:
    if name not in ("none", "exact") and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ValueError(f"is {name!r} but must be none, exact or package.module:function")
    return name


@dataclass(frozen=True)
class ChampionConfig:
    """The Champion and its pre-training: the published settings but for those that `docs/log.md` explains."""

    width: PositiveInt = 160
    """Width of the hidden states."""
    heads: PositiveInt = 4
    """Attention heads of encoder and decoder."""
    feedforward: PositiveInt = 640
    """Width of the feed-forward layers of encoder and decoder."""
    encoder_layers: PositiveInt = 1
    """Blocks of the encoder."""
    decoder_layers: PositiveInt = 3
    """Blocks of the decoder."""
    context_width: PositiveInt = 32
    """Width of the context encoder, which reads the demonstrations."""
    context_heads: PositiveInt = 8
    """Attention heads of the context encoder."""
    context_feedforward: PositiveInt = 2048
    """Width of the context encoder's feed-forward layers."""
    architecture: Literal["autoregressive"] = "autoregressive"
    """Which base is trained; ``canvas`` has other settings."""
    lr: PositiveFloat = 1.849e-3
    """Highest learning rate."""
    beta1: ShareBelow1 = 0.95
    """Decay of Adam's mean gradient."""
    beta2: ShareBelow1 = 0.999
    """Decay of Adam's mean squared gradient."""
    warmup_steps: NonNegativeInt = 500
    """Steps of a linear warm-up."""
    batch_size: PositiveInt = 32
    """Examples per step."""
    epochs: PositiveInt = 100
    """Epochs of training."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    views_per_pair: PositiveInt = 1
    """Most examples that an epoch draws of a pair; large pairs get fewer, at least one."""
    eval_every: PositiveInt = 5
    """Epochs between evaluations on held-out pairs, which are also the checkpoints."""


@dataclass(frozen=True)
class LoRAConfig:
    """One adapter and its training, whatever it is trained on."""

    rank: PositiveInt = 16
    """LoRA rank r."""
    alpha: PositiveFloat = 32.0
    """LoRA alpha; the update is scaled by alpha / rank."""
    target_modules: Annotated[tuple[str, ...], AfterValidator(require_layers)] = ("linear1", "linear2")
    """Names (or dotted endings of names) of the linear layers that get an adapter."""
    lr_multiple: PositiveFloat = 0.1
    """Learning rate as a multiple of the one the base was trained with."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate over the adapter's own steps."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of AdamW."""
    batch_size: PositiveInt = 4
    """Examples per step."""
    epochs: PositiveInt = 50
    """Most epochs an adapter may train."""
    patience: PositiveInt = 10
    """Epochs without an improvement of ``eval_loss`` by ``min_delta`` after which an adapter stops."""
    min_delta: NonNegativeFloat = 0.001
    """Smallest improvement that counts."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the adapter's own gradient."""
    report_every: PositiveInt = 5
    """Epochs between two rungs: reports, checkpoints and ASHA decisions happen there."""
    export_dtype: Literal["base", "float32", "bfloat16"] = "base"
    """Floating-point type of the adapter's file; ``base``: that of the base as it was loaded. Training and its
    checkpoints are in float32."""


@dataclass(frozen=True)
class AdapterConfig(LoRAConfig):
    """An adapter for an ARC task."""

    examples_per_epoch: PositiveInt = 32
    """Augmented examples drawn for each epoch."""
    validation_pairs: Annotated[int, Field(ge=0, le=2)] = 0
    """Demonstration pairs kept out of training (of tasks with at least three) for ``eval_loss``; with 0 the loss is
    measured on the demonstrations in colours that training never shows, on a canvas model as they are."""


@dataclass(frozen=True)
class TextConfig(LoRAConfig):
    """An adapter for a text task."""

    target_modules: Annotated[tuple[str, ...], AfterValidator(require_layers)] = ("all-linear",)
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: NonNegativeFloat = 0.0
    batch_size: PositiveInt = 8
    epochs: PositiveInt = 5
    patience: PositiveInt = 3
    report_every: PositiveInt = 1
    examples_per_epoch: NonNegativeInt = 0
    """Rows drawn for each epoch; 0 for all."""
    loss: Literal["completion", "all"] = "completion"
    """Which tokens count: those of completions, or all."""
    max_tokens: Annotated[int, Field(ge=2)] = 1024
    """Tokens of a row at most, and never more than the base reads."""
    too_long: Literal["cut", "leave_out"] = "cut"
    """What becomes of a longer row: it is cut at its end, or left out."""
    answers: Annotated[str, AfterValidator(require_comparison)] = "none"
    """How generated answers are compared with the completions: ``none``, ``exact`` (but for white space around them),
    or a function ``package.module:function`` of answer and completion that returns a number from 0 to 1."""
    answer_tokens: PositiveInt = 64
    """Tokens of a generated answer at most."""


@dataclass(frozen=True)
class CanvasConfig:
    """The canvas model and its training: ``--set architecture=canvas``."""

    width: PositiveInt = 128
    """Channels of a patch."""
    heads: PositiveInt = 4
    """Attention heads."""
    layers: PositiveInt = 4
    """Blocks."""
    feedforward: PositiveInt = 344
    """Width of the gated feed-forward layer."""
    task_width: PositiveInt = 64
    """Length of a task's vector, which modulates every block."""
    task_tokens: PositiveInt = 2
    """Tokens of a task's own beside the patches."""
    lr: PositiveFloat = 0.02
    """Learning rate of the blocks' matrices, by Muon."""
    embedding_lr: PositiveFloat = 3e-3
    """Learning rate of everything else, by AdamW."""
    weight_decay: NonNegativeFloat = 0.02
    """Decoupled weight decay of the matrices."""
    warmup_steps: PositiveInt = 100
    """Steps over which both learning rates rise."""
    decay_from: ShareBelow1 = 0.4
    """Share of the budget after which both fall to zero, linearly."""
    batch_tokens: PositiveInt = 2048
    """Patches of a step, all rows of one canvas size."""
    size_bias: Annotated[str, ScheduleText()] = "linear:1:0.2"
    """How much more often small canvases are drawn, over the budget: 0 draws every pair equally often, 1 spends equally
    many patches on every pair."""
    official_repeats: NonNegativeInt = 20
    """How often each official demonstration counts among the pairs."""
    minutes: PositiveFloat = 40.0
    """Budget of training, in minutes of processor time (of the device's, on a GPU)."""
    epochs: PositiveInt = 60
    """Reports, evenly over the budget."""
    eval_every: PositiveInt = 10
    """Epochs between two evaluations on held-out pairs, which are also the checkpoints."""
    changed_weight: PositiveFloat = 2.0
    """Weight of a pixel that differs from the input's."""
    clip_norm: PositiveFloat = 1.0
    """Largest gradient norm."""
    compile: bool = False
    """Compile the blocks; needs a compiler on CPUs, and takes half a minute."""
    architecture: Literal["canvas"] = "canvas"
    """Which base is trained; ``autoregressive``, the Champion, has other settings."""


def choose_slots(slots: int | str, device: str, canvas: bool) -> int:
    """Return the most slots that ``auto`` means on a torch device, ``cpu`` or ``cuda:<i>``, or the number given.

    Args:
        slots: What the user said.
        device: Where it trains.
        canvas: Whether the base is a canvas model.
    """
    if slots == "auto":
        return CUDA_SLOTS if device.startswith("cuda") else CANVAS_CPU_SLOTS if canvas else CPU_SLOTS
    return int(slots)
