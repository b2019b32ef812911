from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from ray.tune.search.sample import Categorical, choice, lograndint, loguniform, quniform, randint, uniform

from search_spaces.settings import (
    Ablation,
    SettingError,
    config_hash,
    domain_text,
    load_config_file,
    parse_set,
    parse_sweep,
    resolve,
    sample_configs,
)
from search_spaces.space import extremes
from trainables.common.errors import InputError


@dataclass(frozen=True)
class Toy:
    rank: int = 16
    lr: float = 0.1
    lr_multiple: float = 0.1
    fast: bool = False
    name: str = "a"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    layers: tuple[str, ...] = ("linear1",)
    widths: tuple[int, ...] = (1, 2)
    limit: int | None = None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rank=8", ("rank", 8)),
        (" rank = 8 ", ("rank", 8)),
        ("lr=1e-3", ("lr", 0.001)),
        ("lr=2", ("lr", 2.0)),
        ("fast=true", ("fast", True)),
        ("fast=False", ("fast", False)),
        ("name=8", ("name", "8")),
        ("name=a=b", ("name", "a=b")),
        ("schedule=cosine", ("schedule", "cosine")),
        ("layers=linear1,linear2", ("layers", ("linear1", "linear2"))),
        ("layers=('linear1',)", ("layers", ("linear1",))),
        ("layers=[linear1, 'encoder.linear2']", ("layers", ("linear1", "encoder.linear2"))),
        ("widths=3,4", ("widths", (3, 4))),
        ("limit=none", ("limit", None)),
        ("limit=5", ("limit", 5)),
    ],
)
def test_set_is_typed_by_the_field(text, expected):
    name, value = parse_set(text, Toy)
    assert (name, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rank", ["--set rank", "NAME=VALUE"]),
        ("rank=", ["NAME=VALUE"]),
        ("=8", ["NAME=VALUE"]),
        ("rnak=8", ["--set rnak=8", "no setting 'rnak'", "did you mean 'rank'", "schedule"]),
        ("sched=linear", ["did you mean 'schedule'"]),
        ("lay=linear1", ["did you mean 'layers'"]),
        ("zzz=8", ["no setting 'zzz' among fast, layers"]),
        ("rank=eight", ["--set rank=eight", "rank must be a whole number (int), not 'eight'"]),
        (f"rank={2**63}", ["rank must be a whole number (int), not '9223372036854775808'"]),
        ("rank=" + "9" * 5_000, ["rank must be a whole number (int), not '999", "..."]),
        ("rank=8.0", ["whole number", "'8.0'"]),
        ("rank=true", ["whole number"]),
        ("lr=fast", ["finite number (float)", "'fast'"]),
        ("lr=nan", ["finite number"]),
        ("lr=1e999", ["finite number"]),
        ("fast=1", ["true or false", "'1'"]),
        ("schedule=cosin", ["one of 'constant', 'linear', 'cosine'", "did you mean 'cosine'"]),
        ("layers=a,,b", ["a list in which every item is text", "'a,,b'"]),
        ("widths=1,x", ["every item is a whole number"]),
        ("limit=some", ["a whole number (int) or none"]),
        ("rank=__import__('os')", ["whole number"]),
    ],
)
def test_set_refuses_with_one_sentence(text, parts):
    with pytest.raises(InputError) as caught:
        parse_set(text, Toy)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "domain"),
    [
        ("rank=choice(4, 8, 16)", "rank", choice([4, 8, 16])),
        ("rank=grid(4,8)", "rank", Categorical([4, 8]).grid()),
        ("rank=ablate(4,8)", "rank", Ablation([4, 8])),
        ("rank=4,8,16", "rank", choice([4, 8, 16])),
        ("rank=[4,8]", "rank", choice([4, 8])),
        ("rank=choice([4, 8])", "rank", choice([4, 8])),
        ("lr=choice(1, 0.5)", "lr", choice([1.0, 0.5])),
        ("lr=uniform(-1, 1)", "lr", uniform(-1, 1)),
        ("lr_multiple=loguniform(0.03,0.3)", "lr_multiple", loguniform(0.03, 0.3)),
        ("lr=quniform(0, 1, 0.25)", "lr", quniform(0, 1, 0.25)),
        ("rank=randint(1, 9)", "rank", randint(1, 9)),
        ("rank=lograndint(1, 64)", "rank", lograndint(1, 64)),
        ("fast=true,false", "fast", choice([True, False])),
        ("schedule=choice(constant, 'cosine')", "schedule", choice(["constant", "cosine"])),
        (
            "layers=choice((linear1,), (linear1, encoder.linear2))",
            "layers",
            choice([("linear1",), ("linear1", "encoder.linear2")]),
        ),
        ("layers=choice([[linear1], [linear2]])", "layers", choice([("linear1",), ("linear2",)])),
        ("layers=choice([linear1, linear2])", "layers", choice([("linear1", "linear2")])),
    ],
)
def test_sweep_gives_a_domain_of_ray_tune(text, name, domain):
    found_name, found = parse_sweep(text, Toy)
    assert found_name == name
    assert type(found) is type(domain)
    assert type(found.get_sampler()) is type(domain.get_sampler())
    assert extremes(found) == extremes(domain)
    assert all(type(a) is type(b) for a, b in zip(extremes(found), extremes(domain), strict=True) if "choice" in text)
    written = domain_text(found)
    again = parse_sweep(f"{name}={written}", Toy)[1]
    assert domain_text(again) == written and type(again) is type(found) and extremes(again) == extremes(found)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rank", ["--sweep rank", "NAME=VALUE"]),
        ("rnak=4,8", ["did you mean 'rank'"]),
        ("rank=8", ["'8' is not a domain", "choice(a, b)"]),
        ("rank=pick(4,8)", ["no domain 'pick' among choice"]),
        ("lr=logunifrom(1,2)", ["did you mean 'loguniform'"]),
        ("rank=loguniform(1, 64)", ["loguniform does not fit rank", "whole number", "lograndint(low, high)"]),
        ("rank=uniform(1, 64)", ["use randint(low, high)"]),
        ("rank=quniform(1, 64, 2)", ["use randint(low, high)"]),
        ("lr=lograndint(1, 64)", ["use loguniform(low, high)"]),
        ("lr=randint(1, 64)", ["use uniform(low, high)"]),
        ("schedule=uniform(0, 1)", ["use choice(...)"]),
        ("fast=randint(0, 2)", ["use choice(...)"]),
        ("rank=choice(4, 8.5)", ["--sweep rank=choice(4, 8.5)", "whole number (int), not 8.5"]),
        ("rank=4,x", ["whole number (int), not 'x'"]),
        ("rank=choice()", ["at least one value"]),
        ("rank=choice(4, True)", ["not True"]),
        ("rank=grid(4, 8, 4)", ["grid() tries every value once; give none of them twice"]),
        ("rank=ablate()", ["ablate() needs at least one value"]),
        ("lr=loguniform(0, 1)", ["lower bound 0.0 of loguniform must be above 0"]),
        ("lr=uniform(1, 0)", ["lower bound 1.0 must be below the upper bound 0.0"]),
        ("lr=uniform(1)", ["write uniform(low, high), not 1 numbers"]),
        ("lr=quniform(0, 1)", ["write quniform(low, high, step)"]),
        ("lr=quniform(0, 1, 0.3)", ["multiples of the step 0.3"]),
        ("lr=quniform(0, 1, 0)", ["multiples of the step 0.0"]),
        ("lr=quniform(0, 1, -0.5)", ["step -0.5"]),
        ("lr=loguniform(0.03", ["is not a domain"]),
        ("lr=loguniform(lower=1, upper=2)", ["is not a domain"]),
        ("lr=loguniform(1, 1+1)", ["is not a domain"]),
        ("lr=__import__('os').getpid()", ["is not a domain"]),
        ("lr=choice(exit())", ["is not a domain"]),
        ("layers=linear1,linear2", ["is not a domain"]),
    ],
)
def test_sweep_refuses_with_one_sentence(text, parts):
    with pytest.raises(InputError) as caught:
        parse_sweep(text, Toy)
    for part in parts:
        assert part in str(caught.value)


