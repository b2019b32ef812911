"""What the report gathers of text tasks, from a store with known answers."""

from __future__ import annotations

from pathlib import Path

from dashboards.report import content, page
from dashboards.sections.text_lora import LETTERS, SHOWN_ROWS, gather
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from tests.dashboards.stores import HOSTILE, pool_run, trial
from trainables.atomic_lora.family import TEXT


def text_run(folder: Path) -> ResultsStore:
    store = ResultsStore(folder, "atomic_lora", "texts")
    store.create(run_record(["python"], {"tasks": ["t0"]}, [], "f0", 0, TEXT))
    row = trial("t0", base_exact_match=0.0, final_exact_match=1.0, base_token_accuracy=0.5, final_token_accuracy=1.0)
    key = {name: row[name] for name in ("trial_id", "attempt", "task_id")}
    predictions = [
        {
            **key, "pair": pair, "prompt": HOSTILE + "p" * LETTERS, "completion": "right", "base_exact": False,
            "adapted_exact": True, "base_answer": None, "adapted_answer": "right",
        }
        for pair in range(SHOWN_ROWS + 1)
    ]  # fmt: skip
    store.append([row], [], predictions)
    return store


def test_the_first_rows_of_each_task(tmp_path: Path) -> None:
    (found,) = gather([pool_run(tmp_path / "other"), text_run(tmp_path)])
    assert found["label"] == "t0, sample 0" and len(found["rows"]) == SHOWN_ROWS
    row = found["rows"][0]
    assert len(row["prompt"]) == LETTERS and row["adapted_answer"] == "right" and row["base_answer"] is None
    assert (row["base_exact"], row["adapted_exact"]) == (False, True)


def test_the_page_holds_the_section_and_no_picture_of_a_text(tmp_path: Path) -> None:
    data = content([text_run(tmp_path)])
    assert data["runs"][0]["pictures"] == {"kept": {}, "trials": 0}
    text = page(data)
    assert "registerSection(textSection)" in text and HOSTILE not in text
