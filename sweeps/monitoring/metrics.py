"""What a running sweep tells Prometheus, through Ray's own metrics: the one place where a metric gets its name.

Ray exports each as ``ray_<name>``, a counter as ``ray_<name>_total``; ``dashboards/`` draws them. All are set by the
process that runs the sweep, and their labels have few values (sweep, family, status, quantile, column, component),
never a task or a trial: one series each, however large the sweep. What happened to one trial is in its Parquet row.

Without a connection to Ray nothing is exported and nothing fails.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter as Tally
from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge

from trainables.common.family import Family, number
from trainables.common.jobs import Report

LABELS = ("sweep", "family")
STATUSES = ("queued", "running", "success", "stopped", "failed")
PERCENTILES = (10, 50, 90)
REFRESH_SECONDS = 1.0

GAUGES = {
    "sweep_trials": ("Trials of the sweep by status, those of earlier sessions included.", ("status",)),
    "sweep_trials_per_hour": ("Trials that ended in an hour, since the first began.", ()),
    "sweep_seconds_left": ("Seconds until all trials have ended, at this pace.", ()),
    "sweep_slots": ("Adapters, or trials, that can train at once.", ()),
    "sweep_retries": ("Trials that were begun again after a failure, and workers that were started again.", ()),
    "sweep_objective": (
        "Percentiles of the last value, in trials in training or ended, of the metric that trials are compared by.",
        ("metric", "quantile"),
    ),
    "sweep_headline": (
        "Mean over ended trials of a column that the family declares as a headline.",
        ("column",),
    ),
    "sweep_gradient_norm": ("Mean gradient norm of a component in the epochs reported last.", ("component",)),
}
COUNTERS = {
    "sweep_epochs": "Epochs trained.",
    "sweep_examples": "Examples trained on.",
    "sweep_tokens": "Tokens trained on, padding excluded.",
    "sweep_padded_tokens": "Tokens computed in training, padding included.",
}


class SweepMetrics:
    """The metrics of one sweep.

    Args:
        sweep: Its name.
        family: The family that it trains; its headlines are exported.
        total: Trials of the whole sweep.
        done: Trials that earlier sessions finished.
    """

    def __init__(self, sweep: str, family: Family, total: int, done: int = 0) -> None:
        self._total, self._family = total, family
        labels = {"sweep": sweep, "family": family.name}
        self._gauges = {name: Gauge(name, text, (*LABELS, *more)) for name, (text, more) in GAUGES.items()}
        self._counters = {name: Counter(name, text, LABELS) for name, text in COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(labels)
        self._statuses = Tally(success=done)
        self._objectives: dict[str, float] = {}
        self._norms: dict[str, list[float]] = {}
        self._headlines: dict[str, list[float]] = {column.name: [] for column in family.shown}
        self._refreshed = -math.inf

    def observe(self, reports: Sequence[Report]) -> None:
        """Count what reports tell."""
        for report in reports:
            for row in report.history:
                self._counters["sweep_epochs"].inc()
                for name in ("examples", "tokens", "padded_tokens"):
                    if row.get(name):
                        self._counters[f"sweep_{name}"].inc(row[name])
                for name, value in row.items():
                    if name.startswith("grad_norm/") and value is not None:
                        self._norms.setdefault(name.removeprefix("grad_norm/"), []).append(value)
            objective = number(report.metrics.get(self._family.metric))
            if objective is not None:
                self._objectives[report.trial_id] = objective
            if report.status != "running":
                self._statuses[report.status] += 1
                for name, values in self._headlines.items():
                    value = number(report.metrics.get(name))
                    if value is not None:
                        values.append(value)

    def refresh(self, running: int, slots: int, retries: int, per_hour: float, seconds_left: float) -> None:
        """Set the gauges, at most once a second.

        Args:
            running: Trials in training.
            slots: Trials that can train at once.
            retries: Trials that were begun again after a failure, and workers that were started again.
            per_hour: Trials that end in an hour.
            seconds_left: Until all have ended; NaN where it is unknown.
        """
        if time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        queued = max(0, self._total - self._statuses.total() - running)
        for status in STATUSES:
            count = {"queued": queued, "running": running}.get(status, self._statuses[status])
            self._gauges["sweep_trials"].set(count, {"status": status})
        for name, value in {
            "slots": slots, "retries": retries, "trials_per_hour": per_hour, "seconds_left": seconds_left,
        }.items():  # fmt: skip
            self._gauges[f"sweep_{name}"].set(value)
        for component, norms in self._norms.items():
            self._gauges["sweep_gradient_norm"].set(statistics.fmean(norms), {"component": component})
        self._norms.clear()
        for name, values in self._headlines.items():
            if values:
                self._gauges["sweep_headline"].set(statistics.fmean(values), {"column": name})
        if self._objectives:
            # twice: there are no quantiles of a single value
            cuts = statistics.quantiles([*self._objectives.values()] * 2, n=100, method="inclusive")
            for percent in PERCENTILES:
                labels = {"metric": self._family.metric, "quantile": f"{percent / 100:g}"}
                self._gauges["sweep_objective"].set(cuts[percent - 1], labels)
