"""What the pre-training of a base varies: its size and its budget, by architecture.

Several samples without a ``--sweep`` train the same configuration with consecutive seeds.
"""

from __future__ import annotations

from search_spaces.settings import SettingError
from search_spaces.space import Preset, SearchSpace
from trainables.atomic_lora.config import CanvasConfig, ChampionConfig
from trainables.atomic_lora.family import CHAMPION


def validate(config: ChampionConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingError: For the first one.
    """
    for width, heads in (("width", "heads"), ("context_width", "context_heads")):
        if getattr(config, width) % getattr(config, heads):
            multiple = f"a multiple of {heads}, which is {getattr(config, heads)}"
            raise SettingError(width, f"is {getattr(config, width)} but must be {multiple}")


SMOKE_VALUES = {
    "width": 32,
    "heads": 2,
    "feedforward": 64,
    "decoder_layers": 1,
    "context_width": 16,
    "context_heads": 2,
    "context_feedforward": 64,
    "warmup_steps": 5,
    "epochs": 1,
    "eval_every": 1,
}

SPACE = SearchSpace(
    family=CHAMPION,
    config=ChampionConfig,
    validate=validate,
    rung_setting="eval_every",
    presets={
        "smoke": Preset("a tiny model, one epoch", SMOKE_VALUES, tasks="smallest:8"),
        "demo": Preset(
            "the published size, about an hour on two CPU cores", {"epochs": 45, "eval_every": 3, "views_per_pair": 4}
        ),
        "full": Preset("the published size and budget"),
    },
)


def validate_canvas(config: CanvasConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingError: For the first one.
    """
    if config.width % (4 * config.heads):
        multiple = f"a multiple of 4 times heads, which is {4 * config.heads}"
        raise SettingError("width", f"is {config.width} but must be {multiple}")


CANVAS = SearchSpace(
    family=CHAMPION,
    config=CanvasConfig,
    validate=validate_canvas,
    rung_setting="eval_every",
    presets={
        "smoke": Preset(
            "a tiny model for two seconds",
            {"width": 16, "heads": 2, "layers": 1, "feedforward": 16, "minutes": 0.03, "epochs": 2},
            tasks="smallest:8",
        ),
        "demo": Preset("the size that ships, 40 minutes of a CPU core", {"layers": 6}),
        "full": Preset("the size that ships, three hours of two CPU cores", {"layers": 6, "minutes": 360.0}),
    },
)
SPACES = {"autoregressive": SPACE, "canvas": CANVAS}
