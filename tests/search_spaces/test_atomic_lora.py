from __future__ import annotations

import pytest

from search_spaces.atomic_lora import DEFAULT_SWEEP, SPACE
from trainables.atomic_lora.config import AdapterConfig
from trainables.common.errors import InputError


def test_every_preset_and_its_sweep_is_valid():
    assert list(SPACE.presets) == ["smoke", "demo", "demo-lm", "full"]
    for preset in SPACE.presets:
        config, domains = SPACE.resolve(preset, num_samples=20)
        assert domains
        SPACE.sample(config, domains, 20, seed=0)


def test_full_is_the_default_and_has_the_published_settings():
    assert SPACE.default_preset == "full"
    assert SPACE.resolve("full") == (AdapterConfig(), {})
    config = AdapterConfig()
    assert (config.epochs, config.patience, config.min_delta, config.lr_multiple) == (50, 10, 0.001, 0.1)


def test_the_full_sweep_covers_the_documented_settings():
    names = {"rank", "alpha", "lr_multiple", "batch_size", "epochs", "target_modules", "weight_decay"}
    assert set(DEFAULT_SWEEP) == names
    assert SPACE.longest(AdapterConfig(), DEFAULT_SWEEP) == 100


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rank=0", "rank is 0 but must be at least 1"),
        ("rank=-4", "rank is -4"),
        ("alpha=0", "alpha is 0.0 but must be above 0"),
        ("epochs=0", "epochs is 0"),
        ("patience=0", "patience is 0"),
        ("batch_size=0", "batch_size is 0"),
        ("examples_per_epoch=0", "examples_per_epoch is 0"),
        ("report_every=0", "report_every is 0"),
        ("lr_multiple=-0.1", "lr_multiple is -0.1 but must be above 0"),
        ("clip_norm=0", "clip_norm is 0.0"),
        ("weight_decay=-1", "weight_decay is -1.0 but must be at least 0"),
        ("min_delta=-1", "min_delta is -1.0"),
        ("validation_pairs=3", "validation_pairs is 3 but must be at least 0 and at most 2"),
        ("target_modules=()", "target_modules must be a list"),
        ("target_modules=linear1,linear1", "must name each layer once"),
        ("lr_schedule=step", "one of 'constant', 'linear', 'cosine'"),
        ("lr=0.1", "did you mean 'lr_"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InputError, match=message) as caught:
        SPACE.resolve("full", sets=[setting])
    assert f"--set {setting}" in str(caught.value)


def test_an_empty_list_of_layers_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("set: {target_modules: []}")
    with pytest.raises(InputError, match="target_modules is empty but must name at least one linear layer"):
        SPACE.resolve("full", str(path))
