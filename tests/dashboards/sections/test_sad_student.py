"""What the report counts of SAD students, from a store with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dashboards.sections.sad_student import gather
from sweeps.store.store import ResultsStore
from tests.dashboards.stores import new_store, pool_run, trial


def student(name: str, loss: str, seed: int, success: float, **columns: Any) -> dict[str, Any]:
    config = json.dumps({"loss": loss, "lr": 0.1, "mode": columns.pop("mode", "fast")})
    return {
        **trial(name), "task_id": "sad_student", "category": None, "slot": None, "worker": None, "seed": seed,
        "config": config, "loss": loss, "success_rate": success, "steps_per_episode": 3.0, "kl_action": 0.5,
        "metric/success_rate_rooms": success / 2, "teacher_success_rate": 0.9, "random_success_rate": 0.1,
        "teacher_tokens": 100, **columns,
    }  # fmt: skip


def student_run(folder: Path) -> ResultsStore:
    store = new_store(folder, "students", sweep="sad_student")
    rows = [student("a", "sad", 0, 0.8), student("b", "sad", 1, 0.6, mode="research"), student("c", "ce", 0, 0.4)]
    curve = [{"trial_id": "a", "attempt": 1, "epoch": epoch, "kl_action": 1.0 / epoch} for epoch in (1, 2)]
    store.append([*rows, {**student("d", "guided", 0, 0.1), "status": "stopped"}], curve)
    episode = {
        "problem": "rooms-1-7",
        "success": True,
        "texts": ["a", "b"],
        "spans": ["other", "action"],
        "kl": [None, 0.2],
    }
    store.folder.write("models/a/episode.json", json.dumps(episode).encode())
    return store


def test_variants_have_intervals_task_types_curves_and_an_episode(tmp_path: Path) -> None:
    found = gather([pool_run(tmp_path), student_run(tmp_path)])
    assert found is not None and found["reference"] == {"loss": "sad"}
    by_label = {variant["label"]: variant for variant in found["variants"]}
    assert set(by_label) == {"sad", "ce"}, "stopped trials are left out"
    assert by_label["sad"]["seeds"] == 2 and by_label["sad"]["exact"]["mean"] == pytest.approx(0.7)
    assert by_label["sad"]["kinds"]["rooms"]["mean"] == pytest.approx(0.35)
    assert by_label["ce"]["exact"] == {"mean": 0.4, "half": None}
    assert [(b["name"], b["mean"]) for b in found["baselines"]] == [
        ("solved by the teacher", pytest.approx(0.9)), ("solved at random", pytest.approx(0.1)),
    ]  # fmt: skip
    curves = {curve["label"]: curve for curve in found["curves"]}
    assert curves["sad"]["epochs"] == [1, 2] and curves["sad"]["kl_action"] == [1.0, 0.5]
    (episode,) = found["episodes"]
    assert episode["label"] == "sad" and episode["kl"] == [None, 0.2]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert gather([pool_run(tmp_path, run_id="other")]) is None
