"""What a running sweep tells Prometheus, through Ray's own metrics: the one place where a metric gets its name.

Ray exports each as ``ray_<name>``, a counter as ``ray_<name>_total``; ``dashboards/`` draws them. All are set by the
process that runs the sweep, and their labels have few values (sweep, family, status, quantile, component), never a task
or a trial: one series each, however large the sweep. What happened to one trial is in its Parquet row.

Without a connection to Ray nothing is exported and nothing fails.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge

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
    "sweep_eval_loss": ("Percentiles of the last held-out loss of the trials in training or ended.", ("quantile",)),
    "sweep_cell_accuracy": ("Mean held-out cell accuracy of ended trials: base, adapted, copy.", ("of",)),
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
        family: The family that it trains.
        total: Trials of the whole sweep.
        done: Trials that earlier sessions finished.
    """

    def __init__(self, sweep: str, family: str, total: int, done: int = 0) -> None:
        self._total = total
        labels = {"sweep": sweep, "family": family}
        self._gauges = {name: Gauge(name, text, (*LABELS, *more)) for name, (text, more) in GAUGES.items()}
        self._counters = {name: Counter(name, text, LABELS) for name, text in COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(labels)
        self._statuses = Tally(success=done)
        self._losses: dict[str, float] = {}
        self._norms: dict[str, list[float]] = {}
        self._accuracies: dict[str, Tally[str]] = {of: Tally() for of in ("base", "adapted", "copy")}
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
            loss = _number(report.metrics, "eval_loss")
            if loss is not None:
                self._losses[report.trial_id] = loss
            if report.status != "running":
                self._statuses[report.status] += 1
                for of, name in (("base", "base"), ("adapted", "final"), ("copy", "copy")):
                    accuracy = _number(report.metrics, f"{name}_cell_accuracy")
                    if accuracy is not None:
                        self._accuracies[of].update(sum=accuracy, count=1)  # type: ignore[call-overload]

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
        for of, tally in self._accuracies.items():
            if tally["count"]:
                self._gauges["sweep_cell_accuracy"].set(tally["sum"] / tally["count"], {"of": of})
        if self._losses:
            # twice: there are no quantiles of a single value
            cuts = statistics.quantiles([*self._losses.values()] * 2, n=100, method="inclusive")
            for percent in PERCENTILES:
                self._gauges["sweep_eval_loss"].set(cuts[percent - 1], {"quantile": f"{percent / 100:g}"})


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
