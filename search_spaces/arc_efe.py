"""What the sweep over prompted grid agents varies: terms and their weights, steps, prompt, memory and policy."""

from __future__ import annotations

from ray.tune import choice, loguniform

from search_spaces.settings import Ablation, SettingError
from search_spaces.space import Preset, SearchSpace
from trainables.arc_efe.config import TERMS, EfeConfig
from trainables.arc_efe.family import FAMILY


def validate(config: EfeConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingError: For the first one.
    """
    if not config.weight_risk and not config.weight_cross_entropy:
        raise SettingError("weight_cross_entropy", "is 0 as weight_risk is: nothing would teach the agent a colour")
    if config.weight_step and config.steps == 1:
        raise SettingError("steps", "is 1, so weight_step must be 0: one step has none before it")
    if config.efe_share == 1 and config.policy == "reinforce" and config.prompt != "none":
        raise SettingError("efe_share", "is 1, which leaves the policy no gradient; set policy=random or less than 1")


SMOKE_VALUES = {
    "width": 16, "hidden": 24, "depth": 1, "steps": 2, "embedding": 32, "backward_hidden": 16,
    "prompt": "plain", "prompt_pairs": 2, "prompt_tokens": 96, "lm_layers": 1, "lr": 3e-3, "warmup_steps": 2,
    "policy_lr": 1e-3, "batch_size": 8, "epochs": 2, "max_side": 10, "checkpoint_every": 3,
}  # fmt: skip
DEMO_VALUES = {
    "width": 64, "hidden": 64, "depth": 3, "step_depth": 2, "steps": 3, "embedding": 128, "backward_hidden": 32,
    "prompt": "plain", "prompt_pairs": 2, "prompt_tokens": 256, "lm_layers": 2, "lr": 2e-3, "lr_schedule": "cosine",
    "policy_lr": 1e-3, "batch_size": 32, "epochs": 10, "max_side": 10, "eval_every": 5, "checkpoint_every": 100,
}  # fmt: skip
# against the demo's settings: what each term and each part is worth
ABLATION = {
    **{f"weight_{term}": Ablation([0.0]) for term in TERMS if getattr(EfeConfig, f"weight_{term}")},
    "weight_ambiguity": Ablation([1.0]),
    "prompt": Ablation(["rule", "none"]),
    "policy": Ablation(["random"]),
    "memory": Ablation([False]),
    "hard_weight": Ablation([1.0]),
    "steps": Ablation([2]),
}

SPACE = SearchSpace(
    family=FAMILY,
    config=EfeConfig,
    validate=validate,
    rung_setting="eval_every",
    groups={
        "agent": "width",
        "prompt": "prompt",
        "loss": "weight_risk",
        "policy and memory": "policy",
        "training": "lr",
        "evaluation and checkpoints": "eval_every",
    },
    presets={
        "smoke": Preset(
            "a tiny agent on 16 tasks, the first layer of the language model",
            SMOKE_VALUES,
            {"policy": choice(["reinforce", "random"])},
            tasks="smallest:16",
        ),
        "demo": Preset(
            "tasks of up to 10 x 10 cells, within minutes on two CPU cores",
            DEMO_VALUES,
            {"lr": loguniform(5e-4, 4e-3), "steps": choice([2, 3, 4])},
        ),
        "ablation": Preset(
            "the demo without one of its terms or parts at a time",
            DEMO_VALUES | {"no_prompt_baseline": False},
            ABLATION,
        ),
        "full": Preset(
            "all tasks with the published settings",
            {},
            {"lm_training": choice(["frozen", "lora"]), "steps": choice([2, 4, 8]), "lr": loguniform(3e-5, 1e-3)},
        ),
    },
)
