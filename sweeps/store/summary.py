"""What the rows of a run add up to: the summary, the table that is printed of it, and the run as one JSON file.

Everything is read from the results folder, so it can be asked again at any time, while the sweep runs too.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TextIO

import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table

from sweeps.store.schema import KEYS
from sweeps.store.store import ResultsStore, latest_attempts


def summarise(store: ResultsStore) -> dict[str, Any]:
    """Return the outcome of a run as plain values; a value that no row has is None.

    The last attempt of each trial counts. An adapter is *improved* if its held-out grid accuracy is higher after
    training than before and *worse* if it is lower; where both are equal, cell accuracy decides in the same way; where
    that is equal or missing too, it is the *same*. Successful trials without both grid accuracies are *not compared*.
    Means are over the successful trials that have the value. ``seconds`` are sums over all attempts; ``elapsed`` is the
    time from the first start to the last end.
    """
    attempts = store.trials()
    rows = latest_attempts(attempts).to_pylist()
    successful = [row for row in rows if row["status"] == "success"]
    changes = [(change_over_base(row), row) for row in successful]
    compared = sorted(((c, row) for c, row in changes if c is not None), key=lambda pair: pair[0], reverse=True)
    verdicts = Counter(verdict(c) for c, _ in compared)
    start, end = pc.min(attempts["started_at"]).as_py(), pc.max(attempts["finished_at"]).as_py()
    seconds = {name: pc.sum(attempts[name]).as_py() for name in ("seconds", "busy_seconds", "gpu_seconds")}
    brief = ("task_id", "trial_id", *_MEANS[:4])
    return {
        "sweep": store.sweep,
        "run_id": store.run_id,
        "results": store.folder.location,
        "adapters": len(rows),
        "tasks": len({row["task_id"] for row in rows}),
        "counts": dict(sorted(Counter(str(row["status"]) for row in rows).items())),
        "versus_base": {
            **{verdict: verdicts[verdict] for verdict in ("improved", "same", "worse")},
            "not_compared": len(successful) - len(compared),
        },
        "means": {name: _mean(row.get(name) for row in successful) for name in _MEANS},
        "seconds": {**seconds, "elapsed": (end - start).total_seconds() if start and end else None},
        "best": [{name: row[name] for name in brief} for _, row in compared[:3]],
        "worst": [{name: row[name] for name in brief} for _, row in compared[:-4:-1]],
        "failures": [
            {name: row[name] for name in ("task_id", "trial_id", "attempt", "error")}
            for row in rows
            if row["status"] == "failed"
        ],
    }


def print_summary(summary: Mapping[str, Any], file: TextIO | None = None, console: Console | None = None) -> None:
    """Print what `summarise` returns as a table, in colour on a terminal and in plain ASCII elsewhere."""
    console = console or Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=110, color_system=None)
    title = f"{summary['sweep']} / {summary['run_id']}"
    counts, versus, means = summary["counts"], summary["versus_base"], summary["means"]
    # a family that trains no adapters has no base to compare with
    on_base = not counts.get("success") or any(means[base] is not None for _, base, _ in LINES if base)
    heads, noun = (("", "base", "adapted"), "adapters") if on_base else (("", "", "mean"), "trials")
    table = Table(*heads, title=title, title_justify="left", box=None if console.is_terminal else box.ASCII)
    table.columns[1].justify = table.columns[2].justify = "right"
    by_status = ", ".join(f"{count} {status}" for status, count in counts.items())
    table.add_row(noun, "", f"{summary['adapters']} ({by_status})" if counts else "0")
    if on_base:
        for verdict in ("improved", "same", "worse"):
            table.add_row(f"{verdict} against the base", "", str(versus[verdict]))
        if versus["not_compared"]:
            table.add_row("not compared", "", str(versus["not_compared"]))
    for label, base, adapted in LINES:
        # what a family does not measure gets no line
        if means[adapted] is not None:
            table.add_row(label, _percent(means[base]) if base else "", _percent(means[adapted]))
    if means["mean_steps"] is not None:
        table.add_row("steps of a puzzle", "", f"{means['mean_steps']:.2f}")
    for label, name in (("seconds, start to end", "elapsed"), ("seconds of accelerators", "gpu_seconds")):
        if summary["seconds"][name]:
            table.add_row(label, "", f"{summary['seconds'][name]:.0f}")
    console.print(table)

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    for label, rows in (("best", summary["best"]), ("worst", summary["worst"])):
        if rows:
            line(f"{label}: " + ", ".join(f"{row['task_id']} ({_gain(row)})" for row in rows))
    for failure in summary["failures"][:5]:
        line(f"failed: {failure['task_id'] or failure['trial_id']}: {failure['error']}")
    if len(summary["failures"]) > 5:
        line(f"failed: {len(summary['failures']) - 5} more, see the columns error and traceback of trials")
    line(f"results: {summary['results']}")
    if summary["failures"]:
        line("next: run the same command with the same --run-id again to retry what failed")
    elif summary["adapters"]:
        line(f"next: python -m sweeps.results {shlex.quote(summary['results'])} --export-json summary.json")


def export(store: ResultsStore, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole run as one JSON value: its record, the summary, and the rows of each trial's last attempt.

    ``history`` maps a trial id to ``{column: values}`` ordered by epoch, without columns that are empty throughout.
    Numbers that JSON does not have (NaN, infinities) become None, times ISO strings.
    """
    curves: dict[str, dict[str, list[Any]]] = {}
    table = store.history().sort_by([(name, "ascending") for name in KEYS["history"]])
    last = {row["trial_id"]: row["attempt"] for row in table.select(KEYS["trials"]).to_pylist()}
    for row in table.drop_columns(["run_id"]).to_pylist():
        if row["attempt"] == last[row["trial_id"]]:
            curve = curves.setdefault(row.pop("trial_id"), {name: [] for name in row})
            for name, value in row.items():
                curve[name].append(value)
    history = {
        trial_id: {name: values for name, values in curve.items() if any(value is not None for value in values)}
        for trial_id, curve in curves.items()
    }
    rows = store.latest_trials().to_pylist()
    kept = {(row["trial_id"], row["attempt"]) for row in rows}
    predictions = [
        row
        for row in store.predictions().drop_columns(["run_id"]).to_pylist()
        if (row["trial_id"], row["attempt"]) in kept
    ]
    return json_value(
        {"run": store.run(), "summary": summary, "trials": rows, "history": history, "predictions": predictions}
    )


