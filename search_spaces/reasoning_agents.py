"""What the sweep over reasoning agents varies, by phase: encoders and LoRA, retrieval, self-play, and the router."""

from __future__ import annotations

from ray.tune import choice, loguniform

from search_spaces.settings import SettingError
from search_spaces.space import Preset, SearchSpace, require_above_zero, require_at_least
from trainables.reasoning_agents.config import AgentsConfig
from trainables.reasoning_agents.family import FAMILY


def validate(config: AgentsConfig) -> None:
    """Refuse settings with which the agents cannot be built or trained.

    Raises:
        SettingError: For the first setting that is out of range.
    """
    require_at_least(config, 1, "rank", "alpha", "batch_size", "accumulation", "hrm_steps", "trm_steps", "tuning_steps")
    require_at_least(config, 1, "train_problems", "max_refinements", "k", "simulations", "net_steps", "buffer")
    require_at_least(config, 1, "positions", "grace_period")
    require_at_least(config, 2, "selfplay_games", "match_games")
    require_at_least(config, 16, "held_out_problems", "routed_problems")
    require_at_least(config, 0, "layers", "overlap", "cost_weight")
    require_at_least(config, 60, "chunks")
    require_above_zero(config, "lr", "clip_norm", "c", "net_lr")
    if not 0 <= config.dropout < 1:
        raise SettingError("dropout", f"is {config.dropout} but must be at least 0 and below 1")
    if config.chunk_size < 2 * config.overlap or config.chunk_size < 64:
        raise SettingError("chunk_size", f"is {config.chunk_size} but must be at least 64, and twice the overlap")
    if config.epochs < 7 or (config.epochs - 3) % 4:
        near = max(7, 3 + 4 * round((config.epochs - 3) / 4))
        raise SettingError("epochs", f"is {config.epochs} but must be 3 and a multiple of 4, such as {near}")


SMOKE_VALUES = {
    "rank": 4,
    "layers": 1,
    "lr": 2e-3,
    "batch_size": 4,
    "accumulation": 1,
    "hrm_steps": 4,
    "trm_steps": 4,
    "tuning_steps": 2,
    "train_problems": 32,
    "held_out_problems": 16,
    "max_refinements": 2,
    "chunks": 60,
    "k": 1,
    "game": "nim(pile_sizes=3;5;7)",
    "simulations": 8,
    "selfplay_games": 8,
    "net_steps": 8,
    "match_games": 8,
    "positions": 16,
    "routed_problems": 16,
    "grace_period": 1,
    "epochs": 7,
}
DEMO_VALUES = {
    "lr": 2e-3,
    "batch_size": 8,
    "accumulation": 1,
    "hrm_steps": 500,
    "trm_steps": 200,
    "tuning_steps": 80,
    "train_problems": 4000,
    "held_out_problems": 80,
    "max_refinements": 4,
    "k": 1,
    "game": "tic_tac_toe",
    "simulations": 50,
    "selfplay_games": 300,
    "buffer": 4000,
    "net_steps": 300,
    "match_games": 200,
    "positions": 200,
    "routed_problems": 100,
    "epochs": 15,
}
SWEPT = {
    # phase 1
    "lr": loguniform(1e-5, 3e-3),
    "rank": choice([4, 8, 16]),
    "pooling": choice(["token", "cls"]),
    # phase 2
    "k": choice([1, 2, 5]),
    # phase 3
    "simulations": choice([50, 100, 200]),
    "c": choice([1.0, 1.414, 2.0]),
    # phase 4
    "router": choice(["mlp", "logistic", "knn"]),
}

SPACE = SearchSpace(
    family=FAMILY,
    config=AgentsConfig,
    validate=validate,
    rung_setting="grace_period",
    presets={
        "smoke": Preset(
            "all five phases within a minute, too short to learn", SMOKE_VALUES, {"router": SWEPT["router"]}
        ),
        "demo": Preset("all five phases within 15 minutes on two CPU cores", DEMO_VALUES, SWEPT),
        "full": Preset("the published settings", {}, SWEPT),
    },
)
