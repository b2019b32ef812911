"""GroupedASHA: groups are independent, decisions are recorded, a replay gives the rungs of an unbroken run."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler

from sweeps.backend.asha import NO_CONTROLLER as NO_TUNE
from sweeps.backend.asha import Decision, GroupedASHA


@dataclass
class FakeTrial:
    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def make(max_t: int = 45, grace_period: int = 5) -> GroupedASHA:
    return GroupedASHA(
        group=lambda c: c["task_id"], key=lambda c: c["key"], max_t=max_t, grace_period=grace_period, reduction_factor=3
    )


def trial(task: str, sample: int) -> Any:
    return FakeTrial(f"tune-{task}-{sample}", {"task_id": task, "key": f"{task}-{sample}"})


def run(scheduler: Any, trials: list[FakeTrial], loss: dict[str, float], epochs: list[int]) -> set[str]:
    """Report every trial at every epoch, epoch by epoch; return the stopped ones."""
    stopped: set[str] = set()
    for each in trials:
        scheduler.on_trial_add(NO_TUNE, each)
    for epoch in epochs:
        for each in trials:
            if each.trial_id not in stopped:
                result = {"epoch": epoch, "eval_loss": loss[each.trial_id] / epoch}
                if scheduler.on_trial_result(NO_TUNE, each, result) == "STOP":
                    scheduler.on_trial_complete(NO_TUNE, each, result)
                    stopped.add(each.trial_id)
    return stopped


def two_tasks() -> tuple[list[FakeTrial], dict[str, float]]:
    shuffled = random.Random(0).sample(range(20), 20)
    trials = [trial(task, sample) for sample in range(20) for task in ("easy", "hard")]
    scale = {"easy": 0.1, "hard": 1.0}
    loss = {t.trial_id: scale[t.config["task_id"]] * (1 + shuffled[int(t.trial_id.split("-")[2])] / 20) for t in trials}
    return trials, loss


def test_one_asha_over_two_tasks_stops_the_hard_one_and_groups_do_not() -> None:
    trials, loss = two_tasks()
    plain = ASHAScheduler(
        time_attr="epoch", metric="eval_loss", mode="min", max_t=45, grace_period=5, reduction_factor=3
    )
    stopped = run(plain, trials, loss, [5, 10, 15])
    hard = {t for t in stopped if "hard" in t}
    assert len(hard) >= 19 and len(stopped - hard) < 15

    stopped = run(make(), trials, loss, [5, 10, 15])
    by_task = {task: {t.split("-")[2] for t in stopped if task in t} for task in ("easy", "hard")}
    assert by_task["easy"] == by_task["hard"]  # same order of quality, same decisions
    assert 5 <= len(by_task["easy"]) < 20


def test_decision_holds_rung_value_and_cutoff() -> None:
    scheduler = make()
    trials = [trial("a", i) for i in range(4)]
    for each in trials:
        scheduler.on_trial_add(NO_TUNE, each)
    assert scheduler.decision("a-0") is None
    actions = [
        scheduler.on_trial_result(NO_TUNE, each, {"epoch": 5, "eval_loss": loss})
        for each, loss in zip(trials, (1.0, 2.0, 3.0, 0.5), strict=True)
    ]
    assert actions == ["CONTINUE", "STOP", "STOP", "CONTINUE"]
    assert scheduler.decision("a-0") == Decision(rung=5, value=1.0, cutoff=None, stopped=False)
    assert scheduler.decision("a-1") == Decision(rung=5, value=2.0, cutoff=1.0, stopped=True)
    third = scheduler.decision("a-2")
    assert third is not None and third.cutoff == pytest.approx(1 + 1 / 3)
    assert scheduler.rungs("a") == {5: {"a-0": 1.0, "a-1": 2.0, "a-2": 3.0, "a-3": 0.5}, 15: {}, 45: {}}


def test_trial_at_its_last_epoch_is_not_stopped() -> None:
    scheduler = make(max_t=15)
    for i, loss in enumerate((1.0, 5.0)):
        each = trial("a", i)
        scheduler.on_trial_add(NO_TUNE, each)
        scheduler.on_trial_result(NO_TUNE, each, {"epoch": 5, "eval_loss": 1.0 - i})
        assert scheduler.on_trial_result(NO_TUNE, each, {"epoch": 15, "eval_loss": loss}) == "CONTINUE"


def test_failed_trials_leave_no_trace_in_the_rungs() -> None:
    scheduler = make()
    for i, loss in enumerate((math.nan, math.inf)):
        each = trial("a", i)
        scheduler.on_trial_add(NO_TUNE, each)
        assert scheduler.on_trial_result(NO_TUNE, each, {"epoch": 5, "eval_loss": loss}) == "CONTINUE"
        scheduler.on_trial_complete(NO_TUNE, each, {"epoch": 5, "eval_loss": loss})
    assert scheduler.rungs("a")[5] == {}


def test_an_epoch_without_an_evaluation_is_not_judged() -> None:
    scheduler = make()
    for i, action in enumerate(("CONTINUE", "STOP")):
        each = trial("a", i)
        scheduler.on_trial_add(NO_TUNE, each)
        assert scheduler.on_trial_result(NO_TUNE, each, {"epoch": 5}) == "CONTINUE"
        assert scheduler.on_trial_result(NO_TUNE, each, {"epoch": 6, "eval_loss": 1.0 + i}) == action
    assert scheduler.rungs("a")[5] == {"a-0": 1.0, "a-1": 2.0}


def test_fewer_epochs_than_the_first_rung() -> None:
    scheduler = make(max_t=3)
    each = trial("a", 0)
    scheduler.on_trial_add(NO_TUNE, each)
    assert scheduler.on_trial_result(NO_TUNE, each, {"epoch": 3, "eval_loss": 1.0}) == "CONTINUE"


def test_replay_equals_uninterrupted() -> None:
    trials, loss = two_tasks()
    whole = make()
    stopped = run(whole, trials, loss, [5, 10, 15, 20])

    first = make()
    stopped_first = run(first, trials, loss, [5, 10])
    second = make()
    for each in trials:  # from the store: everything that was reported before the break
        history = [(epoch, loss[each.trial_id] / epoch) for epoch in (5, 10)]
        last = 1 if each.trial_id in stopped_first else 2
        second.replay(each.config["task_id"], each.config["key"], history[:last])
    assert second.rungs("easy") == first.rungs("easy") and second.rungs("hard") == first.rungs("hard")

    # Tune gives the continued trials new ids
    rest = [FakeTrial(f"again-{t.trial_id}", t.config) for t in trials if t.trial_id not in stopped_first]
    again = {f"again-{trial_id}": value for trial_id, value in loss.items()}
    stopped_second = run(second, rest, again, [15, 20])
    assert {t.removeprefix("again-") for t in stopped_second} | stopped_first == stopped
    assert second.rungs("hard") == whole.rungs("hard")
    stop = [d for t in rest if (d := second.decision(t.config["key"])) and d.stopped]
    assert stop and all(d.rung == 15 for d in stop)
