"""What a model family says of itself: its columns, which of them are headlines, and what a trial is judged by.

Schema, summary, progress, metrics and report iterate over a `Family`; none of them knows one by name. A family declares
itself in ``trainables/<package>/family.py``, which imports neither torch nor Ray. The declaration is kept in the record
of each run, so that a run can be read without the family's code.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

Mode = Literal["min", "max"]

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
# what every family may report as its evaluation loss, a common column of the results
EVAL_LOSS = "eval_loss"


@dataclass(frozen=True)
class Column:
    """A value that the family's trials report, stored under its name in the trials table.

    Attributes:
        name: Of the column, and of the metric in a report.
        type: ``str``, ``int``, ``float`` or ``bool``.
        meaning: What it means, with its range or unit.
        headline: Its label in the closing table, the metrics and the report; without one it is in the store alone.
        better: Which way it is better.
        base: Column with the same value before training, which is shown beside it.
        baselines: Columns with what a trivial answer reaches, each a headline with a label of its own.
        percent: Whether it is a share in [0, 1], shown in percent.
    """

    name: str
    type: type
    meaning: str
    headline: str = ""
    better: Literal["max", "min", ""] = ""
    base: str = ""
    baselines: tuple[str, ...] = ()
    percent: bool = False

    def change_text(self, change: float) -> str:
        """Return a difference of two values with its sign; shares in points."""
        return f"{100 * change:+.1f}" if self.percent else f"{change:+.4g}"


@dataclass(frozen=True)
class Family:
    """A model family. Raises ValueError where its parts contradict each other.

    Attributes:
        name: Of the family; its rows, its metrics and its section of the report carry it.
        columns: What its trials report besides the common columns of `sweeps.store.schema`.
        metric: What ASHA and searches compare: ``eval_loss`` or one of the columns. It belongs into the history of each
            epoch too, from which a later session of a run knows it.
        mode: ``min`` or ``max``: which way the metric is better.
        verdict: Columns that say, the first that differs, whether a trial is better than its ``base``.
        not_identity: Settings that change how a trial is measured and kept, not what it trains: variants that differ
            in these alone count as one, and a trial may go on with others.
        noun: What one trial makes, in the plural.
    """

    name: str
    columns: tuple[Column, ...] = ()
    metric: str = EVAL_LOSS
    mode: Mode = "min"
    verdict: tuple[str, ...] = ()
    not_identity: tuple[str, ...] = ()
    noun: str = "trials"

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"The family {self.name} declares a column twice: {', '.join(names)}.")
        named = {column.base for column in self.columns} | {b for column in self.columns for b in column.baselines}
        texts = [column.name for column in self.columns if column.headline and column.type not in (int, float)]
        if texts:
            raise ValueError(f"The family {self.name} has headlines that are no numbers: {', '.join(texts)}.")
        unknown = (named | set(self.verdict) | {self.metric}) - {*names, "", EVAL_LOSS}
        if unknown:
            raise ValueError(f"The family {self.name} names columns that it does not declare: {sorted(unknown)}.")
        for name in self.verdict:
            if not self[name].base or not self[name].better:
                raise ValueError(f"{name} decides a verdict of {self.name}: give its base and which way is better.")

    def __getitem__(self, name: str) -> Column:
        """Return the column of a name; raise KeyError where there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    @property
    def headlines(self) -> tuple[Column, ...]:
        """The columns with a headline, in order."""
        return tuple(column for column in self.columns if column.headline)

    @property
    def shown(self) -> tuple[Column, ...]:
        """The headlines, and the columns that stand beside them."""
        beside = {column.base for column in self.headlines}
        return tuple(column for column in self.columns if column.headline or column.name in beside)

    def change(self, row: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Return by how much a row is better than its base, in each column of the verdict; None where that is unknown.

        A column that is missing counts as equal, but for the first, without which there is no verdict.
        """
        changes: list[float | None] = []
        for name in self.verdict:
            before, after = number(row.get(self[name].base)), number(row.get(name))
            if before is None or after is None:
                changes.append(None)
                continue
            # means over the same examples may differ in their last bits
            gain = round(after - before, 9)
            changes.append(gain if self[name].better == "max" else -gain)
        return None if not changes or changes[0] is None else tuple(change or 0.0 for change in changes)

    def standing(self, row: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Return what rows are ordered by, the best greatest: the change over the base, or the first headline."""
        if self.verdict:
            return self.change(row)
        for column in self.headlines:
            if column.better:
                value = number(row.get(column.name))
                return None if value is None else (value if column.better == "max" else -value,)
        return None

    def standing_text(self, row: Mapping[str, Any]) -> str:
        """Return what `standing` ordered a row by, as a reader wants it."""
        change = self.change(row)
        if change is not None:
            said = zip((self[name] for name in self.verdict), change, strict=True)
            return ", ".join(f"{c.change_text(x if c.better == 'max' else -x)} {c.headline or c.name}" for c, x in said)
        return next(
            f"{c.headline} {value_text(number(row.get(c.name)), c.percent)}" for c in self.headlines if c.better
        )

    def declaration(self) -> dict[str, Any]:
        """Return the family as JSON can hold it."""
        columns = [{**asdict(column), "type": column.type.__name__} for column in self.columns]
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "columns": columns}

    @classmethod
    def from_declaration(cls, declared: Mapping[str, Any]) -> Family:
        """Return what `declaration` gave; what a later version of this project declares besides is left out."""
        columns = tuple(_made(Column, {**column, "type": TYPES[column["type"]]}) for column in declared["columns"])
        return _made(cls, {**declared, "columns": columns})


# what nothing is known of
UNKNOWN = Family("")


def find_family(name: str) -> Family:
    """Return a family of this project by its name; one without columns where the project has none of that name.

    It is for runs whose record does not hold the declaration.
    """
    for file in sorted(Path(__file__).parents[1].glob("*/family.py")):
        for value in vars(importlib.import_module(f"trainables.{file.parent.name}.family")).values():
            if isinstance(value, Family) and value.name == name:
                return value
    return Family(name)


def value_text(value: float | None, percent: bool) -> str:
    """Return a value as a reader wants it, a share in percent, ``-`` for none."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


# reasons that are not plain as they are
REASONS = {"held_out": "that repeat a held-out one", "held_out_views": "views that repeat a held-out one"}


def counts_text(counts: Mapping[str, int]) -> str:
    """Return counts by reason as a reader wants them, as in ``1 malformed, 2 that repeat a held-out one``."""
    said = {REASONS.get(reason, reason.replace("_", " ")): count for reason, count in sorted(counts.items())}
    return ", ".join(f"{count} {reason}" for reason, count in said.items())


def number(value: Any) -> float | None:
    """Return a finite number as a float, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in known})
