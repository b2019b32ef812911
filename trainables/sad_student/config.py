"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SadConfig:
    """What is distilled, how, and how it is measured. Defaults: the settings of the system this family replaces.

    A "schedule" below is a text that `trainables.common.schedules.Schedule.parse` reads.

    Attributes:
        loss: ``ce``: cross-entropy on what the agent wrote. ``token_kd``: divergence from the teacher, all tokens
            alike. ``sad``: a mean divergence for each span, weighted. ``guided``: first as ``sad``, then on-policy.
        divergence: Of the student's distribution from the teacher's; see `trainables.sad_student.loss`.
        mixture: Of ``js``, ``skew`` and ``alpha``: their parameter, in (0, 1).
        temperature: Both distributions are taken at this temperature, and the divergence times its square.
        adaptive_temperature: Lower the temperature of a token towards 1 the further the student is from the teacher.
        reasoning_weight, action_weight, observation_weight, other_weight: Schedules of the weights of spans in ``sad``.
        depth: Schedule of the greatest difficulty that is trained on, rounded down.
        entropy_weight: Weight of the student's entropy, which the loss rewards.
        consistency_weight: Weight of the squared difference between the mean divergences of a trajectory's reasoning
            and action spans.
        on_policy: Of ``guided``: the share of the steps, and of the budget of teacher tokens, that is on-policy.
        teacher_share: Of ``guided``: schedule, over the on-policy steps, of the share of turns that the teacher writes.
        rollouts: Of ``guided``: episodes that are played at once.
        rollout_every: Of ``guided``: steps between two times.
        rollout_temperature: Of ``guided``: temperature of the student's own turns.
        trust: Of ``guided``: a turn whose mean divergence is this large weighs 1/e of one without.
        rank: Of the student's LoRA adapter; 0 trains all of its weights.
        alpha: Of the adapter.
        lr: Highest learning rate.
        lr_schedule: Shape of its fall to 0.
        warmup_steps: Steps of a linear warm-up.
        weight_decay: Decoupled weight decay of AdamW.
        clip_norm: Largest norm of the gradient.
        batch_size: Trajectories of a forward pass, over all workers.
        accumulation: Forward passes of a step.
        epochs: Passes over the trajectories.
        trajectories: Training trajectories.
        top_k: Most probable tokens of the teacher that are kept for each position; the others share the rest.
        eval_every: Epochs between evaluations, which are also ASHA's rungs.
        validation_problems, test_problems: Problems on which success is measured, at evaluations and at the end.
        mode: ``production`` measures divergence by span at evaluations, ``research`` in every epoch, ``fast`` never.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Last checkpoints that are kept, besides the best; two in all at least.
        precision: ``auto`` computes in bfloat16 where the device is fast in it.
        save_student: Whether the trained student is written, uncut, for ``from_pretrained``.
    """

    loss: Literal["ce", "token_kd", "sad", "guided"] = "sad"
    divergence: Literal["forward_kl", "reverse_kl", "js", "skew", "alpha"] = "forward_kl"
    mixture: float = 0.5
    temperature: float = 2.0
    adaptive_temperature: bool = False
    reasoning_weight: str = "2.5"
    action_weight: str = "1.8"
    observation_weight: str = "0"
    other_weight: str = "0"
    depth: str = "3"
    entropy_weight: float = 0.0
    consistency_weight: float = 0.0
    on_policy: float = 0.5
    teacher_share: str = "linear:0.5:0:80%"
    rollouts: int = 32
    rollout_every: int = 10
    rollout_temperature: float = 0.7
    trust: float = 1.0
    rank: int = 16
    alpha: int = 16
    lr: float = 2e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    batch_size: int = 2
    accumulation: int = 4
    epochs: int = 3
    trajectories: int = 3000
    top_k: int = 32
    eval_every: int = 1
    validation_problems: int = 240
    test_problems: int = 240
    mode: Literal["production", "research", "fast"] = "production"
    checkpoint_every: int = 500
    keep_checkpoints: int = 1
    precision: Literal["auto", "float32"] = "auto"
    save_student: bool = True
