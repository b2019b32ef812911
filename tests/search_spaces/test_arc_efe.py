"""The search space of prompted grid agents: presets, and settings that contradict each other."""

from __future__ import annotations

import dataclasses

import pytest

from search_spaces.arc_efe import SPACE
from search_spaces.settings import SettingError
from trainables.arc_efe.config import TERMS, EfeConfig, weights_of


def test_presets_resolve_and_the_full_one_is_as_published() -> None:
    for preset in SPACE.presets:
        SPACE.resolve(preset, num_samples=2)
    config, domains = SPACE.resolve("full")
    assert config == EfeConfig() and not domains
    assert weights_of(config) == {
        "risk": 1.0, "step": 0.1, "consistency": 1.0, "bidirectional": 0.5, "preference": 0.2, "prompt": 0.3,
        "cross_entropy": 1.0, "size": 1.0, "backward": 1.0,
    }  # fmt: skip


def test_every_term_can_be_ablated() -> None:
    config, domains = SPACE.resolve("ablation")
    assert {f"weight_{term}" for term in TERMS} <= domains.keys()
    assert len(SPACE.sample(config, domains, 1, 0)) > len(TERMS)


def test_terms_about_prompts_take_no_part_without_one() -> None:
    assert not {"prompt", "consistency", "preference"} & weights_of(EfeConfig(prompt="none")).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1}, "steps is 1, so weight_step must be 0"),
        ({"weight_risk": 0.0, "weight_cross_entropy": 0.0}, "nothing would teach the agent a colour"),
        ({"efe_share": 1.0}, "leaves the policy no gradient"),
        ({"weight_size": -1.0}, "weight_size is -1.0 but must be at least 0"),
        ({"smoothing": 0.0}, "smoothing is 0.0 but must be above 0"),
        ({"size_weight": "linear:1"}, "size_weight cannot be read"),
        ({"size_weight": "linear:1:0"}, "its values must be above 0"),
        ({"max_side": 31}, "max_side is 31 but must be at least 1 and at most 30"),
        ({"memory_similarity": 2.0}, "memory_similarity is 2.0 but must be at least -1 and at most 1"),
        ({"hard_weight": 0.5}, "hard_weight is 0.5 but must be at least 1"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SPACE.check(dataclasses.replace(EfeConfig(), **changes))
