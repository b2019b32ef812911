"""What the report shows, taken from the results store: plain values that fit into JSON.

`gather` reads one run. Everything that is counted or averaged is counted here, so that it can be tested without a
browser; the page draws it. Trials are columns (one list per name, one value per trial), because that is a third of the
size of rows. What would make the page too large is thinned: long curves lose points, and answers beyond a budget are
left out, those of the best and worst trials last.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from sweeps.store.store import ResultsStore, latest_attempts
from sweeps.store.summary import LINES, change_over_base, json_value, summarise, verdict

# of all runs on a page together: about 2 MB each
CURVE_POINTS = 100_000
PICTURE_CELLS = 1_500_000
# a re-ARC task has up to a hundred test pairs
PAIRS_PER_TRIAL = 4
# shown elsewhere, or of no use to a reader
HIDDEN = ("run_id", "sweep", "family", "config", "data_fingerprint", "traceback", "started_at", "finished_at", "seed")
# adapters are evaluated many at a time, so a finer rate would only show these rounds
PACE_BINS = 10

Row = dict[str, Any]
PAIRS = [(label, base, final) for label, base, final in LINES if base is not None]


def gather(store: ResultsStore, share: float = 1.0) -> dict[str, Any]:
    """Return one run as the page wants it.

    Args:
        store: The run's results.
        share: Part of the page's size that this run may use, in (0, 1].
    """
    attempts = store.trials()
    rows = latest_attempts(attempts).to_pylist()
    curves = _curves(store)
    unfinished = _unfinished(rows, curves)
    everything = [*rows, *unfinished]
    for row in everything:
        row["verdict"], row["gain"] = _verdict(row)
    begun = min((row["started_at"] for row in rows if row["started_at"]), default=None)
    for row in everything:
        row["start"], row["end"] = _offset(row.get("started_at"), begun), _offset(row.get("finished_at"), begun)
    _relative_losses(everything)
    summary = summarise(store)
    pairs = [
        {"label": label, "base": base, "final": final, "copy": base.replace("base_", "copy_")}
        for label, base, final in PAIRS
        if summary["means"][base] is not None and summary["means"][final] is not None
    ]
    columns = _columns(everything)
    return json_value(
        {
            "sweep": store.sweep,
            "run_id": store.run_id,
            "results": store.folder.location,
            "noun": "adapters" if pairs else "trials",
            "summary": {**summary, "unfinished": len(unfinished)},
            "conclusion": conclusion(summary),
            "measures": pairs,
            "pace": pace(rows),
            "scores": scores(rows, columns, pairs),
            "trials": columns,
            "swept": sorted(name for name in attempts.column_names if name.startswith("config/")),
            "categories": categories(rows, pairs),
            "configurations": configurations(rows),
            "rungs": rungs(rows),
            "curves": _thinned([curves.get((r["trial_id"], r["attempt"])) for r in everything], CURVE_POINTS * share),
            "pictures": _pictures(store, everything, PICTURE_CELLS * share),
            "failures": failures(attempts.to_pylist(), rows),
            "run": _record(store.run() or {}),
        }
    )


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what gathered runs have in common and in what they differ.

    ``means`` has one mapping for each run, from column to its mean over the successful trials on the ``tasks`` that all
    runs with baselines have done: means over different tasks do not compare. ``settings`` is what `differing` returns.
    """
    compared = [run for run in runs if run["measures"]]
    done = [
        {
            task
            for task, status in zip(run["trials"]["task_id"], run["trials"]["status"], strict=True)
            if status == "success"
        }
        for run in compared
    ]
    shared = set.intersection(*done) if done else set()
    columns = {column for run in compared for m in run["measures"] for column in (m["base"], m["final"])}
    return {
        "tasks": len(shared),
        "means": [{name: _mean_over(run["trials"], name, shared) for name in sorted(columns)} for run in runs],
        "settings": differing(runs),
    }


