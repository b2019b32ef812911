"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainables.common.setting_types import ScheduleText

Weight = Annotated[str, ScheduleText(ge=0)]


@dataclass(frozen=True)
class SadConfig:
    """What is distilled, how, and how it is measured. Defaults: the settings of the system this family replaces."""

    loss: Literal["ce", "token_kd", "sad", "guided"] = "sad"
    """``ce``: cross-entropy on what the agent wrote. ``token_kd``: divergence from the teacher, all tokens alike.
    ``sad``: a mean divergence for each span, weighted. ``guided``: first as ``sad``, then on-policy."""
    divergence: Literal["forward_kl", "reverse_kl", "js", "skew", "alpha"] = "forward_kl"
    """Divergence of the student's distribution from the teacher's."""
    mixture: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Parameter of ``js``, ``skew`` and ``alpha``."""
    temperature: PositiveFloat = 2.0
    """Both distributions are taken at this temperature, and the divergence times its square."""
    adaptive_temperature: bool = False
    """Lower the temperature of a token towards 1 the further the student is from the teacher."""
    reasoning_weight: Weight = "2.5"
    """Weight of reasoning spans in ``sad``."""
    action_weight: Weight = "1.8"
    """Weight of action spans in ``sad``."""
    observation_weight: Weight = "0"
    """Weight of observation spans in ``sad``."""
    other_weight: Weight = "0"
    """Weight of all other spans in ``sad``."""
    depth: Annotated[str, ScheduleText(ge=1)] = "3"
    """Greatest difficulty that is trained on, rounded down."""
    entropy_weight: NonNegativeFloat = 0.0
    """Weight of the student's entropy, which the loss rewards."""
    consistency_weight: NonNegativeFloat = 0.0
    """Weight of the squared difference between the mean divergences of a trajectory's reasoning and action spans."""

    on_policy: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the steps, and of the budget of teacher tokens, that is on-policy."""
    teacher_share: Annotated[str, ScheduleText(ge=0, le=1)] = "linear:0.5:0:80%"
    """Share of turns that the teacher writes, over the on-policy steps."""
    rollouts: PositiveInt = 32
    """Episodes that are played at once."""
    rollout_every: PositiveInt = 10
    """Steps between two times that episodes are played."""
    rollout_temperature: NonNegativeFloat = 0.7
    """Temperature of the student's own turns."""
    trust: PositiveFloat = 1.0
    """A turn whose mean divergence is this large weighs 1/e of one without."""

    rank: NonNegativeInt = 16
    """Rank of the student's LoRA adapter; 0 trains all of its weights."""
    alpha: PositiveInt = 16
    """Alpha of the adapter."""
    lr: PositiveFloat = 2e-4
    """Highest learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate's fall to 0."""
    warmup_steps: NonNegativeInt = 100
    """Steps of a linear warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    batch_size: PositiveInt = 2
    """Trajectories of a forward pass, over all workers."""
    accumulation: PositiveInt = 4
    """Forward passes of a step."""
    epochs: PositiveInt = 3
    """Passes over the trajectories."""
    trajectories: PositiveInt = 3000
    """Training trajectories."""
    top_k: PositiveInt = 32
    """Most probable tokens of the teacher that are kept for each position; the others share the rest."""

    eval_every: PositiveInt = 1
    """Epochs between evaluations, which are also ASHA's rungs."""
    validation_problems: PositiveInt = 240
    """Problems on which success is measured at evaluations."""
    test_problems: PositiveInt = 240
    """Problems on which success is measured at the end."""
    mode: Literal["production", "research", "fast"] = "production"
    """``production`` measures divergence by span at evaluations, ``research`` in every epoch, ``fast`` never."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 1
    """Last checkpoints that are kept, besides the best; two in all at least."""
    precision: Literal["auto", "float32"] = "auto"
    """``auto`` computes in bfloat16 where the device is fast in it."""
    save_student: bool = True
    """Write the trained student, uncut, for ``from_pretrained``."""
