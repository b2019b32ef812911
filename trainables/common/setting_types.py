"""Types of settings beside those of pydantic (``PositiveInt``, ``NonNegativeFloat`` and so on), and ranges in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from trainables.common.errors import InputError
from trainables.common.schedules import Schedule

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class ScheduleText:
    """Makes a text setting a schedule with values in a range: ``Annotated[str, ScheduleText(ge=0, le=1)]``.

    Attributes:
        ge: Least value.
        gt: Value that all values are above.
        le: Greatest value.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def check(self, text: str) -> str:
        """Return a text that is such a schedule. Raises ValueError with the rest of a sentence where it is none."""
        try:
            schedule = Schedule.parse(text)
        except InputError as error:
            raise ValueError(f"cannot be read: {str(error).rstrip('.')}") from None
        for value in (schedule.start, schedule.end):
            if (
                (self.ge is not None and value < self.ge)
                or (self.gt is not None and value <= self.gt)
                or (self.le is not None and value > self.le)
            ):
                raise ValueError(f"is {text!r}, but its values must be {bounds(ge=self.ge, gt=self.gt, le=self.le)}")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))


def bounds(ge: Any = None, gt: Any = None, le: Any = None, lt: Any = None) -> str:
    """Return a range in words, such as ``"at least 0 and below 1"``; ``""`` without any bound."""
    words = {"at least": ge, "above": gt, "at most": le, "below": lt}
    return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)
