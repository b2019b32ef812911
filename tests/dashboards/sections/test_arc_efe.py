"""What the report gathers of prompted grid agents, from a store with known answers."""

from __future__ import annotations

import json
from pathlib import Path

from dashboards.report import content, page
from dashboards.sections.arc_efe import SHOWN_TRIALS, gather
from sweeps.store.store import ResultsStore
from tests.dashboards.stores import HOSTILE, new_store, pool_run, trial

ANSWER = {
    "task": "t0", "input": "01/10", "target": "02/20", "before": "01/10", "after": "02/20", "change": "colours",
    "prompt": HOSTILE, "changed_prompt": HOSTILE, "memory": True, "score_before": 1.5, "score_after": 2.5,
}  # fmt: skip


def efe_run(folder: Path, count: int = 2) -> ResultsStore:
    store = new_store(folder, sweep="arc_efe")
    rows, history = [], []
    for number in range(count):
        name = f"a{number}"
        config = json.dumps({"prompt": "plain", "memory": True, "steps": 3})
        rows.append({**trial(name), "seed": number, "config": config, "exact_accuracy": 0.25, "cell_accuracy": 0.5})
        history += [
            {
                "trial_id": name, "attempt": 1, "task_id": name, "epoch": epoch, "term/risk": 2.0 / epoch,
                "term_grad_norm/risk": 1.0, "train_hard_share": 0.5, "memory_entries": 3.0 * epoch,
            }
            for epoch in (1, 2)
        ]  # fmt: skip
        store.folder.write(f"models/{name}/answers.json", json.dumps([ANSWER]).encode())
    store.append(rows, history)
    return store


def test_terms_memory_and_answers_of_each_trial(tmp_path: Path) -> None:
    first, second = gather([pool_run(tmp_path / "other"), efe_run(tmp_path)])
    assert first["label"] == "prompt plain, memory True, steps 3, seed 0" and second["place"] == 1
    assert (
        first["epochs"] == [1, 2] and first["terms"] == {"risk": [2.0, 1.0]} and first["norms"] == {"risk": [1.0, 1.0]}
    )
    assert first["memory"]["entries"] == [3.0, 6.0] and first["hard"] == [0.5, 0.5]
    assert first["answers"] == [ANSWER] and first["run"] == 1


def test_answers_of_many_trials_have_no_room(tmp_path: Path) -> None:
    found = gather([efe_run(tmp_path, SHOWN_TRIALS + 1)])
    assert [len(trial["answers"]) for trial in found] == [1] * SHOWN_TRIALS + [0]


def test_the_page_holds_the_section_and_no_markup_of_a_prompt(tmp_path: Path) -> None:
    text = page(content([efe_run(tmp_path)]))
    assert "registerSection(efeSection)" in text and HOSTILE not in text
