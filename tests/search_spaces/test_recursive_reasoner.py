from __future__ import annotations

import dataclasses

import pytest

from search_spaces.recursive_reasoner import SPACE
from trainables.common.errors import InputError
from trainables.puzzles.kinds import KINDS
from trainables.recursive_reasoner.config import ReasonerConfig


def test_every_preset_is_valid_and_full_is_published():
    assert list(SPACE.presets) == ["smoke", "demo", "ablation", "full"]
    for preset in ("smoke", "demo", "full"):
        config, domains = SPACE.resolve(preset, num_samples=9)
        assert len(SPACE.sample(config, domains, 9, seed=0)) == 9
        assert "halting" in domains and SPACE.presets[preset].tasks in KINDS
    assert SPACE.resolve("full") == (ReasonerConfig(), {})
    assert (SPACE.metric, SPACE.mode, SPACE.grace_period(ReasonerConfig())) == ("exact_accuracy", "max", 5)


def test_the_ablation_takes_one_part_away_at_a_time_with_the_same_seeds():
    config, domains = SPACE.resolve("ablation")
    base = dataclasses.asdict(config)
    demo, _ = SPACE.resolve("demo")
    assert {name for name in base if base[name] != getattr(demo, name)} == {"direct_baseline"}
    samples = SPACE.sample(config, domains, 2, seed=0)
    changes = [({n: v for n, v in values.items() if v != base[n]}, seed) for values, seed in samples]
    variants = [
        {}, {"gradient": "one_step"}, {"ema": 0.0}, {"max_steps": 1}, {"halting": "fixed"}, {"halting": "dqn"},
        {"planner": "latent_paths"}, {"planner": "continuous_thought"}, {"mixer": "attention"},
    ]  # fmt: skip
    assert changes == [(variant, seed) for seed in (0, 1) for variant in variants]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch_size=5000", "batch_size is 5000, more than the 1000 puzzles of train_puzzles"),
        ("heads=7", r"width is 512 but must be a multiple of twice the heads \(7\)"),
        ("h_cycles=0", "h_cycles is 0"),
        ("max_steps=0", "max_steps is 0"),
        ("halting=bec", "halting must be one of 'fixed', 'bce', 'dqn', not 'bec'; did you mean 'bce'"),
        ("planner=path", "planner must be one of"),
        ("ema=1", "ema is 1.0 but must be at least 0 and below 1"),
        ("maze_side=10", "maze_side is 10 but must be odd"),
        ("epsilon=cubic:1:0", "epsilon cannot be read: 'cubic:1:0' is not a schedule"),
        ("epsilon=linear:0.5:1.5", "its values must be at least 0 and at most 1"),
        ("temperature=0", "its values must be at least 1e-06"),
        ("thoughts=0.5", "must reach at least one thought"),
        ("replay_batch=99999", "replay_batch is 99999, more than the replay of 16384 holds"),
        ("lr=0", "lr is 0.0 but must be above 0"),
        ("front_end=capsule", "front_end must be one of 'auto', 'tokens', 'capsules'"),
        ("reconstruction_weight=0", "reconstruction_weight is 0.0 but must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        SPACE.resolve("full", sets=[setting])


def test_a_gradient_that_never_reaches_the_planner_is_refused():
    SPACE.resolve("full", sets=["gradient=one_step"])
    with pytest.raises(InputError, match="gradient is one_step, which never reaches the planner"):
        SPACE.resolve("full", sets=["gradient=one_step", "planner=latent_paths"])
