"""What the sweep over recursive reasoners varies: halting, planner, schedules and width.

A preset's ``tasks`` is its dataset.
"""

from __future__ import annotations

from ray.tune import choice, loguniform

from search_spaces.settings import Ablation, SettingError
from search_spaces.space import Preset, SearchSpace
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.family import FAMILY


def validate(config: ReasonerConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingError: For the first one.
    """
    if config.width % (2 * config.heads):
        raise SettingError("width", f"is {config.width} but must be a multiple of twice the heads ({config.heads})")
    if config.batch_size > config.train_puzzles:
        raise SettingError(
            "batch_size", f"is {config.batch_size}, more than the {config.train_puzzles} puzzles of train_puzzles"
        )
    if config.replay_batch > config.replay:
        raise SettingError("replay_batch", f"is {config.replay_batch}, more than the replay of {config.replay} holds")
    if config.gradient == "one_step" and config.planner != "none":
        raise SettingError("gradient", f"is one_step, which never reaches the planner ({config.planner}); use cycle")


SMOKE_VALUES = {
    "width": 16,
    "heads": 2,
    "layers": 1,
    "prefix": 1,
    "h_cycles": 2,
    "l_cycles": 1,
    "max_steps": 3,
    "lr": 3e-3,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "ema": 0.9,
    "batch_size": 16,
    "epochs": 2,
    "views_per_puzzle": 4,
    "train_puzzles": 64,
    "held_out_puzzles": 32,
    "maze_side": 9,
    "eval_every": 1,
    "checkpoint_every": 10,
    "replay_batch": 16,
}
DEMO_VALUES = {
    "width": 64,
    "heads": 4,
    "prefix": 1,
    "h_cycles": 2,
    "l_cycles": 2,
    "max_steps": 6,
    "lr": 2e-3,
    "lr_schedule": "cosine",
    "warmup_steps": 50,
    "weight_decay": 0.1,
    "ema": 0.99,
    "batch_size": 32,
    "epochs": 16,
    "views_per_puzzle": 1,
    "train_puzzles": 4000,
    "held_out_puzzles": 1024,
    "givens": 0.28,
    "eval_every": 4,
    "checkpoint_every": 500,
    # at this multiple of the learning rate direct prediction solves the most puzzles (docs/log.md)
    "direct_lr_ratio": 1.4,
}
RULES = {
    "halting": choice(["fixed", "bce", "dqn"]),
    "planner": choice(["none", "latent_paths", "continuous_thought"]),
    "lr_schedule": choice(["constant", "linear", "cosine"]),
}
# against the demo's settings: what each part of the published model and of this family's own is worth
ABLATION = {
    "gradient": Ablation(["one_step"]),
    "ema": Ablation([0.0]),
    # one supervision step: an answer is never improved on
    "max_steps": Ablation([1]),
    "halting": Ablation(["fixed", "dqn"]),
    "planner": Ablation(["latent_paths", "continuous_thought"]),
    "mixer": Ablation(["attention"]),
}

SPACE = SearchSpace(
    family=FAMILY,
    config=ReasonerConfig,
    validate=validate,
    rung_setting="eval_every",
    groups={
        "model": "mixer",
        "halting": "halting",
        "planner": "planner",
        "training": "lr",
        "evaluation and checkpoints": "eval_every",
    },
    presets={
        "smoke": Preset("a tiny model on 64 puzzles", SMOKE_VALUES, {"halting": RULES["halting"]}, tasks="sudoku4"),
        "demo": Preset(
            "6x6 Sudoku with few givens within minutes on two CPU cores",
            DEMO_VALUES,
            RULES | {"width": choice([48, 64, 96])},
            tasks="sudoku6",
        ),
        "ablation": Preset(
            "the demo without one of its parts at a time",
            # the direct-prediction baseline of all variants would be nearly one: the demo has it
            DEMO_VALUES | {"direct_baseline": False},
            ABLATION,
            tasks="sudoku6",
        ),
        "full": Preset(
            "9x9 Sudoku with the published settings",
            {},
            RULES | {"width": choice([256, 384, 512]), "lr": loguniform(3e-5, 1e-3)},
            tasks="sudoku9",
        ),
    },
)
