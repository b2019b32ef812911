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
from sweeps.store.summary import json_value, over_text, summarise, verdict
from trainables.common.family import Family, counts_text, number, value_text

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


def gather(store: ResultsStore, share: float = 1.0) -> dict[str, Any]:
    """Return one run as the page wants it.

    Args:
        store: The run's results.
        share: Part of the page's size that this run may use, in (0, 1].
    """
    attempts, family = store.trials(), store.family
    rows = latest_attempts(attempts).to_pylist()
    curves = _curves(store)
    unfinished = _unfinished(rows, curves)
    everything = [*rows, *unfinished]
    for row in everything:
        row["verdict"], row["gain"] = _verdict(family, row)
    begun = min((row["started_at"] for row in rows if row["started_at"]), default=None)
    for row in everything:
        row["start"], row["end"] = _offset(row.get("started_at"), begun), _offset(row.get("finished_at"), begun)
    _relative_losses(everything)
    summary = summarise(store)
    measures = _measures(family, summary["means"])
    columns = _columns(everything)
    return json_value(
        {
            "sweep": store.sweep,
            "run_id": store.run_id,
            "results": store.folder.location,
            "noun": family.noun,
            "summary": {
                **summary,
                "unfinished": len(unfinished),
                "over_text": {name: over_text(summary, name) for name in summary["over"]},
                "left_out_text": counts_text(summary["left_out"]),
            },
            "conclusion": conclusion(summary),
            "measures": measures,
            "lead": _lead(family),
            "columns": _described(family, columns),
            "pace": pace(rows),
            "scores": scores(family, rows, columns, measures),
            "trials": columns,
            "swept": sorted(name for name in attempts.column_names if name.startswith("config/")),
            "categories": categories(rows, measures),
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
    runs with baselines have done, of ``of_tasks`` in any of them: means over different tasks do not compare.
    ``settings`` is what `differing` returns.
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
        "of_tasks": len({task for run in compared for task in run["trials"]["task_id"]}),
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
    if not summary["trials"]:
        return ["No trial has ended yet."]
    compared, noun = versus["improved"] + versus["same"] + versus["worse"], summary["noun"]
    if not compared:
        others = [f"{count} {status}" for status, count in counts.items() if status != "success"]
        more = f" ({', '.join(others)})" if others else ""
        first = next((line for line in summary["headlines"] if means[line["name"]] is not None), None)
        told = (
            [
                f"{_sentence(first['headline'])} is {value_text(means[first['name']], first['percent'])}, a mean over "
                f"{over_text(summary, first['name'])}."
            ]
            if first
            else []
        )
        return [f"{success} of {summary['trials']} {noun} succeeded{more}.", *told]
    total = max(summary["trials"], summary["tasks"])
    left = f" {total - compared} of {total} {noun} were not compared." if compared < total else ""
    sentences = [
        f"{versus['improved']} of {compared} {noun} {_are(versus['improved'])} better than the base, "
        f"{versus['worse']} {_are(versus['worse'])} worse, {versus['same']} the same.{left}",
    ]
    beside = [line for line in summary["headlines"] if line["base"] and means[line["name"]] is not None]
    if beside:
        line = beside[0]
        base, final = (value_text(means[name], line["percent"]) for name in (line["base"], line["name"]))
        over = over_text(summary, line["name"])
        sentences.append(f"{_sentence(line['headline'])} is {final}, the base's {base}: means over {over}.")
    labels = {line["name"]: line["headline"] for line in summary["headlines"]}
    for line in beside:
        sign = -1 if line["better"] == "min" else 1
        behind = [n for n in line["baselines"] if means[n] is not None and sign * means[line["name"]] < sign * means[n]]
        if behind:
            value, trivial = (value_text(means[name], line["percent"]) for name in (line["name"], behind[0]))
            sentences.append(
                f"{_sentence(line['headline'])} ({value}) is still behind a trivial answer: {labels[behind[0]]} "
                f"({trivial})."
            )
    return sentences


def scores(
    family: Family, rows: Sequence[Row], columns: Mapping[str, Sequence[Any]], measures: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the numbers that have no base beside them, by column, each with its mean over the successful trials.

    They are the headlines of the family, then what trials report and nobody declared. ``share`` are those in [0, 1];
    ``over`` says how many of the trials the mean is over.
    """
    compared = {name for measure in measures for name in measure.values()}
    own = [column for column in family.shown if column.headline and column.name in columns]
    found = [(c.name, c.headline, c.percent) for c in own if c.name not in compared]
    for name, values in columns.items():
        if name.startswith("metric/") and any(number(value) is not None for value in values):
            found.append((name, name.removeprefix("metric/").replace("_", " "), False))
    return [
        {
            "name": name,
            "label": label,
            "share": share,
            "mean": _mean(number(row.get(name)) for row in rows if row["status"] == "success"),
            "over": _over(rows, name, family.noun),
        }
        for name, label, share in found
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
    """Return for each category, the largest first, its successful trials, their verdicts and the mean of each value.

    ``of`` counts all trials of the category.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    all_trials: Counter[str] = Counter()
    for row in rows:
        if row.get("category") is not None:
            all_trials[row["category"]] += 1
            if row["status"] == "success":
                groups[row["category"]].append(row)
    return [
        {
            "name": name,
            "trials": len(members),
            "of": all_trials[name],
            "verdicts": Counter(row["verdict"] for row in members),
            "means": {
                column: _mean(row.get(column) for row in members)
                for measure in measures
                for column in (measure["base"], measure["final"], measure["baseline"])
                if column
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


def _measures(family: Family, means: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return the headlines with a base, each with the first trivial baseline beside it (None where there is none)."""
    return [
        {
            "label": column.headline,
            "base": column.base,
            "final": column.name,
            "baseline": column.baselines[0] if column.baselines else None,
            "baseline_label": family[column.baselines[0]].headline if column.baselines else None,
        }
        for column in family.shown
        if column.headline and column.base and None not in (means[column.base], means[column.name])
    ]


def _lead(family: Family) -> dict[str, Any] | None:
    """Return the column whose gain orders trials, the finest of the verdict; None where nothing is compared."""
    if not family.verdict:
        return None
    column = family[family.verdict[-1]]
    return {"name": column.name, "label": column.headline or column.name}


def _described(family: Family, columns: Iterable[str]) -> list[dict[str, Any]]:
    """Return what the family declares, and what it reports besides, of the columns that have a value."""
    present = list(columns)
    own = {column.name for column in family.columns}
    return [
        {"name": column.name, "label": column.headline or column.name.replace("_", " "), "share": column.percent}
        for column in family.columns
        if column.name in present
    ] + [
        {"name": name, "label": name.removeprefix("metric/").replace("_", " "), "share": False}
        for name in present
        if name.startswith("metric/") and name not in own
    ]


def _verdict(family: Family, row: Row) -> tuple[str | None, float | None]:
    """Return whether a trial is better than its base, and its gain in the last column of the verdict."""
    change = family.change(row)
    if row["status"] != "success" or change is None:
        return None, None
    return verdict(change), change[-1]


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
    """Return rows for trials of which the store has history only: they still train, or a kill cut them off.

    An attempt that is followed by another one with a row is over, even if it left history and no row of its own.
    """
    ended = {row["trial_id"]: row["attempt"] for row in rows}
    last: dict[str, int] = {}
    for trial_id, attempt in curves:
        if attempt > ended.get(trial_id, 0):
            last[trial_id] = max(attempt, last.get(trial_id, 0))
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


def _over(rows: Sequence[Row], name: str, noun: str) -> str:
    """Return what the mean of a column is over, of all trials that ended."""
    having = sum(row["status"] == "success" and number(row.get(name)) is not None for row in rows)
    return f"{having} of {len(rows)} {noun}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(value: Any) -> Any:
    """Return a number with the digits that a reader can see."""
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
