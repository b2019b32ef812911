"""What the report shows of recursive reasoners: accuracy against steps, an ablation table, puzzles step by step.

The trials of all runs on a page are taken together, since variants may have been trained by commands of their own, but
only those on the same puzzles. Trials that ASHA stopped are left out: they trained for less long.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from dashboards.comparison import Trial, ablation
from sweeps.store.store import ResultsStore
from sweeps.store.summary import json_value
from trainables.recursive_reasoner.family import FAMILY

BASELINES = {"direct_exact_accuracy": "direct prediction", "majority_exact_accuracy": "majority"}
# of all pictures on a page together: about 1 MB
PICTURE_CELLS = 1_000_000
# what tells the curves of accuracy against thinking time apart, and what a point of one holds
CURVE = ("level", "method", "trajectories", "noise", "puzzles")
POINT = ("steps", "exact_accuracy", "valid_accuracy", "flops_per_puzzle", "seconds_per_puzzle")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def gather(stores: Sequence[ResultsStore]) -> list[dict[str, Any]]:
    """Return what the successful reasoners of these runs came to, for each dataset; empty where there is none.

    ``trials`` are points by run and place in it, ``front`` says which no other beats in both steps and accuracy.
    ``variants`` are the trials of the same settings but for the seed, each with the ``changes`` against ``reference``:
    the value of each differing setting that most variants have. ``pictures`` is what `pictures` returns, ``scaling``
    what `scaling` does.
    """
    every = [trial for number, store in enumerate(stores) for trial in _trials(store, number)]
    # a trial that two runs have is no second seed
    trials = list({tuple(str(t[name]) for name in ("dataset", "config", "seed", "data")): t for t in every}.values())
    found = []
    for dataset in dict.fromkeys(trial["dataset"] for trial in trials):
        some = [trial for trial in trials if trial["dataset"] == dataset]
        reference, variants = ablation(some)
        beaten = front(some)
        found.append(
            {
                "dataset": dataset,
                "trials": [
                    {name: trial[name] for name in ("run", "place", "halting", "steps", "exact", "variant")}
                    | {"front": ahead}
                    for trial, ahead in zip(some, beaten, strict=True)
                ],
                "baselines": [
                    {"name": name, "exact": statistics.fmean(values)}
                    for column, name in BASELINES.items()
                    if (values := [trial[column] for trial in some if trial[column] is not None])
                ],
                "reference": reference,
                "variants": variants,
                "pictures": pictures(stores, some, dataset),
                "scaling": scaling(stores, some),
            }
        )
    return json_value(found)


def front(trials: Sequence[Mapping[str, float]]) -> list[bool]:
    """Return for each trial whether no other one has as high an ``exact`` accuracy in as few ``steps``, or better."""

    def beats(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        no_worse = one["steps"] <= other["steps"] and one["exact"] >= other["exact"]
        return no_worse and (one["steps"], one["exact"]) != (other["steps"], other["exact"])

    return [not any(beats(other, trial) for other in trials) for trial in trials]


def pictures(stores: Sequence[ResultsStore], trials: Sequence[Trial], dataset: str) -> dict[str, Any]:
    """Return some held-out puzzles with the answer after each step, of the lowest seed of each variant.

    A grid is its tokens in base 36. ``answered`` is the step at which the rule halted. ``left_out`` counts the
    variants that had no room.
    """
    shown: dict[int, Trial] = {}
    for trial in sorted(trials, key=lambda trial: (trial["variant"], trial["seed"])):
        shown.setdefault(trial["variant"], trial)
    found: list[dict[str, Any]] = []
    side, cells, left_out = 0, 0, 0
    for variant, trial in shown.items():
        solved = stores[trial["run"]].folder.sub(f"models/{trial['trial_id']}").read_json("solved.json")
        if solved is None:
            continue
        side = solved["side"]
        # written since expansions are told from answers
        answered = solved.get("answered", solved["steps"])
        puzzles = [
            {"input": _grid(given, side), "target": _grid(target, side), "answers": [_grid(a, side) for a in answers],
             "answered": count}
            for given, target, answers, count in zip(
                solved["inputs"], solved["targets"], solved["answers"], answered, strict=True
            )
        ]  # fmt: skip
        cells += sum(side * side * (2 + len(puzzle["answers"])) for puzzle in puzzles)
        if cells > PICTURE_CELLS:
            left_out += 1
        else:
            found.append({"variant": variant, "run": trial["run"], "place": trial["place"], "puzzles": puzzles})
    kind = dataset if dataset in ("maze", "arc") else "sudoku"
    return {"kind": kind, "side": side, "solved": found, "left_out": left_out}


def scaling(stores: Sequence[ResultsStore], trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return what `sweeps.reasoner_scaling` measured of these trials, each with its ``variant`` and its rows as curves.

    A curve is one way to think at one level of puzzles, its points ordered by steps.
    """
    measured: list[dict[str, Any]] = []
    for number, store in enumerate(stores):
        data = store.folder.read("scaling.parquet")
        rows = [] if data is None else pq.read_table(io.BytesIO(data)).to_pylist()
        for trial in trials:
            own = [row for row in rows if trial["run"] == number and row["trial_id"] == trial["trial_id"]]
            curves: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
            for row in own:
                curves.setdefault(tuple(row[name] for name in CURVE), []).append({name: row[name] for name in POINT})
            if own:
                about = {name: own[0][name] for name in ("trained_max_steps", "train_steps", "train_cpu_minutes")}
                every = [
                    {**dict(zip(CURVE, key, strict=True)), "points": sorted(points, key=lambda point: point["steps"])}
                    for key, points in curves.items()
                ]
                measured.append({"variant": trial["variant"], "seed": trial["seed"], **about, "curves": every})
    return measured


def _trials(store: ResultsStore, number: int) -> list[Trial]:
    if store.family.name != FAMILY.name:
        return []
    return [
        {
            "run": number,
            "place": place,
            "trial_id": row["trial_id"],
            "seed": row["seed"],
            "dataset": row["dataset"],
            "data": row["data_fingerprint"],
            "halting": row["halting"],
            "exact": row["exact_accuracy"],
            "steps": row["mean_steps"],
            "config": {
                name: value for name, value in json.loads(row["config"]).items() if name not in FAMILY.not_identity
            },
            **{column: row.get(column) for column in BASELINES},
        }
        for place, row in enumerate(store.latest_trials().to_pylist())
        if row["status"] == "success" and row["exact_accuracy"] is not None and row["mean_steps"] is not None
    ]


def _grid(tokens: Sequence[int], side: int) -> str | None:
    return "".join(DIGITS[token] for token in tokens) if len(tokens) == side * side else None
