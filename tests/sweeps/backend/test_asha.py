"""ASHA on a simulated stream of reports: Tune's own decisions, independent groups, recorded cutoffs, replayed rungs."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler

from search_spaces.space import Mode
from sweeps.backend.asha import Decision, GroupedASHA, Panel, Unit
from trainables.common.jobs import Job

NO_TUNE: Any = None
LOSSES = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=12)


@dataclass
class FakeTrial:
    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def make(mode: Mode = "min", max_t: int = 45, grace_period: int = 5, metric: str = "eval_loss") -> GroupedASHA:
    return GroupedASHA(metric=metric, mode=mode, max_t=max_t, grace_period=grace_period, reduction_factor=3)


def stopped_of(asha: GroupedASHA, losses: dict[tuple[str, str], float], epochs: list[int]) -> set[str]:
    """Report every trial ``(group, unit)`` at every epoch, epoch by epoch; return the stopped ones."""
    stopped: set[str] = set()
    for epoch in epochs:
        for (group, unit), loss in losses.items():
            if unit not in stopped:
                decision = asha.judge(group, unit, epoch, loss / epoch)
                stopped |= {unit} if decision and decision.stopped else set()
    return stopped


def cutoffs(asha: GroupedASHA, group: str) -> list[float | None]:
    """Return what one more trial would have to reach at each rung."""
    probe = copy.deepcopy(asha)
    decisions = [probe.judge(group, "probe", rung, 0.0, may_stop=False) for rung in asha.rungs]
    return [decision.cutoff for decision in decisions if decision]


def two_tasks() -> dict[tuple[str, str], float]:
    shuffled = random.Random(0).sample(range(20), 20)
    scales = {"easy": 0.1, "hard": 1.0}
    return {(task, f"{task}-{i}"): scales[task] * (1 + shuffled[i] / 20) for i in range(20) for task in scales}


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["min", "max"]), st.integers(1, 4), st.integers(2, 4))
def test_decisions_are_those_of_tunes_own_asha(data: Any, mode: Mode, grace_period: int, factor: int) -> None:
    ours = GroupedASHA(metric="m", mode=mode, max_t=40, grace_period=grace_period, reduction_factor=factor)
    theirs = ASHAScheduler(
        time_attr="epoch", metric="m", mode=mode, max_t=40, grace_period=grace_period, reduction_factor=factor,
        stop_last_trials=False,
    )  # fmt: skip
    trials: list[Any] = [FakeTrial(str(number)) for number in range(6)]
    for trial in trials:
        theirs.on_trial_add(NO_TUNE, trial)
    # they stay in step while every trial reports each epoch, in any order
    for epoch in range(1, 40):
        for trial in data.draw(st.permutations(trials)) if epoch in ours.rungs else trials:
            value = data.draw(st.integers(0, 9)) if epoch in ours.rungs else 0
            decision = ours.judge("all", trial.trial_id, epoch, value)
            action = theirs.on_trial_result(NO_TUNE, trial, {"epoch": epoch, "m": value})
            assert (action == "STOP") == (decision is not None and decision.stopped)
            if action == "STOP":
                trials = [other for other in trials if other is not trial]


def test_one_bracket_over_two_tasks_stops_the_hard_one_and_groups_do_not() -> None:
    losses = two_tasks()
    stopped = stopped_of(make(), {("all", unit): loss for (_, unit), loss in losses.items()}, [5, 10, 15])
    hard = {unit for unit in stopped if "hard" in unit}
    assert len(hard) >= 19 and len(stopped - hard) < 15
    stopped = stopped_of(make(), losses, [5, 10, 15])
    by_task = {task: {unit.split("-")[1] for unit in stopped if task in unit} for task in ("easy", "hard")}
    assert by_task["easy"] == by_task["hard"]  # same order of quality, same decisions
    assert 5 <= len(by_task["easy"]) < 20


@pytest.mark.parametrize(("mode", "sign"), [("min", 1.0), ("max", -1.0)])
def test_decision_holds_rung_value_and_cutoff(mode: Mode, sign: float) -> None:
    asha = make(mode)
    assert asha.decision("0") is None
    first, second, third, fourth = (asha.judge("a", str(i), 5, sign * v) for i, v in enumerate((1.0, 2.0, 3.0, 0.5)))
    assert first == asha.decision("0") == Decision(rung=5, value=sign, cutoff=None, stopped=False)
    assert second == Decision(rung=5, value=2 * sign, cutoff=sign, stopped=True)
    assert third is not None and third.cutoff == pytest.approx(sign * (1 + 1 / 3)) and third.stopped
    assert fourth is not None and not fourth.stopped
    assert cutoffs(asha, "a") == [pytest.approx(sign), None, None]  # the best third of 0.5, 1, 2 and 3 is below 1


def test_a_trial_is_judged_once_at_each_rung_and_never_after_it_was_stopped() -> None:
    asha = make()
    asha.judge("a", "good", 5, 1.0)
    assert asha.judge("a", "good", 9, 9.0) is None  # a restarted worker sends its reports again
    decision = asha.judge("a", "bad", 5, 2.0)
    assert decision and decision.stopped
    assert asha.judge("a", "bad", 15, 0.1) is None and asha.decision("bad") == decision
    assert cutoffs(asha, "a") == [pytest.approx(1 + 1 / 3), None, None]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_value_is_never_a_good_one(value: float | None) -> None:
    asha = make()
    assert asha.judge("a", "diverged", 5, value) is None and cutoffs(asha, "a") == [None, None, None]
    # a later epoch of the same rung that has a value is judged there
    asha.judge("a", "good", 5, 1.0)
    decision = asha.judge("a", "diverged", 6, 2.0)
    assert decision and (decision.rung, decision.stopped) == (5, True)


def test_what_cannot_be_stopped_enters_its_value_only() -> None:
    asha = make(max_t=15)
    for unit, may_stop in (("good", True), ("ended", False)):
        assert (decision := asha.judge("a", unit, 5, 1.0 if unit == "good" else 2.0, may_stop=may_stop))
        assert not decision.stopped
    # at the last epoch only the evaluation is left
    asha.judge("a", "good", 15, 1.0)
    last = asha.judge("a", "ended", 15, 2.0)
    assert last and not last.stopped and cutoffs(asha, "a") == [pytest.approx(1 + 1 / 3)] * 2


def test_fewer_epochs_than_the_first_rung() -> None:
    asha = make(max_t=3)
    assert asha.rungs == [3]
    decision = asha.judge("a", "0", 3, 1.0)
    assert decision and not decision.stopped


def test_tune_hears_what_was_decided_by_its_own_reports_and_by_those_that_it_never_saw() -> None:
    asha = make("max", metric="score")
    trials: list[Any] = [FakeTrial(f"tune-{i}", {"unit": f"u{i}"}) for i in range(3)]
    actions = [
        asha.on_trial_result(NO_TUNE, trial, {"epoch": 5, "score": score})
        for trial, score in zip(trials, (0.9, 0.5, math.nan), strict=True)
    ]
    assert actions == ["CONTINUE", "STOP", "CONTINUE"] and asha.metric != "score"
    asha.judge("task", "a", 5, 0.9)
    asha.judge("task", "b", 5, 0.1)
    for unit, action in (("a", "CONTINUE"), ("b", "STOP")):
        trial: Any = FakeTrial("tune", {"unit": unit})
        assert asha.on_trial_result(NO_TUNE, trial, {"done": True}) == action
    # the first of its group, though worse than those of all
    asha.replay(Unit("c", [], "other"))
    assert asha.on_trial_result(NO_TUNE, FakeTrial("tune", {"unit": "c"}), {"epoch": 5, "score": 0.1}) == "CONTINUE"


def test_replayed_rungs_are_those_of_an_unbroken_run() -> None:
    losses = two_tasks()
    whole = make()
    stopped = stopped_of(whole, losses, [5, 10, 15, 20])

    first = make()
    stopped_first = stopped_of(first, losses, [5, 10])
    second = make()
    for (group, unit), loss in losses.items():  # from the store: everything that was reported before the break
        second.replay(Unit(unit, [], group, {unit: [(4, loss / 4), (5, loss / 5), (6, loss / 6)]}))
    assert all(cutoffs(second, task) == cutoffs(first, task) for task in ("easy", "hard"))

    rest = {trial: loss for trial, loss in losses.items() if trial[1] not in stopped_first}
    stopped_second = stopped_of(second, rest, [10, 15, 20])
    assert stopped_second | stopped_first == stopped
    assert cutoffs(second, "hard") == cutoffs(whole, "hard")
    assert stopped_second and all((d := second.decision(unit)) and d.rung == 15 for unit in stopped_second)


def test_a_unit_that_was_stopped_is_replayed_up_to_its_rung() -> None:
    asha = make()
    asha.replay(Unit("panel", [], "all", {"a": [(5, 1.0), (15, 0.5)], "b": [(5, 2.0), (15, 0.5)]}, stopped_at=5))
    assert cutoffs(asha, "all") == [1.5, None, None]
    assert asha.decision("panel") == Decision(5, 1.5, None, True)


def test_what_is_left_of_a_panel_is_judged_with_what_its_other_jobs_came_to() -> None:
    unit = Unit("panel", [Job("b", "task", 0, {})], "all", {"a": [(5, 1.0), (12, 0.5)], "b": [(5, 2.0)]})
    panel, reached = unit.panel([5, 15])
    assert reached == [(5, 1.5)]
    assert panel.hear("b", 15, 0.3) == [(15, 0.4)]


def test_a_panel_is_at_a_rung_when_every_job_is_there_or_has_ended() -> None:
    panel = Panel("abc", [5, 15])
    assert panel.hear("a", 5, 1.0) == [] and panel.hear("b", 5, 3.0) == []
    assert panel.hear("a", 10, 0.5) == []
    assert panel.hear("c", 3, 5.0, ended=True) == [(5, 3.0)]  # a and b at epoch 5, c with its last value
    assert panel.hear("a", 15, 0.5) == [] and not panel.ended
    assert panel.hear("b", 12, 0.5, ended=True) == [(15, 2.0)]
    assert panel.hear("a", 20, 0.1, ended=True) == [] and panel.ended


def test_a_panel_without_a_value_of_one_of_its_jobs_is_not_judged() -> None:
    panel = Panel("ab", [5, 15])
    assert panel.hear("a", 5, 1.0) == [] and panel.hear("b", 5, math.nan) == [] and panel.hear("b", 6, None) == []
    assert panel.hear("b", 15, 2.0, ended=True) == [(5, 1.5)]


def test_a_job_that_jumps_over_a_rung_is_not_judged_there() -> None:
    assert Panel("a", [5, 15]).hear("a", 16, 1.0) == [(15, 1.0)]


@given(LOSSES, st.integers(0, 12))
def test_a_panel_of_one_is_its_job(losses: list[float], ends: int) -> None:
    panel, asha = Panel(["a"], [2, 4, 8]), make(max_t=20, grace_period=2)
    reached = [pair for epoch, loss in enumerate(losses, 1) for pair in panel.hear("a", epoch, loss, epoch == ends)]
    assert reached == [(rung, losses[rung - 1]) for rung in (2, 4, 8) if rung <= len(losses)]
    assert asha.rungs == [2, 6, 18]
