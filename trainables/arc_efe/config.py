"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainables.common.setting_types import ScheduleText, Share

# the terms of the loss, each with a weight of its own: ``weight_<term>``
TERMS = (
    "risk", "ambiguity", "step", "consistency", "bidirectional", "preference", "prompt", "cross_entropy", "size",
    "backward",
)  # fmt: skip
# terms that compare prompts, what prompts make of a grid, or what demonstrations show
PROMPT_TERMS = ("consistency", "prompt", "preference")


@dataclass(frozen=True)
class EfeConfig:
    """The agent, its prompt, its loss and its training. Defaults: the published settings."""

    width: PositiveInt = 128
    """Channels of the first convolution."""
    hidden: PositiveInt = 256
    """Channels of the other convolutions."""
    depth: PositiveInt = 2
    """Residual blocks before the first predictive step."""
    step_depth: PositiveInt = 1
    """Residual blocks of a predictive step."""
    steps: PositiveInt = 4
    """Predictive steps T."""
    embedding: PositiveInt = 256
    """Width of the prompt embedding within the agent."""
    backward_hidden: PositiveInt = 64
    """Channels of the backward model (output to input)."""

    prompt: Literal["rule", "plain", "none"] = "rule"
    """What the language model reads: a rule as JSON that it wrote itself from the demonstrations (``rule``), the
    demonstrations as they are (``plain``), or nothing (``none``)."""
    prompt_pairs: PositiveInt = 3
    """Demonstrations in a prompt, at most."""
    prompt_tokens: PositiveInt = 1024
    """Tokens of a prompt, at most; what is cut off is counted."""
    lm: str = "smollm2"
    """The language model: ``smollm2``, which a Python package has, or ``hf:`` and a name on the hub or a folder."""
    lm_layers: NonNegativeInt = 0
    """First layers of the language model that are used for embeddings; 0 uses all."""
    lm_training: Literal["frozen", "lora"] = "frozen"
    """Whether the language model stays as it is (its embeddings are computed once) or LoRA trains it."""
    lora_rank: PositiveInt = 8
    """Rank of the LoRA adapters."""

    weight_risk: NonNegativeFloat = 1.0
    """Weight of the divergence of the predicted outcome from the preferred one. 0 leaves a term out, here and below."""
    weight_ambiguity: NonNegativeFloat = 0.0
    """Weight of the expected entropy of the likelihood under the predicted colours."""
    weight_step: NonNegativeFloat = 0.1
    """Weight of the divergence of a step's prediction from the one before it."""
    weight_consistency: NonNegativeFloat = 1.0
    """Weight of the divergence of the predictions under the unchanged and the changed prompt."""
    weight_bidirectional: NonNegativeFloat = 0.5
    """Weight of the divergence of the inputs that the backward model finds from target and prediction."""
    weight_preference: NonNegativeFloat = 0.2
    """Weight of the divergence of the predicted colour shares from those of the demonstrations' outputs."""
    weight_prompt: NonNegativeFloat = 0.3
    """Weight of InfoNCE: a solved pair is to be nearer to its own prompt than to prompts of other tasks."""
    weight_cross_entropy: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of the target under the last step's outcome."""
    weight_size: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of height and width."""
    weight_backward: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of the input under what the backward model finds from the target."""
    smoothing: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Probability that the preferred outcome gives to other colours than the target's."""
    hard_weight: Annotated[float, Field(ge=1)] = 2.0
    """What a cell counts that is predicted wrongly; others count 1."""
    size_weight: Annotated[str, ScheduleText(gt=0)] = "linear:1.0:0.5"
    """Factor of the whole expected free energy; without a length it takes three epochs."""
    efe_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the expected free energy in the loss; the rest is the policy's."""

    policy: Literal["reinforce", "random"] = "reinforce"
    """Who chooses how the prompt is changed: ``reinforce`` learns it, ``random`` does not."""
    policy_lr: PositiveFloat = 5e-5
    """Learning rate of the policy."""
    policy_entropy: NonNegativeFloat = 0.01
    """Weight of the policy's entropy."""
    memory: bool = True
    """Write solved prompts into a memory and read them from it."""
    memory_size: PositiveInt = 1024
    """Prompts that the memory holds."""
    memory_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.5
    """Cosine similarity from which on an entry is read."""
    memory_factor: NonNegativeFloat = 1.1
    """An entry is written above this factor times the moving average of the scores."""
    memory_alpha: Share = 0.1
    """Share by which a score moves the moving average."""
    memory_start: Share = 0.2
    """Where the moving average starts."""

    lr: PositiveFloat = 1e-4
    """Learning rate of agent, backward model and language model."""
    warmup_steps: NonNegativeInt = 50
    """Steps of a linear warm-up."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate over the run."""
    lr_floor: Share = 0.1
    """Learning rate at the end as a share of ``lr``."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    batch_size: PositiveInt = 16
    """Pairs of a step."""
    epochs: PositiveInt = 20
    """Passes over the training pairs."""
    examples_per_task: NonNegativeInt = 0
    """Training pairs that an epoch draws of a task; 0 takes all."""
    max_side: Annotated[int, Field(ge=1, le=30)] = 30
    """Tasks with a longer side are left out."""
    max_batches: NonNegativeInt = 0
    """Steps after which training ends, whatever ``epochs`` says; 0 sets no limit."""

    eval_every: PositiveInt = 1
    """Epochs between evaluations, which are also ASHA's rungs."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 5
    """Last checkpoints that are kept, besides the best; two in all at least."""
    precision: Literal["auto", "float32"] = "auto"
    """``auto`` computes in bfloat16 where the device is fast in it, on other GPUs in float16 with scaling."""
    no_prompt_baseline: bool = True
    """Train an agent without a prompt beside it, for as many steps."""


def weights_of(config: EfeConfig) -> dict[str, float]:
    """Return the weights of the terms that take part.

    Terms about prompts do not where there are none.
    """
    weights = {term: float(getattr(config, f"weight_{term}")) for term in TERMS}
    return {
        term: weight
        for term, weight in weights.items()
        if weight and not (config.prompt == "none" and term in PROMPT_TERMS)
    }
