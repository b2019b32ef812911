"""What the report counts of recursive reasoners, from stores with known answers."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from dashboards.comparison import T_QUANTILES, interval
from dashboards.sections.recursive_reasoner import PICTURE_CELLS, front, gather
from tests.dashboards.stores import new_store, pool_run, reasoner, reasoner_run, scaled


def test_variants_are_the_settings_that_differ_with_a_mean_over_seeds(tmp_path: Path) -> None:
    (found,) = gather([reasoner_run(tmp_path)])
    assert found["dataset"] == "sudoku4" and found["reference"] == {"ema": 0.99, "halting": "bce"}
    assert [(v["changes"], v["seeds"]) for v in found["variants"]] == [
        ({}, 2), ({"halting": "fixed"}, 2), ({"ema": 0.0}, 2),
    ]  # fmt: skip
    exact = found["variants"][0]["exact"]
    # of two values the interval is 12.7 times half their difference
    assert exact == {"mean": pytest.approx(0.95), "half": pytest.approx(12.706 * 0.01)}
    assert found["variants"][1]["steps"] == {"mean": 6.0, "half": 0.0}
    assert [(b["name"], b["exact"]) for b in found["baselines"]] == [("direct prediction", 0.5), ("majority", 0.0)]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_trials_that_were_stopped_or_are_of_another_kind_are_left_out(tmp_path: Path) -> None:
    (found,) = gather([pool_run(tmp_path), reasoner_run(tmp_path)])
    assert len(found["trials"]) == 6 and {trial["run"] for trial in found["trials"]} == {1}
    assert "dqn" not in {trial["halting"] for trial in found["trials"]}
    assert gather([pool_run(tmp_path)]) == []


def test_runs_are_taken_together_but_never_different_puzzles(tmp_path: Path) -> None:
    stores = [new_store(tmp_path, name, sweep="recursive_reasoner") for name in ("one", "two")]
    stores[0].append([reasoner("a", 0.5, 3.0), reasoner("m", 0.2, 3.0, dataset="maze")])
    # the same trial again, the next seed of it, and another rule; how often it is measured is no setting of its own
    stores[1].append(
        [
            reasoner("b", 0.5, 3.0),
            reasoner("c", 0.7, 3.0, seed=1, eval_every=2),
            reasoner("d", 0.6, 6.0, halting="fixed"),
        ]
    )
    sudoku, maze = gather(stores)
    assert (sudoku["dataset"], maze["dataset"]) == ("sudoku4", "maze") and len(maze["trials"]) == 1
    assert [(v["changes"], v["seeds"]) for v in sudoku["variants"]] == [({}, 2), ({"halting": "fixed"}, 1)]
    assert sudoku["variants"][1]["exact"] == {"mean": 0.6, "half": None}


def test_the_front_is_what_no_other_trial_beats() -> None:
    points = [(2.0, 0.5), (2.0, 0.6), (3.0, 0.6), (4.0, 0.9), (4.0, 0.9), (6.0, 0.8)]
    found = front([{"steps": steps, "exact": exact} for steps, exact in points])
    assert found == [False, True, False, True, True, False]


def test_the_interval_is_students() -> None:
    for freedom, quantile in enumerate(T_QUANTILES, start=1):
        grid = np.linspace(0.0, quantile, 20_001)
        log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        density = math.exp(log_scale) * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
        assert np.trapezoid(density, grid) == pytest.approx(0.475, abs=3e-5), freedom
    values = [0.1, 0.4, 0.3]
    assert interval(values)["half"] == pytest.approx(4.303 * statistics.stdev(values) / math.sqrt(3))
    many = [0.0, 1.0] * 50
    assert interval(many)["half"] == pytest.approx(2.042 * statistics.stdev(many) / 10)


def test_pictures_are_of_the_first_seed_of_each_variant(tmp_path: Path) -> None:
    (found,) = gather([reasoner_run(tmp_path)])
    pictures = found["pictures"]
    assert (pictures["kind"], pictures["side"], pictures["left_out"]) == ("sudoku", 4, 0)
    assert [(solved["variant"], solved["place"]) for solved in pictures["solved"]] == [(0, 0), (1, 1), (2, 2)]
    (puzzle,) = pictures["solved"][0]["puzzles"]
    assert puzzle == {
        "input": "0234341221434320", "target": "1234341221434321",
        "answers": ["2234341221434321", "1234341221434321", "1234341221434321"], "answered": 2,
    }  # fmt: skip


def test_pictures_that_have_no_room_are_counted(tmp_path: Path) -> None:
    store = new_store(tmp_path, sweep="recursive_reasoner")
    store.append([reasoner(f"arc-{n}", 0.5, 3.0, dataset="arc", ema=n / 10) for n in range(3)])
    grid = [10] * 900
    many = [[grid] * 16] * 30
    # what is shown to the model may be no grid of the answer's size
    solved = {"side": 30, "inputs": [[0] * 4] * 30, "targets": [grid] * 30, "answers": many, "answered": [16] * 30}
    for n in range(3):
        store.folder.write(f"models/arc-{n}/solved.json", json.dumps(solved | {"steps": [16] * 30}).encode())
    (found,) = gather([store])
    assert len(found["pictures"]["solved"]) == PICTURE_CELLS // (30 * 18 * 900) == 2
    assert found["pictures"]["left_out"] == 1 and found["pictures"]["kind"] == "arc"
    puzzle = found["pictures"]["solved"][0]["puzzles"][0]
    assert puzzle["input"] is None and puzzle["target"] == "a" * 900


def test_curves_of_thinking_time_belong_to_their_trial_and_rise_in_steps(tmp_path: Path) -> None:
    store = reasoner_run(tmp_path)
    assert gather([store])[0]["scaling"] == []
    scaled(store, "fixed-1")
    (measured,) = gather([store])[0]["scaling"]
    assert (measured["variant"], measured["seed"], measured["train_cpu_minutes"]) == (1, 1, 3.5)
    by_way = {(c["level"], c["method"], c["trajectories"], c["noise"]): c["points"] for c in measured["curves"]}
    assert set(by_way) == {
        ("as trained", "steps", 1, 0.0), ("harder", "steps", 1, 0.0), ("as trained", "best_score", 4, 0.2),
    }  # fmt: skip
    assert [(point["steps"], point["exact_accuracy"]) for point in by_way["as trained", "steps", 1, 0.0]] == [
        (1.0, 0.5), (2.0, 0.75),
    ]  # fmt: skip
