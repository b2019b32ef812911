"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReasonerConfig:
    """The model, its halting and planner, and its training. Defaults: TRM on Sudoku-Extreme.

    A "schedule" below is a text that `trainables.common.schedules.Schedule.parse` reads.

    Attributes:
        mixer: What mixes cells: self-attention with rotary positions, or a SwiGLU across the sequence.
        width: Of the hidden states.
        heads: Of the attention.
        layers: Blocks of the one network.
        front_end: What the network gets of a puzzle: the tokens of its cells, or 12 capsules of 4 children that encode
            what it is shown as; ``auto`` encodes a mixture of modalities and leaves grids as they are.
        reconstruction_weight: Of the loss of reading back from the capsules what was shown.
        expansion: Of the SwiGLU.
        prefix: Learned tokens before the cells, one set for each puzzle id.
        h_cycles: Updates of the answer state in a supervision step; all but the last are without gradient.
        l_cycles: Updates of the latent state for each of the answer state.
        max_steps: Most supervision steps of a puzzle.
        gradient: Back-propagate through the whole last cycle, or (HRM's approximation) its last two updates.
        halting: When a puzzle's steps end: after ``max_steps``, by a learned logit, or by a learned Q of three actions.
        epsilon: Schedule. ``bce``: share of puzzles that must take a random number of steps; ``dqn``: share of random
            actions.
        temperature: Schedule of the temperature with which ``dqn`` samples its actions in training.
        expansion_penalty: Schedule of what ``dqn`` pays for an expansion.
        step_penalty: What ``dqn`` pays for a step.
        discount: Of ``dqn``'s rewards.
        dqn_warmup: Share of the run before ``dqn``'s values are obeyed; until then rows go on but for random actions.
        replay: Transitions that ``dqn`` remembers.
        replay_batch: Transitions of a temporal-difference step.
        target_rate: Share by which the target network follows at every step.
        planner: What prepares the latent state of a step: nothing, mixed latent paths, or continuous thoughts.
        paths: Latent paths.
        thoughts: Schedule of the number of continuous thoughts (rounded down): the stages of the curriculum.
        hints: Share of the asked cells that the first stage of the curriculum shows; it falls to 0 at the last one.
        lr: Highest learning rate.
        lr_schedule: Shape of the learning rate over the run.
        lr_floor: Learning rate at the end as a share of ``lr``.
        warmup_steps: Steps of a linear warm-up.
        weight_decay: Decoupled weight decay of AdamW.
        beta1, beta2: Of AdamW.
        clip_norm: Largest norm of the gradient.
        ema: Decay of the averaged weights that are evaluated; 0 evaluates the trained weights.
        batch_size: Puzzles under way at once, over all workers.
        epochs: Passes over the training puzzles, ``views_per_puzzle`` times each.
        views_per_puzzle: Augmented examples that an epoch draws of a puzzle, on average.
        train_puzzles: Puzzles to train on.
        held_out_puzzles: Puzzles to measure on.
        maze_side: Cells in a row of a maze.
        arc_side: Longest side of the ARC grids that are taken; of these, all are.
        eval_every: Epochs between evaluations, which are also ASHA's rungs.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Last checkpoints that are kept, besides the best; two in all at least.
        precision: ``auto`` computes in bfloat16 where the device is fast in it.
        compile: Whether the network is compiled for training, which needs a C++ compiler and on GPUs Triton.
        direct_baseline: Whether a model of the same parameters that answers in one pass is trained beside it.
    """

    mixer: Literal["attention", "mlp"] = "mlp"
    width: int = 512
    heads: int = 8
    layers: int = 2
    front_end: Literal["auto", "tokens", "capsules"] = "auto"
    reconstruction_weight: float = 1.0
    expansion: float = 4.0
    prefix: int = 16
    h_cycles: int = 3
    l_cycles: int = 6
    max_steps: int = 16
    gradient: Literal["cycle", "one_step"] = "cycle"
    halting: Literal["fixed", "bce", "dqn"] = "bce"
    epsilon: str = "linear:0.3:0.05"
    temperature: str = "exponential:1.0:0.1"
    expansion_penalty: str = "cosine:0.1:0.001:50%"
    step_penalty: float = 0.01
    discount: float = 0.95
    dqn_warmup: float = 0.1
    replay: int = 16384
    replay_batch: int = 256
    target_rate: float = 0.01
    planner: Literal["none", "latent_paths", "continuous_thought"] = "none"
    paths: int = 4
    thoughts: str = "linear:0:4:50%"
    hints: float = 0.5
    lr: float = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    lr_floor: float = 0.1
    warmup_steps: int = 2000
    weight_decay: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    ema: float = 0.999
    batch_size: int = 768
    epochs: int = 60
    views_per_puzzle: int = 1000
    train_puzzles: int = 1000
    held_out_puzzles: int = 1024
    maze_side: int = 15
    arc_side: int = 10
    eval_every: int = 5
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    precision: Literal["auto", "float32"] = "auto"
    compile: bool = False
    direct_baseline: bool = True
