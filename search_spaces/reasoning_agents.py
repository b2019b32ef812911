"""What the sweep over reasoning agents varies, by phase: encoders and LoRA, retrieval, self-play, and the router."""

from __future__ import annotations

from ray.tune import choice, loguniform

from search_spaces.settings import SettingError
from search_spaces.space import Preset, SearchSpace
from trainables.reasoning_agents.config import AgentsConfig
from trainables.reasoning_agents.family import FAMILY


def validate(config: AgentsConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingError: For the first one.
    """
    if config.chunk_size < 2 * config.overlap:
        raise SettingError(
            "chunk_size", f"is {config.chunk_size} but must be at least twice the overlap of {config.overlap}"
        )


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
    groups={
        "phases 1 and 2, the agents": "rank",
        "retrieval": "chunks",
        "phase 3, self-play": "game",
        "phase 4, the router": "router",
        "length": "grace_period",
    },
    presets={
        "smoke": Preset(
            "all five phases within a minute, too short to learn", SMOKE_VALUES, {"router": SWEPT["router"]}
        ),
        "demo": Preset("all five phases within 15 minutes on two CPU cores", DEMO_VALUES, SWEPT),
        "full": Preset("the published settings", {}, SWEPT),
    },
)
