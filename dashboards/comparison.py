"""Variants of a configuration over several seeds, for the report's sections: means with intervals, what was changed."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Trial = dict[str, Any]

# 97.5 % quantile of Student's t by degrees of freedom, from 1; beyond, the last one is a little too wide
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def ablation(trials: Sequence[Trial]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the reference settings and the variants of trials, the reference first; note in each trial its variant.

    Args:
        trials: With ``config`` (the settings that count), ``seed``, ``exact`` and ``steps``.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(json.dumps(trial["config"], sort_keys=True), []).append(trial)
    configs = [members[0]["config"] for members in groups.values()]
    names = [name for name in configs[0] if len({json.dumps(config.get(name)) for config in configs}) > 1]
    reference = {name: _most_common(config.get(name) for config in configs) for name in names}

    def changes(members: Sequence[Trial]) -> dict[str, Any]:
        config = members[0]["config"]
        return {name: config.get(name) for name in names if config.get(name) != reference[name]}

    ordered = sorted(groups.values(), key=lambda members: bool(changes(members)))
    for number, members in enumerate(ordered):
        for trial in members:
            trial["variant"] = number
    return reference, [
        {
            "changes": changes(members),
            "seeds": len(members),
            **{name: interval([trial[name] for trial in members]) for name in ("exact", "steps")},
        }
        for members in ordered
    ]


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of independent values, and half the width of its 95 % interval by Student's t (None for one)."""
    half = None
    if len(values) > 1:
        quantile = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1]
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "half": half}


def _most_common(values: Iterable[Any]) -> Any:
    ((text, _),) = Counter(json.dumps(value) for value in values).most_common(1)
    return json.loads(text)
