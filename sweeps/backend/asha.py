"""ASHA that never compares different tasks: one of Tune's own brackets for each group of trials.

A loss of 0.1 on one task says nothing about a loss of 1.0 on another, so one ASHA over many tasks stops the hard tasks
and keeps the easy ones. `GroupedASHA` forwards every event to the `ASHAScheduler` of the trial's group and adds what
Tune does not keep: which decision was taken at which rung against which cutoff, and rungs that survive a restart
(`replay`, from the history rows of the results store). It covers the stopping variant of ASHA only, with one bracket.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

NO_CONTROLLER: Any = None  # ASHA takes Tune's controller and never looks at it


@dataclass(frozen=True)
class Decision:
    """What ASHA decided the last time that a trial reached a rung.

    Attributes:
        rung: Epoch of the rung.
        value: The trial's metric there.
        cutoff: The metric that had to be reached, None for the first trial at the rung.
        stopped: Whether the trial was stopped.
    """

    rung: int
    value: float
    cutoff: float | None
    stopped: bool


@dataclass
class _Entrant:
    """All that `ASHAScheduler` looks at in a trial. Its id is ours, which, unlike Tune's, outlives a restart."""

    trial_id: str


def one_group(config: Mapping[str, Any]) -> str:
    """Put all trials into one group: for a search in which every trial trains the same tasks."""
    return "all"


