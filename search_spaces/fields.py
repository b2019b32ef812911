"""Fields of a family's dataclass: the values that they may have, a check of all of them, and what is said of them.

Each field is written once, with its type, its range and, below it, a line of documentation::

    @dataclass(frozen=True)
    class AdapterConfig:
        rank: PositiveInt = 16
        \"""LoRA rank r.\"""

The dataclass itself checks nothing. `check` has pydantic check a whole configuration, and `settings_of` returns what
``--help`` and ``docs/settings.md`` say of each field. A range is one of pydantic's types, or its ``Field`` within
``Annotated``; a validator of its own (pydantic's ``AfterValidator``) raises ValueError with the rest of a sentence that
starts with the setting's name, such as ``"is 10 but must be odd"``.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from search_spaces.settings import SettingError
from trainables.common.setting_types import ScheduleText, bounds

KINDS: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Setting:
    """A field of a family's dataclass.

    Attributes:
        name: Of the field.
        default: Its default.
        kind: What its values are, such as ``whole number`` or ``token or cls``.
        range: Their range in words, such as ``at least 1``; empty where there is none.
        documentation: What the setting does.
    """

    name: str
    default: Any
    kind: str
    range: str
    documentation: str

    @property
    def text(self) -> str:
        """The default, as it is written after ``--set NAME=``."""
        return text_of(self.default)

    @property
    def values(self) -> str:
        """Kind and range."""
        return ", ".join(part for part in (self.kind, self.range) if part)


def check(config: Any) -> None:
    """Check the type and the range of every field of a configuration.

    Raises:
        SettingError: For the first field whose value is none that it may have.
    """
    config_class: type = type(config)
    try:
        _adapter(config_class).validate_python(vars(config))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        value = getattr(config, name)
        if first["type"] == "value_error":
            problem = str(first["ctx"]["error"])
        elif "than" in first["type"]:
            problem = f"is {value!r} but must be {_range(get_type_hints(config_class, include_extras=True)[name])}"
        else:
            problem = f"is {value!r}: {first['msg']}"
        raise SettingError(name, problem) from None


@functools.cache
def settings_of(config_class: type) -> tuple[Setting, ...]:
    """Return the fields of a family's dataclass, in their order."""
    documentation = _documentation(config_class)
    hints = get_type_hints(config_class, include_extras=True)
    return tuple(
        Setting(
            item.name,
            item.default,
            _kind(hints[item.name]),
            _range(hints[item.name]),
            documentation.get(item.name, ""),
        )
        for item in dataclasses.fields(config_class)
    )


def text_of(value: Any) -> str:
    """Return a value as it is written after ``--set NAME=``."""
    if isinstance(value, tuple):
        return ",".join(text_of(item) for item in value)
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


@functools.cache
def _adapter(config_class: type) -> TypeAdapter[Any]:
    return TypeAdapter(config_class)


def _range(hint: Any) -> str:
    field = FieldInfo.from_annotation(hint)
    limits: dict[str, Any] = {}
    for item in field.metadata:
        limits |= {name: getattr(item, name) for name in ("ge", "gt", "le", "lt") if hasattr(item, name)}
    if field.annotation is int and "gt" in limits:
        limits["ge"] = limits.pop("gt") + 1
    return bounds(**limits)


def _kind(hint: Any) -> str:
    field = FieldInfo.from_annotation(hint)
    if any(isinstance(item, ScheduleText) for item in field.metadata):
        return "schedule"
    origin, options = get_origin(field.annotation), get_args(field.annotation)
    if origin is Literal:
        *others, last = map(text_of, options)
        return f"{', '.join(others)} or {last}" if others else last
    if origin is tuple:
        return f"list of {_kind(options[0])}"
    if options:
        return " or ".join(map(_kind, options))
    return KINDS.get(field.annotation, "none")


def _documentation(config_class: type) -> dict[str, str]:
    """Return the text below each field, in one line; a field without one has that of the class it is inherited from."""
    inherited: dict[str, str] = {}
    for base in reversed(config_class.__bases__):
        inherited |= _documentation(base) if dataclasses.is_dataclass(base) else {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(definition, ast.ClassDef)
    return inherited | {
        field.target.id: " ".join(line.value.value.split())
        for field, line in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    }
