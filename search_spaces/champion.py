"""What the pre-training of the Champion varies: its size and its budget.

Several samples without a ``--sweep`` train the same configuration with consecutive seeds.
"""

from __future__ import annotations

from search_spaces.settings import SettingError
from search_spaces.space import Preset, SearchSpace, require_above_zero, require_at_least
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.family import CHAMPION


def validate(config: ChampionConfig) -> None:
    """Refuse settings with which a Champion cannot be built or trained.

    Raises:
        SettingError: For the first setting that is out of range.
    """
    sizes = ("width", "heads", "feedforward", "encoder_layers", "decoder_layers")
    require_at_least(config, 1, *sizes, "context_width", "context_heads", "context_feedforward")
    require_at_least(config, 1, "batch_size", "epochs", "views_per_pair", "eval_every")
    require_at_least(config, 0, "warmup_steps")
    require_above_zero(config, "lr", "clip_norm")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise SettingError(name, f"is {getattr(config, name)!r} but must be at least 0 and below 1")
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