class InTurn(FIFOScheduler):
    """Trials start in their order, and nothing stops them.

    Tune starts pending trials by itself; its own scheduler looks for one among all trials, ended ones too, at every
    step, which in a sweep of tens of thousands is most of the driver's time.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        return None


class GroupedASHA(InTurn):
    """One `ASHAScheduler` for each group of trials.

    Args:
        group: Maps a trial's configuration (``trial.config``) to its group.
        key: Maps a trial's configuration to the id that the results store knows it by; None uses Tune's trial id,
            which makes `replay` useless.
        metric: Reported value to compare.
        mode: ``min`` or ``max``.
        max_t: Epochs of a complete trial. A trial that gets there is never stopped: it only has its evaluation to do.
        grace_period: Epoch of the first rung.
        reduction_factor: One trial in so many passes a rung; also the ratio of one rung to the one before.
    """

    def __init__(
        self,
        *,
        group: Callable[[Mapping[str, Any]], str] = one_group,
        key: Callable[[Mapping[str, Any]], str] | None = None,
        metric: str = "eval_loss",
        mode: str = "min",
        max_t: int,
        grace_period: int,
        reduction_factor: float = 3,
    ) -> None:
        super().__init__()
        self._group = group
        self._key = key
        self._metric = metric
        self._mode = mode
        self._max_t = max_t
        # a sweep of fewer epochs than the first rung has no rung at all, which Tune's own class refuses
        self._grace_period = min(grace_period, max_t)
        self._reduction_factor = reduction_factor
        self._groups: dict[str, ASHAScheduler] = {}
        self._decisions: dict[str, Decision] = {}
        self._open: Counter[str] = Counter()  # Tune trials of each key that are under way

    # events from Tune

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return metric in (None, self._metric) and mode in (None, self._mode)

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        entrant = self._entrant(trial)
        self._open[entrant.trial_id] += 1
        self._asha(trial).on_trial_add(tune_controller, entrant)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        # an epoch without an evaluation has no value
        value, epoch = result.get(self._metric, math.nan), result["epoch"]
        if not math.isfinite(value):
            # NaN passes every cutoff and infinity spoils the percentile: such a trial has failed and says so itself
            return self.CONTINUE
        return self._on_result(self._asha(trial), self._entrant(trial), epoch, value)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        if math.isfinite(result.get(self._metric, math.nan)):
            self._on_result(self._asha(trial), self._entrant(trial), result["epoch"], result[self._metric])
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        entrant = self._entrant(trial)
        self._open[entrant.trial_id] -= 1
        if not self._open[entrant.trial_id]:  # a search may try one configuration twice at once
            self._asha(trial).on_trial_remove(tune_controller, entrant)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        # Tune adds the trial again if it tries it again
        self.on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        return "\n".join(f"{name}: {asha.debug_string()}" for name, asha in sorted(self._groups.items()))

    # what the rest of the sweep asks

    def decision(self, key: str) -> Decision | None:
        """Return the last decision about the trial that the store knows as ``key``, None before its first rung."""
        return self._decisions.get(key)

    def key_of(self, trial: Trial) -> str:
        """Return what `decision` knows a Tune trial by."""
        return trial.trial_id if self._key is None else self._key(trial.config)

    def replay(self, group: str, trial_id: str, values: Iterable[tuple[int, float]]) -> None:
        """Enter a trial's stored reports into its group's rungs, as if they had just arrived.

        Call it before the sweep for every trial that has history, finished or not, with the ``(epoch, metric)`` of the
        epochs at which it reported. The rungs then hold what they held before the restart. Decisions are not taken
        again: a trial that was stopped has its row, and one that continues is judged at its next rung.

        Args:
            group: The group that ``group(config)`` returns for the trial.
            trial_id: What ``key(config)`` returns for it.
            values: Its reports by rising epoch.
        """
        asha, entrant = self._of_group(group), cast(Any, _Entrant(trial_id))
        asha.on_trial_add(NO_CONTROLLER, entrant)
        for epoch, value in values:
            if math.isfinite(value):
                asha.on_trial_result(NO_CONTROLLER, entrant, {"epoch": epoch, self._metric: value})
        asha.on_trial_remove(NO_CONTROLLER, entrant)

    def rungs(self, group: str) -> dict[int, dict[str, float]]:
        """Return the metric of every trial at every rung of a group: ``{epoch: {trial: metric}}``, ascending."""
        sign = 1.0 if self._mode == "max" else -1.0
        rungs = _rungs(self._of_group(group))
        return {int(epoch): {trial: sign * value for trial, value in kept.items()} for epoch, kept in reversed(rungs)}

    # private

    def _asha(self, trial: Trial) -> ASHAScheduler:
        return self._of_group(self._group(trial.config))

    def _of_group(self, group: str) -> ASHAScheduler:
        if group not in self._groups:
            # without stop_last_trials=False Tune stops a trial that reports its last epoch before its evaluation
            self._groups[group] = ASHAScheduler(
                time_attr="epoch",
                metric=self._metric,
                mode=self._mode,
                max_t=self._max_t,
                grace_period=self._grace_period,
                reduction_factor=self._reduction_factor,
                stop_last_trials=False,
            )
        return self._groups[group]

    def _entrant(self, trial: Trial) -> Any:
        return _Entrant(self.key_of(trial))

    def _on_result(self, asha: ASHAScheduler, entrant: Any, epoch: int, value: float) -> str:
        before = [(milestone, dict(kept)) for milestone, kept in _rungs(asha)]
        action = asha.on_trial_result(NO_CONTROLLER, entrant, {"epoch": epoch, self._metric: value})
        if epoch >= self._max_t:
            action = self.CONTINUE
        for (milestone, kept), (_, now) in zip(before, _rungs(asha), strict=True):
            if entrant.trial_id in now and entrant.trial_id not in kept:
                cutoff = cast(float | None, asha._brackets[0].cutoff(kept))
                sign = 1.0 if self._mode == "max" else -1.0
                self._decisions[entrant.trial_id] = Decision(
                    rung=int(milestone),
                    value=value,
                    cutoff=None if cutoff is None else sign * float(cutoff),
                    stopped=action == self.STOP,
                )
        return action


def _rungs(asha: ASHAScheduler) -> list[tuple[float, dict[str, float]]]:
    # Tune has no public way to ask for rungs and cutoffs; tests/sweeps/test_scheduler.py breaks when this moves
    return asha._brackets[0]._rungs
