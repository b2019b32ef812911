"""The search space of the agents: presets that can be trained, and settings that cannot."""

from __future__ import annotations

import pytest

from search_spaces.reasoning_agents import SPACE
from search_spaces.settings import SettingError
from trainables.reasoning_agents.games import SMALL


@pytest.mark.parametrize("preset", SPACE.presets)
def test_presets_can_be_trained_and_swept(preset: str) -> None:
    config, domains = SPACE.resolve(preset, num_samples=3)
    assert config.game in SMALL and config.epochs == 3 + 4 * config.rounds and domains
    assert len(SPACE.sample(config, domains, 3, 0)) == 3


def test_the_full_preset_has_the_published_settings() -> None:
    config, _ = SPACE.resolve("full")
    assert (config.rank, config.alpha, config.dropout, config.lr) == (8, 16, 0.1, 3e-5)
    assert (config.batch_size, config.accumulation, config.c, config.buffer) == (8, 2, 1.414, 1000)
    assert (config.chunks, config.chunk_size, config.overlap, config.k) == (500, 256, 32, 5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=9", "epochs is 9 but must be 3 and a multiple of 4, such as"),
        ("dropout=1", "dropout is 1.0 but must be at least 0 and below 1"),
        ("chunk_size=48", "chunk_size is 48 but must be at least 64"),
        ("held_out_problems=4", "held_out_problems is 4 but must be at least 16"),
        ("c=0", "c is 0.0 but must be above 0"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(setting: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SPACE.resolve("demo", sets=[setting])
