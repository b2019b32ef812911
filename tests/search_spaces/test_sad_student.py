"""The search space of SAD students: presets, and settings that contradict each other."""

from __future__ import annotations

import pytest

from search_spaces.sad_student import SPACE
from search_spaces.settings import SettingError
from trainables.sad_student.config import SadConfig


def test_every_preset_is_valid_and_full_is_published() -> None:
    for preset in SPACE.presets:
        config, domains = SPACE.resolve(preset, num_samples=9)
        assert len(SPACE.sample(config, domains, 9, seed=0)) >= 9
    assert SPACE.resolve("full") == (SadConfig(), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mixture=1"], "mixture is 1.0 but must be above 0 and below 1"),
        (["depth=0.5"], "depth is '0.5', but its values must be at least 1"),
        (["teacher_share=linear:0:2"], "its values must be at least 0 and at most 1"),
        (["trajectories=7"], "trajectories is 7, fewer than the 8 of one step"),
        (["reasoning_weight=0", "action_weight=0"], "reasoning_weight and action_weight are 0, so nothing"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SPACE.resolve("full", sets=settings)
