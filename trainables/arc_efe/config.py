"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# the terms of the loss, each with a weight of its own: ``weight_<term>``
TERMS = (
    "risk", "ambiguity", "step", "consistency", "bidirectional", "preference", "prompt", "cross_entropy", "size",
    "backward",
)  # fmt: skip
# terms that compare prompts, what prompts make of a grid, or what demonstrations show
PROMPT_TERMS = ("consistency", "prompt", "preference")


@dataclass(frozen=True)
class EfeConfig:
    """The agent, its prompt, its loss and its training. Defaults: the published settings.

    A "schedule" below is a text that `trainables.common.schedules.Schedule.parse` reads.

    Attributes:
        width: Channels of the first convolution.
        hidden: Channels of the others.
        depth: Residual blocks before the first predictive step.
        step_depth: Residual blocks of a predictive step.
        steps: Predictive steps T.
        embedding: Width of the prompt embedding within the agent.
        backward_hidden: Channels of the backward model (output to input).
        prompt: What the language model reads: a rule as JSON that it wrote itself from the demonstrations
            (``rule``), the demonstrations as they are (``plain``), or nothing (``none``).
        prompt_pairs: Demonstrations in a prompt, at most.
        prompt_tokens: Tokens of a prompt, at most; what is cut off is counted.
        lm: The language model: a name of `trainables.common.embedded.MODELS`, or ``hf:`` and a name on the hub or a
            folder.
        lm_layers: Its first layers that are used for embeddings; 0 uses all.
        lm_training: Whether its weights stay as they are (its embeddings are computed once) or LoRA trains.
        lora_rank: Rank of the LoRA adapters.
        weight_risk, weight_ambiguity, weight_step, weight_consistency, weight_bidirectional, weight_preference,
            weight_prompt, weight_cross_entropy, weight_size, weight_backward: Weights of the terms; 0 leaves a term
            out.
        smoothing: Probability that the preferred outcome gives to other colours than the target's.
        hard_weight: What a cell counts that is predicted wrongly; others count 1.
        size_weight: Schedule of the factor of the whole expected free energy; without a length it takes three epochs.
        efe_share: Share of the expected free energy in the loss; the rest is the policy's.
        policy: Who chooses how the prompt is changed: ``reinforce`` learns it, ``random`` does not.
        policy_lr: Its learning rate.
        policy_entropy: Weight of its entropy.
        memory: Whether solved prompts are written into a memory and read from it.
        memory_size: Prompts that it holds.
        memory_similarity: Cosine similarity from which on an entry is read.
        memory_factor, memory_alpha, memory_start: An entry is written above ``memory_factor`` times the moving average
            of the scores, which starts at ``memory_start`` and moves by ``memory_alpha``.
        lr: Learning rate of agent, backward model and language model.
        warmup_steps: Steps of its linear warm-up.
        lr_schedule: Its shape over the run.
        lr_floor: Its end as a share of ``lr``.
        weight_decay: Decoupled weight decay.
        clip_norm: Largest norm of the gradient.
        batch_size: Pairs of a step.
        epochs: Passes over the training pairs.
        examples_per_task: Training pairs that an epoch draws of a task; 0 takes all.
        max_side: Tasks with a longer side are left out.
        max_batches: Steps after which training ends, whatever ``epochs`` says; 0 sets no limit.
        eval_every: Epochs between evaluations, which are also ASHA's rungs.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Last checkpoints that are kept, besides the best; two in all at least.
        precision: ``auto`` computes in bfloat16 where the device is fast in it, on other GPUs in float16 with scaling.
        no_prompt_baseline: Whether an agent without a prompt is trained beside it for as many steps.
    """

    width: int = 128
    hidden: int = 256
    depth: int = 2
    step_depth: int = 1
    steps: int = 4
    embedding: int = 256
    backward_hidden: int = 64
    prompt: Literal["rule", "plain", "none"] = "rule"
    prompt_pairs: int = 3
    prompt_tokens: int = 1024
    lm: str = "smollm2"
    lm_layers: int = 0
    lm_training: Literal["frozen", "lora"] = "frozen"
    lora_rank: int = 8
    weight_risk: float = 1.0
    weight_ambiguity: float = 0.0
    weight_step: float = 0.1
    weight_consistency: float = 1.0
    weight_bidirectional: float = 0.5
    weight_preference: float = 0.2
    weight_prompt: float = 0.3
    weight_cross_entropy: float = 1.0
    weight_size: float = 1.0
    weight_backward: float = 1.0
    smoothing: float = 0.1
    hard_weight: float = 2.0
    size_weight: str = "linear:1.0:0.5"
    efe_share: float = 0.7
    policy: Literal["reinforce", "random"] = "reinforce"
    policy_lr: float = 5e-5
    policy_entropy: float = 0.01
    memory: bool = True
    memory_size: int = 1024
    memory_similarity: float = 0.5
    memory_factor: float = 1.1
    memory_alpha: float = 0.1
    memory_start: float = 0.2
    lr: float = 1e-4
    warmup_steps: int = 50
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_floor: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    batch_size: int = 16
    epochs: int = 20
    examples_per_task: int = 0
    max_side: int = 30
    max_batches: int = 0
    eval_every: int = 1
    checkpoint_every: int = 50
    keep_checkpoints: int = 5
    precision: Literal["auto", "float32"] = "auto"
    no_prompt_baseline: bool = True


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
