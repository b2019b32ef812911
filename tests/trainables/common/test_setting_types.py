"""Settings that hold a schedule, and ranges in words."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from trainables.common.setting_types import ScheduleText, bounds


@pytest.mark.parametrize(
    ("within", "good", "bad"),
    [
        (ScheduleText(ge=0, le=1), ["0", "1", "linear:0:1"], ["-0.1", "linear:0.5:1.5", "cosine:2:1"]),
        (ScheduleText(gt=0), ["1e-9", "exponential:1:0.1:2000"], ["0", "linear:1:0"]),
        (ScheduleText(), ["-5", "linear:3:-3:50%"], ["linear:1", "nan", ""]),
    ],
)
def test_a_schedule_has_all_its_values_within_its_range(within: ScheduleText, good: list[str], bad: list[str]) -> None:
    adapter = TypeAdapter(Annotated[str, within])
    assert [adapter.validate_python(text) for text in good] == good
    for text in bad:
        with pytest.raises(ValidationError, match="its values must be|cannot be read"):
            adapter.validate_python(text)


def test_ranges_in_words() -> None:
    assert bounds() == "" and bounds(ge=1) == "at least 1" and bounds(gt=0, lt=0.9) == "above 0 and below 0.9"
