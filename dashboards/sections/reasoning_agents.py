"""What the report shows of reasoning agents: criteria with verdicts, a tagged problem, a refinement, and curves.

Trials of all runs on a page that differ in their seed alone are taken together. Shown in full are those of the settings
with the most seeds; examples and curves are of the lowest seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dashboards.comparison import interval
from sweeps.store.store import ResultsStore
from sweeps.store.summary import json_value
from trainables.reasoning_agents.family import CRITERIA, FAMILY


def gather(stores: Sequence[ResultsStore]) -> list[dict[str, Any]]:
    """Return what the successful agents of these runs came to; empty where no trial went through all five phases.

    ``criteria`` has for each its bound, which way it is met, the mean and interval over seeds, the baseline, and the
    ``verdict`` of each seed. ``shown`` is what the trial of the lowest seed left to show.
    """
    trials = [(store, row) for store in stores if store.family.name == FAMILY.name for row in _finished(store)]
    if not trials:
        return []
    groups: dict[str, list[tuple[ResultsStore, dict[str, Any]]]] = {}
    for store, row in trials:
        groups.setdefault(row["config"], []).append((store, row))
    chosen = max(groups.values(), key=len)
    # a trial that two runs have is no second seed
    seeds = {row["seed"]: (store, row) for store, row in chosen}
    rows = [row for _, row in seeds.values()]
    store, first = seeds[min(seeds)]
    shown = store.folder.sub(f"models/{first['trial_id']}").read_json("shown.json")
    return json_value(
        [
            {
                "seeds": sorted(seeds),
                "left_out": len(groups) - 1,
                "criteria": [_criterion(name, rows) for name in CRITERIA],
                "shown": shown or {},
            }
        ]
    )


def _criterion(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    column = FAMILY[name]
    baselines = [row[base] for base in column.baselines for row in rows if row.get(base) is not None]
    return {
        "name": column.headline.partition(" (")[0],
        "meaning": column.meaning,
        "bound": CRITERIA[name],
        "better": column.better,
        "percent": column.percent,
        "value": interval([row[name] for row in rows]),
        # between problems of one seed, where there is one seed alone
        "within": rows[0].get(f"metric/{name}_half"),
        "baseline": statistics.fmean(baselines) if baselines else None,
        "baseline_name": FAMILY[column.baselines[0]].headline,
        "met": sum(bool(row[f"{name}_met"]) for row in rows),
    }


def _finished(store: ResultsStore) -> list[dict[str, Any]]:
    rows = store.latest_trials().to_pylist()
    return [row for row in rows if row["status"] == "success" and row.get("criteria_met") is not None]
