"""What the report shows of SAD students: success by variant and task type, KL by span over training, one episode.

The trials of all runs on a page are taken together. Trials that ASHA stopped are left out: they trained for less long.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dashboards.comparison import ablation, interval
from sweeps.store.store import ResultsStore
from sweeps.store.summary import json_value
from trainables.sad_student.family import BASELINES, FAMILY

KIND = "metric/success_rate_"
CURVES = ("kl_reasoning", "kl_action", "success_rate")
Trial = dict[str, Any]


def gather(stores: Sequence[ResultsStore]) -> dict[str, Any] | None:
    """Return what the successful students of these runs came to; None where there is none.

    ``variants`` are the trials of the same settings but for the seed, each with the ``changes`` against ``reference``,
    its success and that of each task type, its test success, KL by span and teacher tokens; ``baselines`` are success
    rates by name; ``curves`` and ``episodes`` are those of the first seed of each variant.
    """
    every = [trial for store in stores for trial in _trials(store)]
    trials = list({(json.dumps(t["config"], sort_keys=True), t["seed"], t["data"]): t for t in every}.values())
    if not trials:
        return None
    reference, variants = ablation(trials)
    kinds = sorted({name.removeprefix(KIND) for trial in trials for name in trial["row"] if name.startswith(KIND)})
    curves, episodes = [], []
    for number, variant in enumerate(variants):
        members = [trial for trial in trials if trial["variant"] == number]
        first = min(members, key=lambda trial: trial["seed"])
        variant["label"] = _label(variant["changes"], reference)
        variant["kinds"] = {kind: _mean(members, f"{KIND}{kind}") for kind in kinds}
        for name in ("test_success_rate", "kl_reasoning", "kl_action", "teacher_tokens", "invalid_actions"):
            variant[name] = _mean(members, name)
        curves.append({"label": variant["label"], **_curve(first)})
        episode = first["store"].folder.sub(f"models/{first['trial_id']}").read_json("episode.json")
        if episode is not None:
            episodes.append({"label": variant["label"], **episode})
    baselines = [{"name": FAMILY[name].headline, **mean} for name in BASELINES if (mean := _mean(trials, name))]
    found = {"reference": reference, "kinds": kinds, "variants": variants, "baselines": baselines}
    return dict(json_value(found | {"curves": curves, "episodes": episodes}))


def _trials(store: ResultsStore) -> list[Trial]:
    if store.family.name != FAMILY.name:
        return []
    return [
        {
            "store": store,
            "trial_id": row["trial_id"],
            "seed": row["seed"],
            "data": row["data_fingerprint"],
            "exact": row["success_rate"],
            "steps": row["steps_per_episode"],
            "row": row,
            "config": {n: value for n, value in json.loads(row["config"]).items() if n not in FAMILY.not_identity},
        }
        for row in store.latest_trials().to_pylist()
        if row["status"] == "success" and row["success_rate"] is not None and row["steps_per_episode"] is not None
    ]


def _label(changes: dict[str, Any], reference: dict[str, Any]) -> str:
    """Return how a variant differs, its loss always named where losses differ."""
    named = {"loss": reference["loss"]} | changes if "loss" in reference else changes
    return ", ".join(str(value) if name == "loss" else f"{name} = {value}" for name, value in named.items()) or "all"


def _mean(trials: Sequence[Trial], name: str) -> dict[str, float | None] | None:
    values = [trial["row"][name] for trial in trials if trial["row"].get(name) is not None]
    return interval(values) if values else None


def _curve(trial: Trial) -> dict[str, list[Any]]:
    table = trial["store"].history()
    names = [name for name in CURVES if name in table.column_names]
    rows = {
        row["epoch"]: row
        for row in table.select(["trial_id", "epoch", *names]).to_pylist()
        if row["trial_id"] == trial["trial_id"]
    }
    epochs = sorted(rows)
    return {"epochs": epochs} | {name: [rows[epoch][name] for epoch in epochs] for name in names}
