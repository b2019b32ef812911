from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import pytest
from pydantic import PositiveFloat, PositiveInt
from ray.tune.search.sample import Categorical, choice, loguniform, randint, sample_from

from search_spaces.settings import Ablation, SettingError
from search_spaces.space import Preset, SearchSpace, extremes
from trainables.common.errors import InputError
from trainables.common.family import Family


@dataclass(frozen=True)
class Toy:
    rank: PositiveInt = 16
    lr: PositiveFloat = 0.1
    width: int = 32
    heads: PositiveInt = 4
    epochs: PositiveInt = 50
    report_every: PositiveInt = 5


def validate(config):
    if config.width % config.heads:
        raise SettingError("width", f"is {config.width} but must be a multiple of heads, which is {config.heads}")


SPACE = SearchSpace(
    family=Family("toy"),
    config=Toy,
    validate=validate,
    presets={
        "demo": Preset("small", {"epochs": 3}, {"rank": choice([4, 8]), "lr": loguniform(0.01, 1.0)}),
        "full": Preset("as published"),
    },
)


def _file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_preset_file_and_command_line_together(tmp_path):
    path = _file(tmp_path, "{set: {rank: 2}, sweep: {lr: [0.1, 0.2]}}")
    config, domains = SPACE.resolve("demo", path, ["width=64"], ["heads=2,4"])
    assert config == Toy(rank=2, width=64, epochs=3)
    assert {name: extremes(domain) for name, domain in domains.items()} == {"lr": [0.1, 0.2], "heads": [2, 4]}


def test_other_defaults_give_way_to_everything_else_and_are_not_swept_by_the_preset():
    assert SPACE.resolve("demo", defaults={"rank": 2, "epochs": 9})[0] == Toy(rank=2, epochs=3)
    assert SPACE.resolve("demo", None, ["rank=4"], defaults={"rank": 2})[0].rank == 4
    assert set(SPACE.resolve("demo", num_samples=2, defaults={"rank": 2})[1]) == {"lr"}
    assert set(SPACE.resolve("demo", None, [], ["rank=4,8"], 2, {"rank": 2})[1]) == {"rank"}


def test_the_presets_sweep_counts_only_when_nothing_else_says_what_to_sweep(tmp_path):
    assert SPACE.resolve("demo")[1] == {}
    assert set(SPACE.resolve("demo", num_samples=2)[1]) == {"rank", "lr"}
    assert set(SPACE.resolve("demo", None, ["rank=2"], num_samples=2)[1]) == {"lr"}
    assert set(SPACE.resolve("demo", _file(tmp_path, "set: {lr: 1}"), num_samples=2)[1]) == {"rank"}
    assert set(SPACE.resolve("demo", sweeps=["heads=2,4"], num_samples=2)[1]) == {"heads"}


def test_a_preset_whose_sweep_tries_every_value_needs_no_number_of_samples():
    preset = Preset(
        "parts", sweep={"rank": Ablation([4]), "heads": Categorical([2, 4]).grid(), "lr": loguniform(0.1, 1)}
    )
    space = dataclasses.replace(SPACE, presets={"parts": preset})
    assert set(space.resolve("parts")[1]) == {"rank", "heads"}
    assert set(space.resolve("parts", num_samples=2)[1]) == {"rank", "heads", "lr"}
    assert set(space.resolve("parts", sets=["rank=2"])[1]) == {"heads"}
    assert len(space.sample(*space.resolve("parts"), 1, seed=0)) == 4


def test_the_command_line_wins_over_the_file(tmp_path):
    swept = _file(tmp_path, "sweep: {rank: [4, 8], lr: [0.1, 0.2]}")
    config, domains = SPACE.resolve("full", swept, ["rank=2"], ["lr=0.3,0.4"])
    assert config.rank == 2 and {n: extremes(d) for n, d in domains.items()} == {"lr": [0.3, 0.4]}
    fixed = _file(tmp_path, "set: {rank: 2}")
    assert set(SPACE.resolve("full", fixed, [], ["rank=4,8"])[1]) == {"rank"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "dmeo"}, r"no preset 'dmeo' among demo, full; did you mean 'demo'\?"),
        ({"preset": "full", "sets": ["rank=0"]}, r"rank is 0 but must be at least 1 \(given by --set rank=0\)"),
        ({"preset": "full", "sets": ["lr=0"]}, "lr is 0.0 but must be above 0"),
        (
            {"preset": "full", "sets": ["rank=2"], "sweeps": ["rank=2,4"]},
            "rank is given both with --set and with --sweep",
        ),
        ({"preset": "full", "sweeps": ["rank=4,0"]}, "The sweep over rank reaches 0: rank is 0"),
        ({"preset": "full", "sweeps": ["rank=randint(0, 9)"]}, "The sweep over rank reaches 0"),
        ({"preset": "full", "sweeps": ["lr=uniform(-1, 1)"]}, "The sweep over lr reaches -1.0: lr is -1.0"),
        ({"preset": "full", "sweeps": ["heads=4,5"]}, "The sweep over heads reaches 5: width is 32"),
        ({"preset": "full", "config_path": "missing.yaml"}, r"missing\.yaml cannot be read"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SPACE.resolve(**arguments)


def test_settings_that_fit_only_together_are_checked_as_they_are_drawn():
    config, domains = SPACE.resolve("full", sweeps=["heads=3,5", "width=32,64"])
    with pytest.raises(
        InputError, match=r"Sample 0 of the sweep \(heads=[35], width=\d+\) cannot be trained: width is \d+"
    ):
        SPACE.sample(config, domains, 2, seed=0)


def test_what_goes_with_no_value_of_a_fixed_setting_is_refused_however_much_is_swept_beside_it():
    with pytest.raises(InputError, match=r"The sweep over heads reaches 3: width is 32 but must be a multiple"):
        SPACE.resolve("full", sweeps=["heads=3,5", "lr=0.1,0.2"])


def test_samples_are_complete_configurations():
    config, domains = SPACE.resolve("demo", num_samples=3)
    samples = SPACE.sample(config, domains, 3, seed=1)
    assert [Toy(**values).epochs for values, _ in samples] == [3, 3, 3]


def test_what_asha_is_told():
    assert SPACE.grace_period(Toy(report_every=7)) == 7
    assert SPACE.longest(Toy(), {}) == 50
    assert SPACE.longest(Toy(), {"epochs": choice([10, 200, 30])}) == 200
    assert SPACE.longest(Toy(), {"epochs": randint(1, 10)}) == 9


def test_a_domain_without_bounds_is_a_defect_of_the_space():
    with pytest.raises(TypeError, match="Function"):
        extremes(sample_from(lambda: 1))


def test_search_spaces_do_not_import_torch():
    code = "import sys, search_spaces.champion, search_spaces.atomic_lora_search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
