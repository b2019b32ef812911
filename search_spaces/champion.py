"""What the pre-training of a base varies: its size and its budget, by architecture.

Several samples without a ``--sweep`` train the same configuration with consecutive seeds.
"""

from __future__ import annotations

from search_spaces.settings import SettingError
from search_spaces.space import Preset, SearchSpace, require_above_zero, require_at_least
from trainables.atomic_lora.config import CanvasConfig, ChampionConfig
from trainables.atomic_lora.family import CHAMPION
from trainables.common.schedules import Schedule


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


def validate_canvas(config: CanvasConfig) -> None:
    """Refuse settings with which a canvas model cannot be built or trained.

    Raises:
        SettingError: For the first setting that is out of range.
    """
    require_at_least(config, 1, "width", "heads", "layers", "feedforward", "task_width", "task_tokens", "batch_tokens")
    require_at_least(config, 1, "epochs", "eval_every", "warmup_steps")
    require_at_least(config, 0, "official_repeats", "weight_decay")
    require_above_zero(config, "lr", "embedding_lr", "minutes", "clip_norm", "changed_weight")
    if not 0 <= config.decay_from < 1:
        raise SettingError("decay_from", f"is {config.decay_from} but must be at least 0 and below 1")
    if config.width % (4 * config.heads):
        multiple = f"a multiple of 4 times heads, which is {4 * config.heads}"
        raise SettingError("width", f"is {config.width} but must be {multiple}")
    try:
        Schedule.parse(config.size_bias)
    except ValueError as error:
        raise SettingError("size_bias", f"is {config.size_bias!r}: {error}") from error


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
