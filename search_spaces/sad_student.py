"""What the sweep over SAD students varies: loss, divergence, span weights, curriculum and rank."""

from __future__ import annotations

from ray.tune import choice, loguniform

from search_spaces.settings import Ablation, SettingError
from search_spaces.space import Preset, SearchSpace, require_above_zero, require_at_least
from trainables.common.errors import InputError
from trainables.common.schedules import Schedule
from trainables.sad_student.config import SadConfig
from trainables.sad_student.family import FAMILY


def validate(config: SadConfig) -> None:
    """Refuse settings with which a student cannot be trained.

    Raises:
        SettingError: For the first setting that is out of range.
    """
    require_at_least(config, 1, "batch_size", "accumulation", "epochs", "top_k", "eval_every", "rollouts")
    require_at_least(config, 1, "rollout_every", "validation_problems", "test_problems")
    require_at_least(config, 1, "checkpoint_every", "keep_checkpoints", "alpha")
    require_at_least(config, 0, "rank", "warmup_steps", "weight_decay", "entropy_weight", "consistency_weight")
    require_at_least(config, 0, "rollout_temperature")
    require_above_zero(config, "lr", "clip_norm", "temperature", "trust")
    for name in ("mixture", "on_policy"):
        if not 0 < getattr(config, name) < 1:
            raise SettingError(name, f"is {getattr(config, name)!r} but must be above 0 and below 1")
    if config.trajectories < config.batch_size * config.accumulation:
        raise SettingError(
            "trajectories",
            f"is {config.trajectories}, fewer than the {config.batch_size * config.accumulation} of one step",
        )
    for name in ("reasoning_weight", "action_weight", "observation_weight", "other_weight"):
        _require_schedule(config, name, 0)
    _require_schedule(config, "teacher_share", 0, 1)
    _require_schedule(config, "depth", 1)
    if config.loss in ("sad", "guided") and not any(
        max(schedule.start, schedule.end)
        for schedule in (Schedule.parse(config.reasoning_weight), Schedule.parse(config.action_weight))
    ):
        raise SettingError("reasoning_weight", "and action_weight are 0, so nothing that a student writes counts")


def _require_schedule(config: SadConfig, name: str, low: float, high: float = float("inf")) -> None:
    text = getattr(config, name)
    try:
        schedule = Schedule.parse(text)
    except InputError as error:
        raise SettingError(name, f"cannot be read: {str(error).rstrip('.')}") from None
    for value in (schedule.start, schedule.end):
        if not low <= value <= high:
            bounds = f"at least {low:g}" + (f" and at most {high:g}" if high != float("inf") else "")
            raise SettingError(name, f"is {text!r}, but its values must be {bounds}")


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
