"""What the rows of a run add up to: the summary, the table that is printed of it, and the run as one JSON file.

Everything is read from the results folder, so it can be asked again at any time, while the sweep runs too.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TextIO

import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table

from sweeps.store.schema import KEYS
from sweeps.store.store import ResultsStore, latest_attempts
from trainables.common.family import counts_text, value_text


def summarise(store: ResultsStore) -> dict[str, Any]:
    """Return the outcome of a run as plain values; a value that no row has is None.

    The last attempt of each trial counts. A trial is *improved* or *worse* by the first column of its family's verdict
    that differs from its base, and the *same* where none does. Successful trials of which the first is not known are
    *not compared*. ``headlines`` are the family's, ``means`` are over the successful trials that have the value;
    ``over`` has the number of these trials and of their tasks, ``tasks`` counts those that the run was asked to train
    as well. ``left_out`` is how much of the data was not used, by reason. ``seconds`` are sums over all attempts;
    ``elapsed`` is the time from the first start to the last end.
    """
    attempts, family = store.trials(), store.family
    rows = latest_attempts(attempts).to_pylist()
    successful = [row for row in rows if row["status"] == "success"]
    compared = [change for change in map(family.change, successful) if change is not None]
    verdicts = Counter(verdict(change) for change in compared)
    ordered = sorted(
        ((standing, row) for row in successful if (standing := family.standing(row)) is not None),
        key=lambda pair: pair[0],
        reverse=True,
    )
    start, end = pc.min(attempts["started_at"]).as_py(), pc.max(attempts["finished_at"]).as_py()
    seconds = {name: pc.sum(attempts[name]).as_py() for name in ("seconds", "busy_seconds", "gpu_seconds")}

    record = store.run() or {}
    tasks = {row["task_id"] for row in rows} | set(record.get("fingerprints", ()))

    def over(name: str) -> list[int]:
        having = [row["task_id"] for row in successful if row.get(name) is not None]
        return [len(having), len(set(having))]

    def brief(row: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: row.get(name) for name in ("task_id", "trial_id", *(column.name for column in family.shown))}
        return {**values, "standing": family.standing_text(row)}

    return {
        "sweep": store.sweep,
        "run_id": store.run_id,
        "results": store.folder.location,
        "noun": family.noun,
        "trials": len(rows),
        "tasks": len(tasks),
        "counts": dict(sorted(Counter(str(row["status"]) for row in rows).items())),
        "versus_base": {
            **{verdict: verdicts[verdict] for verdict in ("improved", "same", "worse")},
            "not_compared": len(successful) - len(compared),
        },
        "compares": bool(family.verdict),
        "headlines": [
            {name: getattr(column, name) for name in ("name", "headline", "base", "percent", "better")}
            | {"baselines": list(column.baselines)}
            for column in family.headlines
        ],
        "means": {column.name: _mean(row.get(column.name) for row in successful) for column in family.shown},
        "over": {column.name: over(column.name) for column in family.shown},
        "left_out": dict(sum((Counter(own) for own in record.get("left_out", {}).values()), Counter())),
        "seconds": {**seconds, "elapsed": (end - start).total_seconds() if start and end else None},
        "best": [brief(row) for _, row in ordered[:3]],
        "worst": [brief(row) for _, row in ordered[:-4:-1]],
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
    # what a family does not measure gets no line
    lines = [line for line in summary["headlines"] if means[line["name"]] is not None]
    on_base = any(line["base"] for line in lines)
    heads = ("", "base", "trained") if on_base else ("", "", "mean")
    table = Table(*heads, title=title, title_justify="left", box=None if console.is_terminal else box.ASCII)
    table.columns[1].justify = table.columns[2].justify = "right"
    by_status = ", ".join(f"{count} {status}" for status, count in counts.items())
    table.add_row(summary["noun"], "", f"{summary['trials']} ({by_status})" if counts else "0")
    if summary["compares"] and counts.get("success"):
        for verdict in ("improved", "same", "worse"):
            table.add_row(f"{verdict} against the base", "", str(versus[verdict]))
        if versus["not_compared"]:
            table.add_row("not compared", "", str(versus["not_compared"]))
    said = ""
    for line in lines:
        base = value_text(means[line["base"]], line["percent"]) if line["base"] else ""
        if over_text(summary, line["name"]) != said:
            said = over_text(summary, line["name"])
            table.add_row(f"mean over {said}", "", "")
        table.add_row(line["headline"], base, value_text(means[line["name"]], line["percent"]))
    if summary["left_out"]:
        table.add_row(f"left out of the data: {counts_text(summary['left_out'])}", "", "")
    for label, name in (("seconds, start to end", "elapsed"), ("seconds of accelerators", "gpu_seconds")):
        if summary["seconds"][name]:
            table.add_row(label, "", f"{summary['seconds'][name]:.0f}")
    console.print(table)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    for label, rows in (("best", summary["best"]), ("worst", summary["worst"])):
        # A family without tasks counts all of its trials under one.
        name = "task_id" if summary["tasks"] > 1 else "trial_id"
        if rows and summary["trials"] > 1:
            say(f"{label}: " + ", ".join(f"{row[name]} ({row['standing']})" for row in rows))
    for failure in summary["failures"][:5]:
        say(f"failed: {failure['task_id'] or failure['trial_id']}: {failure['error']}")
    if len(summary["failures"]) > 5:
        say(f"failed: {len(summary['failures']) - 5} more, see the columns error and traceback of trials")
    say(f"results: {summary['results']}")
    if summary["failures"]:
        say("next: run the same command with the same --run-id again to retry what failed")
    elif summary["trials"]:
        say(f"next: python -m sweeps.results {shlex.quote(summary['results'])} --export-json summary.json")


def over_text(summary: Mapping[str, Any], name: str) -> str:
    """Return what the mean of a column in `summarise` is over, as in ``4 of 10 tasks``."""
    trials, tasks = summary["over"][name]
    of_tasks = f"{tasks} of {summary['tasks']} tasks"
    if 1 < summary["trials"] <= summary["tasks"]:
        return of_tasks
    of_trials = f"{trials} of {summary['trials']} {summary['noun']}"
    return f"{of_trials} on {of_tasks}" if summary["tasks"] > 1 else of_trials


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


def verdict(change: Sequence[float]) -> str:
    """Return ``improved``, ``same`` or ``worse`` for what `Family.change` returned."""
    differs = next((part for part in change if part), 0.0)
    return "improved" if differs > 0 else "worse" if differs < 0 else "same"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def json_value(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: times as ISO strings, None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: json_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
