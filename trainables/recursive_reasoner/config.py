"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainables.common.schedules import Schedule
from trainables.common.setting_types import ScheduleText, Share, ShareBelow1


def require_odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(f"is {number} but must be odd")
    return number


def require_a_thought(text: str) -> str:
    schedule = Schedule.parse(text)
    if max(schedule.start, schedule.end) < 1:
        raise ValueError(f"is {text!r} but must reach at least one thought")
    return text


@dataclass(frozen=True)
class ReasonerConfig:
    """The model, its halting and planner, and its training. Defaults: TRM on Sudoku-Extreme."""

    mixer: Literal["attention", "mlp"] = "mlp"
    """What mixes cells: self-attention with rotary positions, or a SwiGLU across the sequence."""
    width: PositiveInt = 512
    """Width of the hidden states."""
    heads: PositiveInt = 8
    """Heads of the attention."""
    layers: PositiveInt = 2
    """Blocks of the one network."""
    front_end: Literal["auto", "tokens", "capsules"] = "auto"
    """What the network gets of a puzzle: the tokens of its cells, or 12 capsules of 4 children that encode what it is
    shown as; ``auto`` encodes a mixture of modalities and leaves grids as they are."""
    reconstruction_weight: PositiveFloat = 1.0
    """Weight of the loss of reading back from the capsules what was shown."""
    expansion: PositiveFloat = 4.0
    """Expansion of the SwiGLU."""
    prefix: NonNegativeInt = 16
    """Learned tokens before the cells, one set for each puzzle id."""
    h_cycles: PositiveInt = 3
    """Updates of the answer state in a supervision step; all but the last are without gradient."""
    l_cycles: PositiveInt = 6
    """Updates of the latent state for each of the answer state."""
    max_steps: PositiveInt = 16
    """Most supervision steps of a puzzle."""
    gradient: Literal["cycle", "one_step"] = "cycle"
    """Back-propagate through the whole last cycle, or (HRM's approximation) its last two updates."""

    halting: Literal["fixed", "bce", "dqn"] = "bce"
    """When a puzzle's steps end: after ``max_steps``, by a learned logit, or by a learned Q of three actions."""
    epsilon: Annotated[str, ScheduleText(ge=0, le=1)] = "linear:0.3:0.05"
    """``bce``: share of puzzles that must take a random number of steps; ``dqn``: share of random actions."""
    temperature: Annotated[str, ScheduleText(ge=1e-6)] = "exponential:1.0:0.1"
    """Temperature with which ``dqn`` samples its actions in training."""
    expansion_penalty: Annotated[str, ScheduleText(ge=0)] = "cosine:0.1:0.001:50%"
    """What ``dqn`` pays for an expansion."""
    step_penalty: NonNegativeFloat = 0.01
    """What ``dqn`` pays for a step."""
    discount: Share = 0.95
    """Discount of ``dqn``'s rewards."""
    dqn_warmup: ShareBelow1 = 0.1
    """Share of the run before ``dqn``'s values are obeyed; until then rows go on but for random actions."""
    replay: PositiveInt = 16384
    """Transitions that ``dqn`` remembers."""
    replay_batch: PositiveInt = 256
    """Transitions of a temporal-difference step."""
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share by which the target network follows at every step."""

    planner: Literal["none", "latent_paths", "continuous_thought"] = "none"
    """What prepares the latent state of a step: nothing, mixed latent paths, or continuous thoughts."""
    paths: PositiveInt = 4
    """Latent paths."""
    thoughts: Annotated[str, ScheduleText(ge=0), AfterValidator(require_a_thought)] = "linear:0:4:50%"
    """Number of continuous thoughts (rounded down): the stages of the curriculum."""
    hints: Share = 0.5
    """Share of the asked cells that the first stage of the curriculum shows; it falls to 0 at the last one."""

    lr: PositiveFloat = 1e-4
    """Highest learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    """Shape of the learning rate over the run."""
    lr_floor: Share = 0.1
    """Learning rate at the end as a share of ``lr``."""
    warmup_steps: NonNegativeInt = 2000
    """Steps of a linear warm-up."""
    weight_decay: NonNegativeFloat = 1.0
    """Decoupled weight decay of AdamW."""
    beta1: ShareBelow1 = 0.9
    """Decay of AdamW's mean gradient."""
    beta2: ShareBelow1 = 0.95
    """Decay of AdamW's mean squared gradient."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    ema: ShareBelow1 = 0.999
    """Decay of the averaged weights that are evaluated; 0 evaluates the trained weights."""
    batch_size: PositiveInt = 768
    """Puzzles under way at once, over all workers."""
    epochs: PositiveInt = 60
    """Passes over the training puzzles, ``views_per_puzzle`` times each."""
    views_per_puzzle: PositiveInt = 1000
    """Augmented examples that an epoch draws of a puzzle, on average."""
    train_puzzles: PositiveInt = 1000
    """Puzzles to train on."""
    held_out_puzzles: PositiveInt = 1024
    """Puzzles to measure on."""
    maze_side: Annotated[int, Field(ge=5), AfterValidator(require_odd)] = 15
    """Cells in a row of a maze, an odd number."""
    givens: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest share of its cells that a Sudoku shows; a few show more, where none can be spared."""
    arc_side: Annotated[int, Field(ge=1, le=30)] = 10
    """Longest side of the ARC grids that are taken; of these, all are."""

    eval_every: PositiveInt = 5
    """Epochs between evaluations, which are also ASHA's rungs."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Last checkpoints that are kept, besides the best; two in all at least."""
    precision: Literal["auto", "float32"] = "auto"
    """``auto`` computes in bfloat16 where the device is fast in it."""
    compile: bool = False
    """Compile the network for training, which needs a C++ compiler and on GPUs Triton."""
    direct_baseline: bool = True
    """Train beside it a model of the same parameters that answers in one pass."""
    direct_lr_ratio: PositiveFloat = 1.0
    """Learning rate of that model over ``lr``: the one that suits it is not the reasoner's."""