_MEANS = (
    "base_grid_accuracy",
    "final_grid_accuracy",
    "base_cell_accuracy",
    "final_cell_accuracy",
    "copy_grid_accuracy",
    "copy_cell_accuracy",
    "modal_grid_accuracy",
    "change_recall",
    "base_size_accuracy",
    "final_size_accuracy",
    "base_teacher_forced_cell_accuracy",
    "teacher_forced_cell_accuracy",
    "exact_accuracy",
    "token_accuracy",
    "mean_steps",
    "metric/direct_exact_accuracy",
    "metric/direct_token_accuracy",
    "metric/majority_exact_accuracy",
    "metric/majority_token_accuracy",
)

# what is compared: label, mean before training, mean after it
LINES = (
    ("exact-match accuracy", "base_grid_accuracy", "final_grid_accuracy"),
    ("cell accuracy", "base_cell_accuracy", "final_cell_accuracy"),
    ("size accuracy", "base_size_accuracy", "final_size_accuracy"),
    ("cell accuracy, true prefix given", "base_teacher_forced_cell_accuracy", "teacher_forced_cell_accuracy"),
    ("recall of changed cells", None, "change_recall"),
    ("copying the input, exact match", None, "copy_grid_accuracy"),
    ("copying the input, cells", None, "copy_cell_accuracy"),
    ("most frequent training output, exact", None, "modal_grid_accuracy"),
    ("solved", None, "exact_accuracy"),
    ("solved by direct prediction", None, "metric/direct_exact_accuracy"),
    ("solved by the majority", None, "metric/majority_exact_accuracy"),
    ("cells", None, "token_accuracy"),
    ("cells by direct prediction", None, "metric/direct_token_accuracy"),
    ("cells by the majority", None, "metric/majority_token_accuracy"),
)


def change_over_base(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return a trial's gain in grid accuracy and in cell accuracy, or None for a row without both grid accuracies."""
    base, final = row["base_grid_accuracy"], row["final_grid_accuracy"]
    if base is None or final is None:
        return None
    cells = 0.0
    if row["base_cell_accuracy"] is not None and row["final_cell_accuracy"] is not None:
        cells = row["final_cell_accuracy"] - row["base_cell_accuracy"]
    # means over the same cells may differ in their last bits
    return round(final - base, 9), round(cells, 9)


def verdict(change: tuple[float, float]) -> str:
    """Return ``improved``, ``same`` or ``worse`` for what `change_over_base` returned."""
    return "same" if change == (0, 0) else "improved" if change > (0, 0) else "worse"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _gain(row: Mapping[str, Any]) -> str:
    grids, cells = change_over_base(row) or (0.0, 0.0)
    return f"{100 * grids:+.1f} exact, {100 * cells:+.1f} cells"


def json_value(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: times as ISO strings, None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: json_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