def _file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_config_file_says_what_the_command_line_says(tmp_path):
    path = _file(
        tmp_path,
        """
        set: {rank: 8, lr: 1e-3, fast: yes, layers: [linear1, linear2], limit: null}
        sweep:
          lr_multiple: loguniform(0.03, 0.3)
          schedule: [constant, cosine]
          widths: [[1], [2, 3]]
        """,
    )
    file = load_config_file(path, Toy)
    # YAML reads 1e-3 as text: it must become a number here
    assert file.values == {"rank": 8, "lr": 0.001, "fast": True, "layers": ("linear1", "linear2"), "limit": None}
    assert extremes(file.domains["lr_multiple"]) == [0.03, 0.3]
    assert extremes(file.domains["schedule"]) == ["constant", "cosine"]
    assert extremes(file.domains["widths"]) == [(1,), (2, 3)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["must hold the sections 'set' or 'sweep'"]),
        ("- rank", ["must hold the sections"]),
        ("rank: 8", ["section 'rank'", "put 'rank' under one of them"]),
        ("sweeps: {}", ["section 'sweeps'", "only 'set' and 'sweep'"]),
        ("set: 8", ["'set'", "map names to values, not 8"]),
        ("set:\n", ["not None"]),
        ("set: {rank: [", ["not valid YAML", "line"]),
        ("set: " + "[" * 100_000, ["not valid YAML", "nested too deeply"]),
        ("set: {rank: " + "1" * 5_000 + "}", ["not valid YAML", "thousands of digits"]),
        ("set: {rnak: 8}", ["config.yaml, set, rnak: 8", "did you mean 'rank'"]),
        ("set: {rank: 8.5}", ["rank must be a whole number (int), not 8.5"]),
        ("set: {fast: 1}", ["true or false, not 1"]),
        ("set: {name: 7}", ["text (str), not 7"]),
        ("set: {lr: .inf}", ["finite number"]),
        ("set: {3: 8}", ["no setting '3'"]),
        ("sweep: {rank: 'loguniform(1, 8)'}", ["config.yaml, sweep, rank", "lograndint"]),
        ("sweep: {rank: 8}", ["'8' is not a domain"]),
        ("sweep: {rank: []}", ["at least one value"]),
        ("{set: {rank: 8}, sweep: {rank: [4, 8]}}", ["both sets and sweeps rank"]),
    ],
)
def test_config_file_refuses_with_one_sentence(tmp_path, text, parts):
    with pytest.raises(InputError) as caught:
        load_config_file(_file(tmp_path, text), Toy)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_file_that_is_missing_or_not_text(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        load_config_file(tmp_path / "none.yaml", Toy)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bytes\.yaml cannot be read"):
        load_config_file(tmp_path / "bytes.yaml", Toy)


def test_the_later_source_wins(tmp_path):
    file = load_config_file(_file(tmp_path, "set: {lr: 2.0, rank: 3, name: file}"), Toy)
    config = resolve(Toy, {"rank": 2, "lr": 1, "fast": True}, file, ["rank=4", "rank=5"])
    assert config == Toy(rank=5, lr=2.0, fast=True, name="file")
    assert resolve(Toy, {}, None, []) == Toy()


def test_a_value_out_of_range_says_where_it_came_from(tmp_path):
    def validate(config):
        if config.rank < 1:
            raise SettingError("rank", f"is {config.rank} but must be at least 1")

    file = load_config_file(_file(tmp_path, "set: {rank: 0}"), Toy)
    for arguments, source in (
        (({}, None, ["rank=0"]), "--set rank=0"),
        (({}, file, []), "the configuration file"),
        (({"rank": 0}, None, []), "the preset"),
    ):
        with pytest.raises(InputError, match="rank is 0 but must be at least 1") as caught:
            resolve(Toy, *arguments, validate)
        assert source in str(caught.value)
    with pytest.raises(InputError, match="the preset's rank=x: rank must be"):
        resolve(Toy, {"rank": "x"}, None, [])


def test_hash_ignores_order_and_the_kind_of_list():
    config = dataclasses.asdict(Toy())
    digest = config_hash(config, 0)
    assert len(digest) == 10 and int(digest, 16) >= 0
    assert digest == config_hash(dict(reversed(config.items())), 0) == config_hash(json.loads(json.dumps(config)), 0)
    assert digest != config_hash(config, 1)
    assert digest != config_hash({**config, "rank": 8}, 0)


DOMAINS = {
    "rank": choice([4, 8, 16]),
    "lr": loguniform(1 / 3000, 0.3),
    "lr_multiple": quniform(0, 0.9, 0.3),
    "limit": lograndint(1, 64),
}


@given(st.integers(0, 2**40), st.integers(0, 12), st.integers(0, 12), st.sets(st.sampled_from(sorted(DOMAINS))))
@hypothesis_settings(max_examples=60, deadline=None)
def test_more_samples_extend_the_list(seed, few, more, names):
    config, domains = dataclasses.asdict(Toy()), {name: DOMAINS[name] for name in sorted(names)}
    samples = sample_configs(config, domains, few + more, seed)
    assert sample_configs(config, domains, few, seed) == samples[:few]
    assert len({config_hash(drawn, training_seed) for drawn, training_seed in samples}) == few + more
    for drawn, _ in samples:
        assert drawn.keys() == config.keys()
        assert all(drawn[name] == config[name] for name in config.keys() - names)
        for name in names:
            assert domains[name].is_valid(drawn[name])
            assert type(drawn[name]) in (int, float)
        assert json.loads(json.dumps(drawn))["lr"] == drawn["lr"]


def test_sweeping_one_more_setting_leaves_the_others_as_they_were():
    config = dataclasses.asdict(Toy())
    one = sample_configs(config, {"lr": DOMAINS["lr"]}, 5, seed=3)
    two = sample_configs(config, {"rank": DOMAINS["rank"], "lr": DOMAINS["lr"]}, 5, seed=3)
    assert [drawn["lr"] for drawn, _ in one] == [drawn["lr"] for drawn, _ in two]
    assert len({drawn["lr"] for drawn, _ in one}) == 5


def test_without_domains_samples_differ_by_their_seed():
    config = dataclasses.asdict(Toy())
    assert sample_configs(config, {}, 3, seed=7) == [(config, 7), (config, 8), (config, 9)]


def test_a_grid_is_tried_whole_and_again_with_the_next_seed():
    config = dataclasses.asdict(Toy())
    domains = {"rank": Categorical([4, 8]).grid(), "fast": Categorical([True, False]).grid()}
    samples = sample_configs(config, domains, 2, seed=5)
    product = [(4, True), (4, False), (8, True), (8, False)]
    assert [(drawn["rank"], drawn["fast"], seed) for drawn, seed in samples] == [
        (rank, fast, seed) for seed in (5, 6) for rank, fast in product
    ]
    # what is drawn beside a grid is shared by its values
    beside = sample_configs(config, {**domains, "lr": DOMAINS["lr"]}, 2, seed=5)
    assert [len({drawn["lr"] for drawn, _ in beside[part]}) for part in (slice(0, 4), slice(4, 8), slice(8))] == [
        1,
        1,
        2,
    ]


def test_an_ablation_changes_one_setting_at_a_time_with_the_same_seeds():
    config = dataclasses.asdict(Toy())
    # a value that the configuration has already is no variant of it
    domains = {
        "rank": Ablation([config["rank"], 4]),
        "lr": Ablation([0.5, 0.25]),
        "fast": Categorical([True, False]).grid(),
    }
    samples = sample_configs(config, domains, 3, seed=5)
    changes = [
        ({name: drawn[name] for name in ("rank", "lr") if drawn[name] != config[name]}, drawn["fast"], seed)
        for drawn, seed in samples
    ]
    assert changes == [
        (change, fast, seed)
        for seed in (5, 6, 7)
        for fast in (True, False)
        for change in ({}, {"rank": 4}, {"lr": 0.5}, {"lr": 0.25})
    ]
    assert sample_configs(config, domains, 1, seed=5) == samples[:8]


def test_samples_are_the_same_on_every_machine():
    # units of work are named by these values: a change here makes earlier runs start over
    samples = sample_configs({}, {"rank": choice([4, 8, 16, 32]), "lr": loguniform(0.03, 0.3)}, 3, seed=0)
    assert samples == [
        ({"rank": 8, "lr": 0.0453426}, 0),
        ({"rank": 4, "lr": 0.114012}, 0),
        ({"rank": 32, "lr": 0.296564}, 0),
    ]
