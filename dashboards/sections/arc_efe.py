"""What the report shows of prompted grid agents: terms over training, some held-out pairs with their prompts, memory.

Held-out pairs are shown with their input, output, and the prediction before and after the policy changed the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.store.store import ResultsStore
from sweeps.store.summary import json_value
from trainables.arc_efe.config import TERMS
from trainables.arc_efe.family import FAMILY

# trials whose held-out pairs are shown: each takes about 50 kB
SHOWN_TRIALS = 12
MEMORY = {"entries": "memory_entries", "hits": "train_memory_hits", "threshold": "memory_threshold"}
# settings that tell trials apart at a glance, besides those that were swept
NAMED = ("prompt", "lm_training", "policy", "memory", "steps")


def gather(stores: Sequence[ResultsStore]) -> list[dict[str, Any]]:
    """Return a trial each: ``epochs``, ``terms`` and ``norms`` (value and gradient norm by term and epoch), ``hard``
    (share of hard cells in training), ``memory`` by epoch, and ``answers`` as its ``answers.json`` holds them.
    """
    trials = [trial for number, store in enumerate(stores) for trial in _trials(store, number)]
    for trial in trials[SHOWN_TRIALS:]:
        trial["answers"] = []
    return json_value(trials)


def _trials(store: ResultsStore, number: int) -> list[dict[str, Any]]:
    if store.family.name != FAMILY.name:
        return []
    epochs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in store.history().to_pylist():
        epochs.setdefault(row["trial_id"], {})[row["epoch"]] = row
    found = []
    for place, row in enumerate(store.latest_trials().to_pylist()):
        history = [line for _, line in sorted(epochs.get(row["trial_id"], {}).items())]
        if not history:
            continue
        config = json.loads(row["config"])
        answers = store.folder.sub(f"models/{row['trial_id']}").read_json("answers.json")
        found.append(
            {
                "run": number,
                "place": place,
                "label": ", ".join(f"{name} {config[name]}" for name in NAMED if name in config)
                + f", seed {row['seed']}",
                "epochs": [line["epoch"] for line in history],
                "terms": _columns(history, "term/"),
                "norms": _columns(history, "term_grad_norm/"),
                "hard": [line.get("train_hard_share") for line in history],
                "memory": {name: [line.get(column) for line in history] for name, column in MEMORY.items()},
                "answers": answers or [],
            }
        )
    return found


def _columns(history: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, list[Any]]:
    names = [name for name in (*TERMS, "policy") if any(line.get(prefix + name) is not None for line in history)]
    return {name: [line.get(prefix + name) for line in history] for name in names}
