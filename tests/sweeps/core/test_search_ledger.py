"""What a search suggests: no unit of work twice, what was begun first, and what Optuna is told of earlier sessions."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune import choice, loguniform
from ray.tune.search.sample import Categorical

from search_spaces.recursive_reasoner import SPACE
from search_spaces.settings import Ablation
from sweeps.backend.optuna_search import Outcome
from sweeps.core.search_ledger import SearchLedger, require_searchable
from sweeps.core.sweep import Inputs, Sweep
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError
from trainables.common.jobs import Report


def sweep_over(domains: Mapping[str, Any], seed: int = 3) -> Sweep:
    config, _ = SPACE.resolve("smoke")
    return Sweep("recursive_reasoner", SPACE, argparse.Namespace(seed=seed), config, domains, Inputs("f0"))


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    store = ResultsStore(tmp_path, "recursive_reasoner", "run")
    store.create(run_record(["python"], {}, [], "f0", 0, SPACE.family))
    return store


def suggest(drawn: SearchLedger, count: int) -> list[dict[str, Any]]:
    seen: list[str] = []
    search = drawn.searcher(seen.append)
    suggestions = [search.suggest(f"tune-{number}") for number in range(count)]
    assert seen == [suggestion["unit"] for suggestion in suggestions]
    return suggestions


def end(store: ResultsStore, trial_id: str, status: str, **columns: Any) -> None:
    row = {"trial_id": trial_id, "attempt": 1, "task_id": trial_id.split("-")[0], "status": status, **columns}
    store.append([row])


def test_a_configuration_that_is_drawn_again_gets_the_next_seed(store: ResultsStore) -> None:
    drawn = SearchLedger(sweep_over({"halting": choice(["fixed", "bce"])}), store, ["reasoner"])
    suggestions = suggest(drawn, 6)
    jobs = [job for suggestion in suggestions for job in drawn.jobs(suggestion["unit"])]
    assert len({job.trial_id for job in jobs}) == 6 and [job.sample for job in jobs] == list(range(6))
    for halting in ("fixed", "bce"):
        seeds = [suggestion["seed"] for suggestion in suggestions if suggestion["halting"] == halting]
        assert seeds == list(range(3, 3 + len(seeds)))
    assert list(json.loads((Path(store.folder.root) / "search.json").read_text())) == list(drawn.configs)


def test_a_later_session_finishes_what_was_begun_and_knows_what_is_complete(store: ResultsStore) -> None:
    sweep, tasks = sweep_over({"lr": loguniform(1e-4, 1e-1), "planner": choice(["none", "latent_paths"])}), ["a", "b"]
    first = SearchLedger(sweep, store, tasks)
    suggestions = suggest(first, 4)
    keys = list(first.configs)
    # complete; stopped; one of two trials done; begun
    for task, accuracy in (("a", 0.25), ("b", 0.75)):
        end(store, f"{task}-{keys[0]}", "success", exact_accuracy=accuracy)
        end(store, f"{task}-{keys[1]}", "stopped", exact_accuracy=0.1, rung=5)
    end(store, f"a-{keys[2]}", "success", exact_accuracy=0.5)
    end(store, f"b-{keys[2]}", "failed")
    later = SearchLedger(sweep, store, tasks)
    assert later.finished == set(keys[:2])
    assert [later.outcome(key) for key in keys] == [Outcome(0.5), Outcome(0.1, 5), None, None]
    again = suggest(later, 3)
    assert again[:2] == suggestions[2:] and again[2]["sample"] == 4
    assert again[2]["lr"] not in {suggestion["lr"] for suggestion in suggestions}
    assert [(job.trial_id, job.attempt) for job in later.jobs(keys[2])] == [(f"b-{keys[2]}", 2)]
    assert [job.trial_id for job in later.jobs(keys[3])] == [f"a-{keys[3]}", f"b-{keys[3]}"]


def test_what_earlier_sessions_found_steers_the_search(store: ResultsStore) -> None:
    drawn = SearchLedger(sweep_over({"lr": loguniform(1e-4, 1e-1)}), store, ["reasoner"])
    rates = {}
    for suggestion in suggest(drawn, 30):
        (job,) = drawn.jobs(suggestion["unit"])
        rates[job.trial_id] = suggestion["lr"]
        # the higher the rate the better
        end(store, job.trial_id, "success", exact_accuracy=suggestion["lr"])
    later = suggest(SearchLedger(sweep_over({"lr": loguniform(1e-4, 1e-1)}), store, ["reasoner"]), 10)
    middle = sorted(rates.values())[15]
    assert sum(suggestion["lr"] > middle for suggestion in later) >= 8


def test_optuna_hears_the_same_of_a_configuration_in_its_session_and_in_a_later_one(store: ResultsStore) -> None:
    sweep, tasks = sweep_over({"lr": loguniform(1e-4, 1e-1)}), ["a", "b"]
    drawn = SearchLedger(sweep, store, tasks)
    search = drawn.searcher(lambda key: None)
    keys = [search.suggest(f"tune-{number}")["unit"] for number in range(4)]
    ends: list[tuple[str, str, dict[str, Any]]] = [
        (f"{task}-{key}", status, metrics)
        for task, accuracy in (("a", 0.25), ("b", 0.75))
        for key, status, metrics in (
            (keys[0], "success", {"exact_accuracy": accuracy, "rung": 15}),
            (keys[1], "stopped", {"exact_accuracy": accuracy, "rung": 5}),
            (keys[2], "failed" if task == "b" else "success", {"exact_accuracy": accuracy}),
        )
    ]
    for trial_id, status, metrics in ends:
        drawn.hear([Report(trial_id, status, 20, metrics)])  # type: ignore[arg-type]
        end(store, trial_id, status, **metrics)
    search.tell()
    later = SearchLedger(sweep, store, tasks).searcher(lambda key: None)

    def told(study: optuna.Study) -> list[tuple[Any, ...]]:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = study.get_trials(states=states)
        return [(t.state, t.value, t.params, t.intermediate_values, t.distributions) for t in trials]

    assert told(later.study) == told(search.study)
    assert [row[:2] + row[3:4] for row in told(later.study)] == [
        (TrialState.COMPLETE, 0.5, {}),
        (TrialState.PRUNED, 0.5, {5: 0.5}),
    ]
    # the one that failed, and the one that has not ended
    assert [t.state for t in search.study.trials[2:]] == [TrialState.FAIL, TrialState.RUNNING]
    assert len(later.study.get_trials(states=[TrialState.WAITING])) == 2


def test_a_panel_that_was_stopped_before_all_of_it_began_is_compared_by_those_that_had(store: ResultsStore) -> None:
    drawn = SearchLedger(sweep_over({"lr": loguniform(1e-4, 1e-1)}), store, ["a", "b"])
    (suggestion,) = suggest(drawn, 1)
    key = suggestion["unit"]
    drawn.hear([Report(f"a-{key}", "stopped", 7, {"exact_accuracy": 0.5, "rung": 5}), Report(f"b-{key}", "running", 1)])
    assert drawn.outcome(key) is None
    drawn.hear([Report(f"b-{key}", "stopped", 0, {"rung": 5})])
    assert drawn.outcome(key) == Outcome(0.5, 5)


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_configuration_without_a_value_counts_as_failed(store: ResultsStore, value: float | None) -> None:
    drawn = SearchLedger(sweep_over({"lr": loguniform(1e-4, 1e-1)}), store, ["a"])
    (suggestion,) = suggest(drawn, 1)
    drawn.hear([Report(f"a-{suggestion['unit']}", "success", 9, {"exact_accuracy": value})])
    assert drawn.outcome(suggestion["unit"]) == Outcome(None)
    end(store, f"a-{suggestion['unit']}", "success")
    later = SearchLedger(sweep_over({"lr": loguniform(1e-4, 1e-1)}), store, ["a"])
    assert later.outcome(suggestion["unit"]) == Outcome(None) and suggest(later, 1)[0]["sample"] == 1


def test_what_is_drawn_can_be_trained_as_a_whole(store: ResultsStore) -> None:
    domains = {"width": choice([16, 24, 64]), "heads": choice([3, 4, 8])}
    search = SearchLedger(sweep_over(domains), store, ["reasoner"]).searcher(lambda key: None)
    drawn = [search.suggest(str(number)) for number in range(12)]
    assert all(each["width"] % each["heads"] == 0 for each in drawn)
    assert {t.state for t in search.study.trials} == {TrialState.RUNNING, TrialState.FAIL}
    search = SearchLedger(sweep_over({"width": choice([16]), "heads": choice([3])}), store, ["r"]).searcher(print)
    with pytest.raises(InputError, match="no configuration that can be trained in 1000 tries"):
        search.suggest("0")


def test_what_leaves_nothing_to_choose_is_refused() -> None:
    with pytest.raises(InputError, match="needs something to search"):
        require_searchable({})
    for domain in (Categorical([0.0, 0.9]).grid(), Ablation([0.0])):
        with pytest.raises(InputError, match=r"ema is swept with grid\(...\) or ablate\(...\), which try every value"):
            require_searchable({"lr": loguniform(1e-4, 1e-1), "ema": domain})
