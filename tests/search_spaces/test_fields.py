"""Fields of a family's dataclass: how a configuration is checked, and what is said of each field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from search_spaces.fields import Setting, check, settings_of
from search_spaces.settings import SettingError, parse_set
from sweeps.settings import spaces
from trainables.common.setting_types import ScheduleText


def require_odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(f"is {number} but must be odd")
    return number


@dataclass(frozen=True)
class Toy:
    """A toy."""

    rank: PositiveInt = 16
    """LoRA rank
    r."""
    warmup: NonNegativeInt = 0
    lr: PositiveFloat = 0.1
    """Learning rate; ``0.1`` is much."""
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
    share: Annotated[str, ScheduleText(ge=0, le=1)] = "linear:0:1"
    side: Annotated[int, Field(ge=5, le=29), AfterValidator(require_odd)] = 5
    shape: Literal["constant", "linear", "cosine"] = "constant"
    layers: tuple[str, ...] = ("linear1",)
    fast: bool = False
    limit: int | None = None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0 but must be at least 1."),
        ({"warmup": -1}, "warmup is -1 but must be at least 0."),
        ({"lr": 0.0}, "lr is 0.0 but must be above 0."),
        ({"beta": 1.0}, "beta is 1.0 but must be at least 0 and below 1."),
        ({"side": 31}, "side is 31 but must be at least 5 and at most 29."),
        ({"side": 6}, "side is 6 but must be odd."),
        ({"share": "linear:0:2"}, "share is 'linear:0:2', but its values must be at least 0 and at most 1."),
        ({"rank": "many"}, "rank is 'many': Input should be a valid integer, unable to parse string as an integer."),
        ({"lr": -1.0, "rank": 0}, "rank is 0 but must be at least 1."),
    ],
)
def test_the_first_value_that_a_field_may_not_have_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        check(dataclasses.replace(Toy(), **changes))
    assert str(caught.value) == message and caught.value.name in changes


def test_a_schedule_that_cannot_be_read_says_how_to_write_one() -> None:
    with pytest.raises(SettingError, match="^share cannot be read: 'cubic:1:0' is not a schedule; write a number, or "):
        check(Toy(share="cubic:1:0"))


def test_configurations_stay_plain() -> None:
    check(Toy())
    assert Toy(**dataclasses.asdict(Toy())) == Toy() and vars(Toy()) == dataclasses.asdict(Toy())
    assert Toy(rank=0).rank == 0


def test_what_is_said_of_a_field() -> None:
    said = {setting.name: setting for setting in settings_of(Toy)}
    assert list(said) == [item.name for item in dataclasses.fields(Toy)]
    assert said["rank"] == Setting("rank", 16, "whole number", "at least 1", "LoRA rank r.")
    assert said["lr"].documentation == "Learning rate; ``0.1`` is much." and said["warmup"].documentation == ""
    assert {name: setting.values for name, setting in said.items()} == {
        "rank": "whole number, at least 1",
        "warmup": "whole number, at least 0",
        "lr": "number, above 0",
        "beta": "number, at least 0 and below 1",
        "share": "schedule, at least 0 and at most 1",
        "side": "whole number, at least 5 and at most 29",
        "shape": "constant, linear or cosine",
        "layers": "list of text",
        "fast": "true or false",
        "limit": "whole number or none",
    }


def test_a_field_that_is_inherited_keeps_its_documentation() -> None:
    @dataclass(frozen=True)
    class Child(Toy):
        """A toy's child."""

        rank: PositiveInt = 8
        fast: bool = True
        """How fast it is."""
        own: bool = False
        """Its own."""

    said = {setting.name: setting for setting in settings_of(Child)}
    assert (said["rank"].default, said["rank"].documentation) == (8, "LoRA rank r.")
    assert said["lr"] == settings_of(Toy)[2] and said["fast"].documentation == "How fast it is."
    assert list(said)[-1] == "own"


@pytest.mark.parametrize(("name", "space"), spaces())
def test_every_setting_of_the_project_is_documented_and_its_default_can_be_given(name: str, space: object) -> None:
    settings = settings_of(space.config)
    assert [setting.name for setting in settings if not setting.documentation.endswith(".")] == []
    for setting in settings:
        text = f"{setting.name}={setting.text}"
        assert parse_set(text, space.config) == (setting.name, setting.default)
    headings = space.sections()
    assert list(headings) == (list(space.groups) or [""]) and sum(map(len, headings.values())) == len(settings)
