"""What a search suggests: no unit of work twice, what was begun first, and what Optuna is told of earlier sessions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.tune import choice, loguniform
from ray.tune.search.sample import Categorical

from search_spaces.recursive_reasoner import SPACE
from search_spaces.settings import Ablation
from sweeps.core.search_ledger import Drawn, require_searchable
from sweeps.core.sweep import Sweep
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError


def sweep_over(domains: Mapping[str, Any], seed: int = 3) -> Sweep:
    config, _ = SPACE.resolve("smoke")
    return Sweep("recursive_reasoner", SPACE, argparse.Namespace(seed=seed), config, domains, {}, "f0")


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    store = ResultsStore(tmp_path, "recursive_reasoner", "run")
    store.create(run_record(["python"], {}, [], "f0", 0))
    return store


def suggest(drawn: Drawn, count: int) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    search = drawn.searcher(seen.append)
    suggestions = [search.suggest(f"tune-{number}") for number in range(count)]
    assert seen == suggestions
    return suggestions


def end(store: ResultsStore, trial_id: str, status: str, **columns: Any) -> None:
    row = {"trial_id": trial_id, "attempt": 1, "task_id": trial_id.split("-")[0], "status": status, **columns}
    store.append([row])


def test_a_configuration_that_is_drawn_again_gets_the_next_seed(store: ResultsStore) -> None:
    drawn = Drawn(sweep_over({"halting": choice(["fixed", "bce"])}), store, ["reasoner"])
    suggestions = suggest(drawn, 6)
    jobs = [job for suggestion in suggestions for job in drawn.jobs(suggestion)]
    assert len({job.trial_id for job in jobs}) == 6 and [job.sample for job in jobs] == list(range(6))
    for halting in ("fixed", "bce"):
        seeds = [suggestion["seed"] for suggestion in suggestions if suggestion["halting"] == halting]
        assert seeds == list(range(3, 3 + len(seeds)))
    assert list(json.loads((Path(store.folder.root) / "search.json").read_text())) == list(drawn.configs)


def test_a_later_session_finishes_what_was_begun_and_knows_what_is_complete(store: ResultsStore) -> None:
    sweep, tasks = sweep_over({"lr": loguniform(1e-4, 1e-1), "planner": choice(["none", "latent_paths"])}), ["a", "b"]
    first = Drawn(sweep, store, tasks)
    suggestions = suggest(first, 4)
    keys = list(first.configs)
    # complete; stopped, which says little; one of two trials done; begun
    for task, accuracy in (("a", 0.25), ("b", 0.75)):
        end(store, f"{task}-{keys[0]}", "success", exact_accuracy=accuracy)
        end(store, f"{task}-{keys[1]}", "stopped", exact_accuracy=0.1)
    end(store, f"a-{keys[2]}", "success", exact_accuracy=0.5)
    end(store, f"b-{keys[2]}", "failed")
    later = Drawn(sweep, store, tasks)
    assert later.complete == set(keys[:2]) and (later.value(keys[0]), later.value(keys[1])) == (0.5, None)
    again = suggest(later, 3)
    assert again[:2] == suggestions[2:] and again[2]["sample"] == 4
    assert again[2]["lr"] not in {suggestion["lr"] for suggestion in suggestions}
    assert [(job.trial_id, job.attempt) for job in later.jobs(again[0])] == [(f"b-{keys[2]}", 2)]
    assert [job.trial_id for job in later.jobs(again[1])] == [f"a-{keys[3]}", f"b-{keys[3]}"]


def test_what_earlier_sessions_found_steers_the_search(store: ResultsStore) -> None:
    drawn = Drawn(sweep_over({"lr": loguniform(1e-4, 1e-1)}), store, ["reasoner"])
    rates = {}
    for suggestion in suggest(drawn, 30):
        (job,) = drawn.jobs(suggestion)
        rates[job.trial_id] = suggestion["lr"]
        # the higher the rate the better
        end(store, job.trial_id, "success", exact_accuracy=suggestion["lr"])
    later = suggest(Drawn(sweep_over({"lr": loguniform(1e-4, 1e-1)}), store, ["reasoner"]), 10)
    middle = sorted(rates.values())[15]
    assert sum(suggestion["lr"] > middle for suggestion in later) >= 8


def test_what_leaves_nothing_to_choose_is_refused() -> None:
    with pytest.raises(InputError, match="needs something to search"):
        require_searchable({})
    for domain in (Categorical([0.0, 0.9]).grid(), Ablation([0.0])):
        with pytest.raises(InputError, match=r"ema is swept with grid\(...\) or ablate\(...\), which try every value"):
            require_searchable({"lr": loguniform(1e-4, 1e-1), "ema": domain})