def differing(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings in which gathered runs differ, each with one value per run; None where a run has none."""
    flat = [dict(_flat(run["run"]["settings"])) for run in runs]
    names = dict.fromkeys(itertools.chain.from_iterable(flat))
    values = {name: [settings.get(name) for settings in flat] for name in names}
    return [{"name": name, "values": found} for name, found in values.items() if len({*map(str, found)}) > 1]


def conclusion(summary: Mapping[str, Any]) -> list[str]:
    """Return in a few sentences what a reader should take away from a run's summary, the most important first."""
    counts, means, versus = summary["counts"], summary["means"], summary["versus_base"]
    success = counts.get("success", 0)
    if not summary["adapters"]:
        return ["No trial has ended yet."]
    compared = versus["improved"] + versus["same"] + versus["worse"]
    if not compared:
        others = [f"{count} {status}" for status, count in counts.items() if status != "success"]
        more = f" ({', '.join(others)})" if others else ""
        exact = means["final_grid_accuracy"]
        told = [f"{_percent(exact)} of the held-out grids are solved exactly."] if exact is not None else []
        return [f"{success} of {summary['adapters']} trials succeeded{more}.", *told]
    base, final = means["base_grid_accuracy"], means["final_grid_accuracy"]
    sentences = [
        f"{versus['improved']} of {compared} adapters {_are(versus['improved'])} better than the base, "
        f"{versus['worse']} {_are(versus['worse'])} worse, {versus['same']} the same.",
        f"They solve {_percent(final)} of the held-out grids exactly, the base {_percent(base)}.",
    ]
    copied, cells = means["copy_cell_accuracy"], means["final_cell_accuracy"]
    if copied is not None and cells is not None and cells < copied:
        sentences.append(f"In cells ({_percent(cells)}) they are still behind copying the input ({_percent(copied)}).")
    return sentences


def scores(rows: Sequence[Row], columns: Iterable[str], measures: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return the scores that have no base beside them, by column, each with its mean over the successful trials.

    A score is a share in [0, 1] (``share``) by the name of its column, or a metric of the family's own.
    """
    compared = {name for measure in measures for name in measure.values()}
    shares = [name for name in columns if name.endswith(("_accuracy", "_recall")) and name not in compared]
    own = [name for name in columns if name.startswith("metric/") and name not in shares]
    # the trained model first, what it is compared with after it
    ordered = sorted([*shares, *own], key=lambda name: name.removeprefix("metric/").startswith(("copy", "untrained")))
    return [
        {
            "name": name,
            "label": name.removeprefix("metric/").replace("_", " "),
            "share": name in shares,
            "mean": _mean(row.get(name) for row in rows if row["status"] == "success"),
        }
        for name in ordered
    ]


def pace(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how fast trials ended: ``per_hour`` over the time in which any trial ran, and the rate over time.

    ``bins`` are equal parts of the time from the first start to the last end: ``at`` their middles in seconds since the
    first start, ``rate`` the trials that ended within, per hour.
    """
    spans = sorted((row["start"], row["end"]) for row in rows if row["start"] is not None and row["end"] is not None)
    if not spans:
        return {"per_hour": None, "busy": 0.0, "bins": {"at": [], "rate": []}}
    # a run may have pauses between its sessions
    busy, reached = 0.0, -math.inf
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    width = max(reached / PACE_BINS, 1e-9)
    ended = Counter(min(int(end / width), PACE_BINS - 1) for _, end in spans)
    return {
        "per_hour": len(spans) / busy * 3600 if busy else None,
        "busy": busy,
        "bins": {
            "at": [(index + 0.5) * width for index in range(PACE_BINS)],
            "rate": [ended[index] / width * 3600 for index in range(PACE_BINS)],
        },
    }


def categories(rows: Iterable[Row], measures: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return for each category, the largest first, its successful trials, their verdicts and the mean of each value."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "success" and row.get("category") is not None:
            groups[row["category"]].append(row)
    return [
        {
            "name": name,
            "trials": len(members),
            "verdicts": Counter(row["verdict"] for row in members),
            "means": {
                column: _mean(row.get(column) for row in members)
                for measure in measures
                for column in (measure["base"], measure["final"], measure["copy"])
            },
        }
        for name, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def configurations(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return what each swept configuration came to, the best first; empty where nothing was swept.

    ``relative_loss`` is the mean over its trials of the best loss over the lowest of any trial on the same task, so 1
    is the best possible, and tasks of different difficulty count the same. It is over all trials that have a loss,
    those that ASHA stopped included. Gains are over successful trials only.
    """
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    names: list[str] = []
    for row in rows:
        names = names or [name for name in row if name.startswith("config/")]
        groups[tuple(row[name] for name in names)].append(row)
    if not names:
        return []
    found = [
        {
            "values": dict(zip((name.removeprefix("config/") for name in names), values, strict=True)),
            "trials": len(members),
            **{status: sum(row["status"] == status for row in members) for status in ("success", "stopped", "failed")},
            "relative_loss": _mean(row["relative_loss"] for row in members),
            "gain": _mean(row["gain"] for row in members),
        }
        for values, members in groups.items()
    ]
    return sorted(found, key=lambda c: math.inf if c["relative_loss"] is None else c["relative_loss"])


def rungs(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return ASHA's rungs by epoch: trials that reached each (``judged``), and those it ``stopped`` there.

    A row holds the last rung only, so a trial counts as judged at every rung up to it. ``spared`` are the epochs that
    the stopped trials did not train, against the longest trial of the run.
    """
    judged = [(row["rung"], row["status"], row["epochs"] or 0) for row in rows if row.get("rung") is not None]
    longest = max((epochs for _, _, epochs in judged), default=0)
    return [
        {
            "epoch": rung,
            "judged": sum(last >= rung for last, _, _ in judged),
            "stopped": sum(last == rung and status == "stopped" for last, status, _ in judged),
            "spared": sum(longest - e for last, status, e in judged if last == rung and status == "stopped"),
        }
        for rung in sorted({last for last, _, _ in judged})
    ]


def failures(attempts: Iterable[Row], latest: Iterable[Row]) -> list[dict[str, Any]]:
    """Return every failed attempt with its error and traceback, and how the last attempt of its trial ended."""
    ends = {row["trial_id"]: row["status"] for row in latest}
    names = ("trial_id", "task_id", "attempt", "error", "traceback", "epochs", "finished_at")
    return [
        {**{name: row[name] for name in names}, "now": ends[row["trial_id"]]}
        for row in attempts
        if row["status"] == "failed"
    ]


# ------------------------------------------------------------------------------------------------------------- private


def _verdict(row: Row) -> tuple[str | None, float | None]:
    """Return whether a trial is better than its base, and its gain in cell accuracy."""
    change = change_over_base({**dict.fromkeys(itertools.chain(*(pair[1:] for pair in PAIRS))), **row})
    if row["status"] != "success" or change is None:
        return None, None
    return verdict(change), change[1]


def _relative_losses(rows: Sequence[Row]) -> None:
    lowest: dict[Any, float] = {}
    for row in rows:
        loss = row["best_loss"] if row.get("best_loss") is not None else row.get("final_loss")
        row["_loss"] = loss if loss is not None and math.isfinite(loss) and row["status"] != "failed" else None
        if row["_loss"] is not None:
            lowest[row["task_id"]] = min(lowest.get(row["task_id"], math.inf), row["_loss"])
    for row in rows:
        loss = row.pop("_loss")
        best = lowest.get(row["task_id"])
        row["relative_loss"] = None if loss is None or not best or best <= 0 else loss / best


def _unfinished(rows: Iterable[Row], curves: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Row]:
    """Return rows for trials of which the store has history only: they still train, or a kill cut them off."""
    ended = {(row["trial_id"], row["attempt"]) for row in rows}
    last = {trial_id: max(a for t, a in curves if t == trial_id) for trial_id in {t for t, a in curves.keys() - ended}}
    return [
        {
            "trial_id": trial_id,
            "attempt": attempt,
            "task_id": curves[trial_id, attempt]["task_id"],
            "status": "unfinished",
            "epochs": curves[trial_id, attempt]["epoch"][-1],
            "final_loss": curves[trial_id, attempt]["eval"][-1],
        }
        for trial_id, attempt in sorted(last.items())
        if (trial_id, attempt) not in ended
    ]


def _curves(store: ResultsStore) -> dict[tuple[str, int], dict[str, Any]]:
    names = ["trial_id", "attempt", "task_id", "epoch", "train_loss", "eval_loss"]
    table = store.history().select(names)
    table = table.sort_by([(name, "ascending") for name in ("trial_id", "attempt", "epoch")])
    curves: dict[tuple[str, int], dict[str, Any]] = {}
    for trial_id, attempt, task_id, epoch, train, evaluated in zip(
        *(table[name].to_pylist() for name in names), strict=True
    ):
        curve = curves.setdefault((trial_id, attempt), {"task_id": task_id, "epoch": [], "train": [], "eval": []})
        curve["epoch"].append(epoch)
        curve["train"].append(_short(train))
        curve["eval"].append(_short(evaluated))
    return curves


def _thinned(curves: Sequence[dict[str, Any] | None], budget: float) -> list[dict[str, Any] | None]:
    """Return the curves with so many of their points, the last always among them, that all fit into the budget."""
    total = sum(len(curve["epoch"]) for curve in curves if curve)
    step = max(1, math.ceil(total / max(budget, 1)))
    return [
        curve and {name: (curve[name][::-1][::step])[::-1] for name in ("epoch", "train", "eval")} for curve in curves
    ]


def _pictures(store: ResultsStore, rows: Sequence[Row], budget: float) -> dict[str, Any]:
    """Return the answers of as many trials as fit, by place in ``rows``; a grid is its rows of digits joined by /."""
    table = store.predictions()
    table = table.filter(pc.less(table["pair"], PAIRS_PER_TRIAL))
    wanted = {(row["trial_id"], row["attempt"]): place for place, row in enumerate(rows)}
    found: dict[int, list[list[str | None]]] = defaultdict(list)
    # a batch at a time: as Python lists the grids of a large run would take gigabytes
    for batch in table.sort_by([(name, "ascending") for name in ("trial_id", "attempt", "pair")]).to_batches(1000):
        for row in batch.to_pylist():
            place = wanted.get((row["trial_id"], row["attempt"]))
            if place is not None:
                found[place].append([_digits(row[name]) for name in ("input", "expected", "base", "adapted")])
    # the most and the least improved first, the middle last
    order = sorted(found, key=lambda place: -abs(rows[place]["gain"] or 0.0))
    kept, cells = {}, 0
    for place in order:
        cells += sum(len(grid or "") for pair in found[place] for grid in pair)
        if cells > budget:
            break
        kept[place] = found[place]
    return {"kept": kept, "trials": len(found)}


def _digits(grid: Sequence[Sequence[int]] | None) -> str | None:
    return None if grid is None else "/".join("".join(map(str, row)) for row in grid)


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    columns = {name: [_short(row.get(name)) for row in rows] for name in names}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _record(run: Mapping[str, Any]) -> dict[str, Any]:
    names = ("command", "git", "versions", "hardware", "data_fingerprint", "seed", "started_at", "schema_version")
    sessions = [{name: s.get(name) for name in ("command", "started_at", "git")} for s in run.get("sessions", [])]
    return {**{name: run.get(name) for name in names}, "settings": run.get("settings", {}), "sessions": sessions}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and len(value) > 8:
            yield f"{prefix}{name}", f"{len(value)} values"
        else:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list) else value


def _offset(time: datetime | None, begun: datetime | None) -> float | None:
    return None if time is None or begun is None else round((time - begun).total_seconds(), 1)


def _mean_over(trials: Mapping[str, Sequence[Any]], column: str, tasks: set[str]) -> float | None:
    if column not in trials:
        return None
    rows = zip(trials["task_id"], trials["status"], trials[column], strict=True)
    return _mean(value for task, status, value in rows if task in tasks and status == "success")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _short(value: Any) -> Any:
    """Return a number with the digits that a reader can see."""
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
