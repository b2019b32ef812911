from __future__ import annotations

import pytest

from search_spaces.champion import SPACE
from trainables.atomic_lora.config import ChampionConfig
from trainables.common.errors import InputError


def test_every_preset_is_valid_and_full_is_published():
    assert list(SPACE.presets) == ["smoke", "demo", "full"]
    for preset in SPACE.presets:
        SPACE.resolve(preset)
    assert SPACE.resolve("full") == (ChampionConfig(), {})
    assert SPACE.grace_period(ChampionConfig()) == ChampionConfig().eval_every


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("heads=3", "width is 160 but must be a multiple of heads, which is 3"),
        ("context_width=30", "context_width is 30 but must be a multiple of context_heads, which is 8"),
        ("heads=0", "heads is 0"),
        ("lr=0", "lr is 0.0 but must be above 0"),
        ("beta2=1", "beta2 is 1.0 but must be at least 0 and below 1"),
        ("warmup_steps=-1", "warmup_steps is -1"),
        ("batch_size=0", "batch_size is 0"),
        ("eval_every=0", "eval_every is 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        SPACE.resolve("full", sets=[setting])
