"""What the sweep over SAD students varies: loss, divergence, span weights, curriculum and rank."""

from __future__ import annotations

from ray.tune import choice, loguniform

from search_spaces.settings import Ablation, SettingError
from search_spaces.space import Preset, SearchSpace
from trainables.common.schedules import Schedule
from trainables.sad_student.config import SadConfig
from trainables.sad_student.family import FAMILY


def validate(config: SadConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingError: For the first one.
    """
    if config.trajectories < config.batch_size * config.accumulation:
        raise SettingError(
            "trajectories",
            f"is {config.trajectories}, fewer than the {config.batch_size * config.accumulation} of one step",
        )
    if config.loss in ("sad", "guided") and not any(
        max(schedule.start, schedule.end)
        for schedule in (Schedule.parse(config.reasoning_weight), Schedule.parse(config.action_weight))
    ):
        raise SettingError("reasoning_weight", "and action_weight are 0, so nothing that a student writes counts")


SMOKE_VALUES = {
    "trajectories": 24,
    "validation_problems": 12,
    "test_problems": 12,
    "batch_size": 4,
    "accumulation": 2,
    "epochs": 2,
    "warmup_steps": 2,
    "lr": 1e-3,
    "top_k": 8,
    "checkpoint_every": 2,
}
DEMO_VALUES = {
    "trajectories": 480,
    "validation_problems": 96,
    "test_problems": 96,
    "batch_size": 8,
    "accumulation": 1,
    "epochs": 6,
    "eval_every": 2,
    "warmup_steps": 10,
    "lr": 5e-4,
    "rank": 0,
    "temperature": 1.0,
}
RULES = {
    "loss": choice(["ce", "token_kd", "sad", "guided"]),
    "divergence": choice(["forward_kl", "reverse_kl", "js", "skew", "alpha"]),
    "reasoning_weight": choice(["1", "2.5", "linear:0.5:2.0"]),
    "action_weight": choice(["1", "1.8", "linear:2.0:1.0"]),
    "depth": choice(["3", "linear:1:4:50%"]),
    "rank": choice([0, 16]),
}

SPACE = SearchSpace(
    family=FAMILY,
    config=SadConfig,
    validate=validate,
    rung_setting="eval_every",
    groups={
        "loss": "loss",
        "on-policy (guided)": "on_policy",
        "training": "rank",
        "evaluation and checkpoints": "eval_every",
    },
    presets={
        "smoke": Preset("a few steps on 24 trajectories", SMOKE_VALUES, {"loss": RULES["loss"]}),
        "demo": Preset("the four losses within minutes on two CPU cores", DEMO_VALUES, RULES),
        "ablation": Preset(
            "the demo's four losses, each trained to the end",
            DEMO_VALUES | {"save_student": False},
            {"loss": Ablation(["ce", "token_kd", "guided"])},
        ),
        "full": Preset("the published settings", {}, RULES | {"lr": loguniform(5e-5, 1e-3)}),
    },
)
