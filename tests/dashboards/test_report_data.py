"""What the report counts, from stores with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dashboards.report_data import comparison, conclusion, differing, gather
from sweeps.store.store import ResultsStore
from sweeps.store.summary import summarise
from tests.dashboards.stores import answers, curve, new_store, plain_run, pool_run, scores, search_run, trial
from trainables.atomic_lora.family import FAMILY


def by_task(run: dict[str, Any], column: str) -> dict[str, Any]:
    return dict(zip(run["trials"]["task_id"], run["trials"][column], strict=True))


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Any]:
    return gather(pool_run(tmp_path))


def test_a_run_is_plain_json(pool: dict[str, Any]) -> None:
    assert json.loads(json.dumps(pool, allow_nan=False)).keys() == pool.keys()


def test_trials_are_columns_with_verdict_gain_and_time(pool: dict[str, Any]) -> None:
    assert len({len(values) for values in pool["trials"].values()}) == 1
    assert by_task(pool, "verdict")["t0"] == "same" and by_task(pool, "verdict")["t1"] == "same"
    assert by_task(pool, "verdict")["t2"] == "improved" and by_task(pool, "verdict")["t3"] == "worse"
    assert by_task(pool, "gain")["t2"] == pytest.approx(0.02) and by_task(pool, "verdict")["broken"] is None
    assert (by_task(pool, "start")["t3"], by_task(pool, "end")["t3"]) == (180.0, 240.0)
    assert "traceback" not in pool["trials"] and "gpu_seconds" not in pool["trials"]


def test_what_has_history_only_is_unfinished(pool: dict[str, Any]) -> None:
    assert by_task(pool, "status")["under-way"] == "unfinished" and by_task(pool, "epochs")["under-way"] == 3
    assert pool["summary"]["unfinished"] == 1 and pool["summary"]["trials"] == 22


def test_a_retry_under_way_stands_beside_its_failed_attempt(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.append([trial("a", status="failed")], curve(trial("a")))
    store.append([], curve(trial("a", attempt=2), 2))
    run = gather(store)
    assert sorted(zip(run["trials"]["attempt"], run["trials"]["status"], strict=True)) == [
        (1, "failed"),
        (2, "unfinished"),
    ]


def test_an_attempt_that_failed_before_its_first_epoch_is_no_unfinished_trial(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    # a kill left epochs of the first attempt and no row
    store.append([], curve(trial("a"), 2))
    store.append([trial("a", attempt=2, status="failed")])
    assert gather(store)["trials"]["status"] == ["failed"]


def test_categories_come_largest_first_with_their_means(pool: dict[str, Any]) -> None:
    # ten tasks each, and the mended one
    assert [(c["name"], c["trials"]) for c in pool["categories"]] == [("same_size", 11), ("growing", 10)]
    growing = pool["categories"][1]
    gains = [0.5 + (n % 3 - 1) * n / 100 for n in range(1, 20, 2)]
    assert growing["means"]["final_cell_accuracy"] == pytest.approx(sum(gains) / 10)
    assert growing["means"]["copy_cell_accuracy"] == pytest.approx(0.6)
    assert sum(growing["verdicts"].values()) == 10


def test_failures_keep_every_attempt_and_say_how_it_ended(pool: dict[str, Any]) -> None:
    assert [(f["trial_id"], f["attempt"], f["now"]) for f in pool["failures"]] == [
        ("broken", 1, "failed"),
        ("mended", 1, "success"),
    ]
    assert pool["failures"][0]["traceback"].startswith("Traceback")


def test_the_pace_leaves_out_pauses(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.append([trial("a", 0), trial("b", 0), trial("c", 600)])
    pace = gather(store)["pace"]
    assert pace["busy"] == pytest.approx(120.0) and pace["per_hour"] == pytest.approx(90.0)
    bins = pace["bins"]
    width = 2 * bins["at"][0]
    assert sum(bins["rate"]) * width / 3600 == pytest.approx(3.0) and bins["rate"][-1] > 0


def test_a_searchs_configurations_compare_within_tasks(tmp_path: Path) -> None:
    run = gather(search_run(tmp_path))
    assert run["swept"] == ["config/lr", "config/rank"]
    found = [(c["values"]["lr"], c["trials"], c["stopped"], c["relative_loss"]) for c in run["configurations"]]
    assert found == [(0.1, 4, 0, 1.0), (1.0, 4, 0, pytest.approx(1.2)), (10.0, 4, 4, pytest.approx(1.4))]
    assert run["configurations"][0]["gain"] == pytest.approx(0.1) and run["configurations"][2]["gain"] is None


def test_rungs_count_whom_they_judged_and_stopped(tmp_path: Path) -> None:
    assert gather(search_run(tmp_path))["rungs"] == [
        {"epoch": 1, "judged": 12, "stopped": 4, "spared": 12},
        {"epoch": 3, "judged": 8, "stopped": 0, "spared": 0},
    ]


def test_another_family_has_what_its_rows_hold_and_no_more(tmp_path: Path) -> None:
    run = gather(plain_run(tmp_path))
    assert run["noun"] == "trials" and run["measures"] == [] and run["categories"] == [] and run["rungs"] == []
    assert [(score["name"], score["share"], score["mean"]) for score in run["scores"]] == [
        ("teacher_forced_cell_accuracy", True, 0.125),
        ("metric/depth", False, 0.25),
    ]
    assert run["trials"]["metric/depth"] == [0.25, 0.25] and len(run["curves"][0]["epoch"]) == 6
    assert run["conclusion"] == [
        "2 of 2 trials succeeded.",
        "Cell accuracy, true prefix given is 12.5 %, a mean over 2 of 2 trials.",
    ]


def test_an_empty_run_is_one(tmp_path: Path) -> None:
    run = gather(new_store(tmp_path))
    assert run["conclusion"] == ["No trial has ended yet."] and run["trials"] == {}


def test_the_conclusion_sets_the_result_beside_its_baselines(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.append([trial("a", **scores(0.5, 0.7)), trial("b", **scores(0.5, 0.4)), trial("c", **scores(0.5, 0.6))])
    first, second, third = conclusion(summarise(store))
    assert first == "2 of 3 adapters are better than the base, 1 is worse, 0 the same."
    assert second == "Exact-match accuracy is 0.0 %, the base's 0.0 %: means over 3 of 3 tasks."
    assert "56.7 %" in third and "copying the input, cells (60.0 %)" in third
    store.append([trial("d", **scores(0.5, 1.0, (0.0, 1.0)))])
    assert len(conclusion(summarise(store))) == 2


def test_answers_are_digits_and_those_that_changed_least_go_first_when_space_ends(tmp_path: Path) -> None:
    store = pool_run(tmp_path)
    whole = gather(store)["pictures"]
    assert whole["trials"] == len(whole["kept"]) == 20
    assert whole["kept"][1] == [["12/34", "43", None, "43"]]
    few = gather(store, share=0.00005)["pictures"]
    assert few["trials"] == 20 and 0 < len(few["kept"]) < 20
    gains = by_task(gather(store), "gain")
    kept = {abs(gains[f"t{place}"]) for place in few["kept"]}
    assert min(kept) >= sorted((abs(gains[f"t{n}"]) for n in range(20)), reverse=True)[len(kept) - 1]


def test_long_curves_lose_points_but_never_their_last(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.append([trial("a")], curve(trial("a"), 1000))
    thinned = gather(store, share=0.0005)["curves"][0]
    assert thinned["epoch"][-1] == 1000 and len(thinned["epoch"]) == len(thinned["eval"]) <= 51
    assert thinned["eval"][-1] == 0.5


def test_a_run_without_predictions_has_no_pictures(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.append([trial("a", **scores(0.5, 0.7))])
    assert gather(store)["pictures"] == {"kept": {}, "trials": 0}


def test_only_the_settings_that_differ_are_compared(tmp_path: Path) -> None:
    stores = [new_store(tmp_path, f"r{rank}", config={"rank": rank, "epochs": 4}) for rank in (4, 8)]
    assert differing([gather(store) for store in stores]) == [{"name": "config.rank", "values": [4, 8]}]


def test_runs_are_compared_on_the_tasks_that_they_share(tmp_path: Path) -> None:
    stores = [new_store(tmp_path, name) for name in ("all", "easy")]
    hard, easy = trial("hard", **scores(0.1, 0.2)), trial("easy", **scores(0.5, 0.8))
    stores[0].append([hard, easy])
    stores[1].append([trial("easy", **scores(0.5, 0.7)), trial("hard", status="failed")])
    found = comparison([gather(store) for store in [*stores, plain_run(tmp_path)]])
    assert found["tasks"] == 1
    assert [means["final_cell_accuracy"] for means in found["means"]] == [0.8, 0.7, None]


def test_a_store_on_another_file_system_reads_the_same(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    store = ResultsStore("memory://report", "sweep", "run")
    store.create({"settings": {}, "extendable": [], "family": FAMILY.declaration()})
    row = trial("a", **scores(0.5, 0.7))
    store.append([row], curve(row), [answers(row, [[4, 3]])])
    run = gather(ResultsStore.open("memory://report/sweep/run"))
    assert len(run["pictures"]["kept"]) == 1 and by_task(run, "verdict") == {"a": "improved"}
