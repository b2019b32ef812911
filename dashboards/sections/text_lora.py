"""What the report shows of text tasks: test rows with the base's answer and the adapter's beside the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from sweeps.store.store import ResultsStore
from sweeps.store.summary import json_value
from trainables.atomic_lora.family import TEXT

# trials whose rows are shown, rows of each, and letters of a text
SHOWN_TRIALS, SHOWN_ROWS, LETTERS = 60, 8, 300
TEXTS = ("prompt", "completion", "base_answer", "adapted_answer")


def gather(stores: Sequence[ResultsStore]) -> list[dict[str, Any]]:
    """Return a trial each with its ``label`` and ``rows``: texts (null where none was asked for) and what is exact."""
    trials = [trial for store in stores for trial in _trials(store)]
    return json_value(trials[:SHOWN_TRIALS])


def _trials(store: ResultsStore) -> list[dict[str, Any]]:
    if store.family.name != TEXT.name:
        return []
    table = store.predictions()
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table.filter(pc.less(table["pair"], SHOWN_ROWS)).sort_by("pair").to_pylist():
        texts = {name: row[name][:LETTERS] if row.get(name) else None for name in TEXTS}
        exact = {name: row.get(name) for name in ("base_exact", "adapted_exact")}
        rows.setdefault((row["trial_id"], row["attempt"]), []).append({**texts, **exact})
    return [
        {"label": f"{row['task_id']}, sample {row['sample']}", "rows": rows[row["trial_id"], row["attempt"]]}
        for row in store.latest_trials().sort_by("task_id").to_pylist()
        if (row["trial_id"], row["attempt"]) in rows
    ]
