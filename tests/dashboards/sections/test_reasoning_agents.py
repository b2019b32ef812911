"""What the report counts of reasoning agents, from stores with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dashboards.sections.reasoning_agents import gather
from tests.dashboards.stores import agents, agents_run, new_store, pool_run


def test_criteria_are_means_over_seeds_with_verdicts(tmp_path: Path) -> None:
    (found,) = gather([agents_run(tmp_path)])
    assert found["seeds"] == [0, 1] and found["left_out"] == 1
    hrm, refinements, _, retrieval, _ = found["criteria"]
    assert hrm["value"] == {"mean": pytest.approx(0.7), "half": pytest.approx(12.706 * 0.1)}
    assert (hrm["bound"], hrm["better"], hrm["met"], hrm["baseline"]) == (0.7, "max", 1, 0.2)
    assert (refinements["better"], refinements["met"]) == ("min", 2) and retrieval["met"] == 0
    assert found["shown"]["example"]["answer"] == 7
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_trials_that_did_not_go_through_all_phases_are_left_out(tmp_path: Path) -> None:
    store = new_store(tmp_path, sweep="reasoning_agents")
    store.append([agents("x") | {"criteria_met": None}, agents("y") | {"status": "failed"}])
    assert gather([store, pool_run(tmp_path)]) == []
    store.append([agents("z")])
    (found,) = gather([store])
    assert found["seeds"] == [0] and found["criteria"][0]["value"]["half"] is None and found["shown"] == {}
    assert found["criteria"][0]["within"] == 0.05
