"""The queries of docs/queries.md, run on a small store, with the answers worked out by hand.

The store lies in a folder that readers of Parquet would take for a column.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from trainables.atomic_lora.family import FAMILY

duckdb = pytest.importorskip("duckdb")

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
SNIPPETS = re.findall(r"^```python\n(.*?)```", PAGE.read_text(), re.M | re.S)
QUERIES = {int(n): sql for n, sql in re.findall(r"^## (\d+)\..*?```sql\n(.*?)```", PAGE.read_text(), re.M | re.S)}
START = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
RIGHT, WRONG = [[1, 2]], [[2, 2]]


def trial(task: str, sample: int, rate: float, minute: int, **columns: Any) -> dict[str, Any]:
    return {
        "trial_id": f"{task}-{sample}", "attempt": 1, "task_id": task, "sample": sample, "category": "growing",
        "status": "success", "stop_reason": "epochs", "epochs": 6, "config/lr_multiple": rate, "busy_seconds": 1.5,
        "started_at": START, "finished_at": START + timedelta(minutes=minute), **columns,
    }  # fmt: skip


def scores(base: float, final: float, base_exact: float = 0.0, final_exact: float = 0.0) -> dict[str, float]:
    return {
        "base_cell_accuracy": base, "final_cell_accuracy": final, "copy_cell_accuracy": 0.5,
        "base_grid_accuracy": base_exact, "final_grid_accuracy": final_exact,
    }  # fmt: skip


def rising(trial_id: str, losses: list[float]) -> list[dict[str, Any]]:
    key = {"trial_id": trial_id, "attempt": 1, "task_id": trial_id.split("-")[0]}
    return [{**key, "epoch": epoch, "eval_loss": loss} for epoch, loss in enumerate(losses, 1)]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    results = tmp_path_factory.mktemp("results") / "status=draft"
    store = ResultsStore(results, "atomic_lora", "now")
    store.create(run_record("python sweeps/atomic_lora.py", {}, (), "f0", 0, FAMILY))
    store.append(
        [
            trial("a", 0, 0.1, 5, best_loss=0.2, **scores(0.5, 0.8, 0.0, 1.0)),
            trial("a", 1, 1.0, 6, best_loss=0.3, **scores(0.5, 0.6)),
            trial("b", 0, 0.1, 15, best_loss=1.0, category="shrinking", **scores(0.75, 0.5, 1.0, 0.0)),
            trial(
                "b", 1, 1.0, 7, best_loss=2.0, final_loss=2.0, status="stopped", stop_reason="asha", epochs=2, rung=2,
                asha_cutoff=1.0,
            ),
            trial("c", 0, 0.1, 8, status="failed", stop_reason="error", error="DivergedError: eval_loss is nan"),
            trial("d", 0, 0.1, 8, status="failed", stop_reason="error", error="OSError: disk full"),
        ],
        [*rising("a-0", [0.4, 0.2, 0.3]), *rising("b-0", [3.0, 2.0, 1.0])],
    )  # fmt: skip
    answers = [
        ("a-0", 0, WRONG, RIGHT), ("a-0", 1, None, WRONG), ("a-1", 0, WRONG, WRONG), ("b-0", 0, RIGHT, [[1], [2]]),
        ("b-0", 1, RIGHT, None), ("b-0", 2, RIGHT, None),
    ]  # fmt: skip
    store.append(
        [trial("d", 0, 0.1, 16, attempt=2, best_loss=0.5, category="shrinking", **scores(0.25, 0.25))],
        predictions=[
            {"trial_id": name, "attempt": 1, "pair": pair, "expected": RIGHT, "base": base, "adapted": adapted}
            for name, pair, base, adapted in answers
        ],
    )
    other = ResultsStore(results, "atomic_lora", "before")
    other.create(run_record("python sweeps/atomic_lora.py", {}, (), "f0", 0, FAMILY))
    other.append([{**trial("a", 0, 0.1, 5, **scores(0.5, 0.25)), "config/rank": 4}])
    return store.folder.root


ANSWERS: dict[int, list[tuple[Any, ...]]] = {
    1: [("a", 0, 0.5, 0.8, 30.0), ("a", 1, 0.5, 0.6, 10.0), ("d", 0, 0.25, 0.25, 0.0), ("b", 0, 0.75, 0.5, -25.0)],
    2: [("growing", 2, 0.5, 0.7, 0.5), ("shrinking", 2, 0.5, 0.375, 0.5)],
    3: [("a", "gained"), ("b", "lost")],
    4: [(0.1, 3, 1.0, 3), (1.0, 2, 2.0, 0)],
    5: [(2, 1, 4, 2.0)],
    6: [("DivergedError", 1, 0), ("OSError", 1, 1)],
    7: [("a", 2, 3, 1.5)],
    8: [(datetime(2026, 1, 2, 3, 0), 18), (datetime(2026, 1, 2, 3, 10), 12)],
    9: [("now", 4, 0.538, 0.038, 6.0), ("before", 1, 0.25, -0.25, 2.0)],
    10: [
        ("no grid", 2), ("right", 1), ("wrong cells, as the base", 1), ("wrong cells, others than the base", 1),
        ("wrong size", 1),
    ],
}  # fmt: skip


def test_the_page_has_ten_questions_and_each_is_tested_here() -> None:
    assert sorted(QUERIES) == sorted(ANSWERS) == list(range(1, 11))


@pytest.mark.parametrize("number", ANSWERS)
def test_the_answer_is_right(number: int, run_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder)
    assert duckdb.sql(QUERIES[number]).fetchall() == ANSWERS[number]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["pandas", "polars"])
def test_several_runs_are_read_with_the_columns_of_all(
    snippet: str, run_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("polars")
    monkeypatch.chdir(run_folder)
    # as a path from elsewhere, with the folder called status=draft in it
    text = snippet.replace('"../*/', f'"{Path(run_folder).parent}/*/')
    assert text != snippet
    found: dict[str, Any] = {}
    exec(text, found)
    trials = found["trials"]
    assert {"config/lr_multiple", "config/rank"} <= set(trials.columns) and len(trials) == 8
    assert set(trials["status"]) == {"success", "stopped", "failed"} and set(trials["run_id"]) == {"now", "before"}


def test_a_folder_called_like_a_column_is_none(run_folder: str) -> None:
    query = QUERIES[9].replace("'../*/", f"'{Path(run_folder).parent}/*/")
    assert duckdb.sql(query).fetchall() == ANSWERS[9]
    # what the page warns of
    assert not duckdb.sql(query.replace(", hive_partitioning = false", "")).fetchall()
