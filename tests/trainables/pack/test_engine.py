"""The pack engine on a tiny network: isolation, refills, rungs, cancelling, resuming, patience and what it reports."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.pack.tiny import TinyWorkload, Trained, distance, job, same, train
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue, Report
from trainables.pack.batching import BatchCost
from trainables.pack.checkpoint import parse_slot
from trainables.pack.engine import PackEngine

torch.set_num_threads(1)


def _statuses(done: Trained) -> dict[str, str]:
    return {report.trial_id: report.status for report in done.reports}


# ------------------------------------------------------------------------------------------------------------ isolation

# the middle job ends at the same moment whether it is healthy or not, so that the batches are the same before and after
SICK: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a loss that is NaN in its second epoch": ({"epochs": 2}, {"epochs": 3, "fault": "nan"}),
    "an absurd learning rate": ({"epochs": 1}, {"epochs": 3, "lr": 1e200}),
    "examples that raise in its second epoch": ({"epochs": 1}, {"epochs": 3, "fault": "examples"}),
    "an evaluation that raises": ({"epochs": 2}, {"epochs": 2, "fault": "evaluate"}),
    "an export that raises": ({"epochs": 2}, {"epochs": 2, "fault": "export"}),
}
REASONS = [
    "DivergedError: train_loss is nan in epoch 2",
    "DivergedError: ",
    "RuntimeError: no examples",
    "no evaluation",
    "no space left",
]


@pytest.mark.parametrize(("name", "reason"), list(zip(SICK, REASONS, strict=True)), ids=list(SICK))
def test_a_job_that_goes_wrong_leaves_its_neighbours_bit_identical(name: str, reason: str) -> None:
    def run(middle: dict[str, Any]) -> Trained:
        left, right = job("left", 1, epochs=5, rank=3), job("right", 2, epochs=4, lr=0.1, batch_size=3)
        jobs = [left, job("middle", 3, **middle), right]
        # examples raise within a step, which goes on without the slot; all others free it between two steps
        return train([*jobs, job("after", 4, epochs=3, rank=1)] if refill else jobs, slots=3)

    refill = SICK[name][1].get("fault") != "examples"
    healthy, sick = (run(config) for config in SICK[name])
    assert set(_statuses(healthy).values()) == {"success"}
    assert _statuses(sick) == _statuses(healthy) | {"middle": "failed"}
    for other in _statuses(healthy).keys() - {"middle"}:
        assert same(sick.workload.exported[other], healthy.workload.exported[other])
        assert sick.history(other) == healthy.history(other)
        assert all(torch.isfinite(t).all() for pair in sick.workload.exported[other].values() for t in pair)
    report = sick.last("middle")
    assert reason in (report.error or "")
    assert "Traceback" in (report.traceback or "") and "middle" not in sick.workload.exported


def test_a_batch_that_raises_fails_the_job_at_fault_alone() -> None:
    def run(fault: str | None) -> Trained:
        return train([job("left", 1), job("middle", 3, fault=fault), job("right", 2)], slots=3)

    healthy, sick = run(None), run("batch")
    assert _statuses(sick) == {"left": "success", "middle": "failed", "right": "success"}
    assert "RuntimeError: a bad batch" in (sick.last("middle").traceback or "")
    for other in ("left", "right"):
        # the others took some steps in smaller batches, whose sums round otherwise
        assert distance(sick.workload.exported[other], healthy.workload.exported[other]) < 1e-12


def test_where_memory_runs_out_smaller_batches_go_on_and_nothing_is_lost() -> None:
    jobs = [job(f"t{i}", i, epochs=3, batch_size=2) for i in range(6)]
    # twelve rows of validation come first, then eight of examples
    roomy, tight = train(jobs, slots=4), train(jobs, slots=4, fits=6)
    assert set(_statuses(tight).values()) == {"success"}
    assert tight.engine.together == 6 and max(tight.workload.batches) <= 6
    for one in jobs:
        assert distance(tight.workload.exported[one.trial_id], roomy.workload.exported[one.trial_id]) < 1e-12


def test_a_validation_that_raises_fails_the_job_at_fault_alone() -> None:
    # alone in the pack too: then no slot is left at the end of the epoch
    for slots in (1, 2):
        done = train([job("a", fault="validate"), job("b")], slots=slots)
        assert _statuses(done) == {"a": "failed", "b": "success"}
        assert "RuntimeError: a bad batch" in (done.last("a").error or "")


def test_memory_that_runs_out_in_the_backward_pass_counts_no_loss_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(f"t{i}", i, epochs=2) for i in range(3)]
    roomy, backward, calls = train(jobs, slots=3), torch.Tensor.backward, list[torch.Tensor]()

    def tight(losses: torch.Tensor) -> None:
        calls.append(losses)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room for gradients")
        backward(losses)

    monkeypatch.setattr(torch.Tensor, "backward", tight)
    done = train(jobs, slots=3)
    assert done.engine.together == 3
    for one in jobs:
        assert [row["train_loss"] for row in done.history(one.trial_id)] == pytest.approx(
            [row["train_loss"] for row in roomy.history(one.trial_id)], rel=1e-12
        )


def test_an_evaluation_without_memory_leaves_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = TinyWorkload.evaluate

    def tight(self: TinyWorkload, finished: Any) -> Any:
        if len(finished) > 1:
            raise torch.OutOfMemoryError("no room for answers")
        return evaluate(self, finished)

    monkeypatch.setattr(TinyWorkload, "evaluate", tight)
    done = train([job(f"t{i}", i, epochs=1) for i in range(4)], slots=4)
    assert set(_statuses(done).values()) == {"success"}
    assert done.engine.together is None and done.engine.evaluation_slots == 1


def test_which_rows_share_a_batch_does_not_matter() -> None:
    jobs = [job(f"t{i}", i, epochs=3, batch_size=1 + i % 3) for i in range(7)]
    together, apart = train(jobs, slots=4), train(jobs, slots=4, cost=BatchCost(overhead=2.0))
    assert apart.engine.stats.batches > together.engine.stats.batches
    assert apart.engine.stats.padding_waste < together.engine.stats.padding_waste
    for one in jobs:
        assert distance(apart.workload.exported[one.trial_id], together.workload.exported[one.trial_id]) < 1e-12


def test_a_job_that_does_not_fit_at_all_fails() -> None:
    done = train([job("a"), job("b")], slots=2, fits=0)
    assert _statuses(done) == {"a": "failed", "b": "failed"}
    assert "OutOfMemoryError: no room for 1 rows" in (done.last("b").error or "")


def test_the_engine_goes_on_when_no_slot_has_examples() -> None:
    done = train([job("a", fault="examples", fault_epoch=1), job("b")], slots=1)
    assert _statuses(done) == {"a": "failed", "b": "success"}


def test_a_job_whose_plan_raises_fails_alone() -> None:
    done = train([job("a", fault="plan"), job("b")], slots=1)
    assert _statuses(done) == {"a": "failed", "b": "success"}
    assert done.last("a").error == "RuntimeError: no plan"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rank": 5}, "ValueError: rank 5 is above the pack's largest rank 4."),
        ({"target_modules": ["hiden"]}, "did you mean .*hidden"),
        ({"lr_schedule": "cosin"}, "'cosin' is none of constant, linear, cosine"),
        ({"batch_size": 0}, "by zero"),
        ({"examples": 0}, "epoch 1 has no examples"),
        ({"fault": "validation"}, "no examples to validate on"),
    ],
    ids=["rank", "target", "schedule", "batch size", "no examples", "no validation"],
)
def test_a_job_that_cannot_be_trained_fails_alone(config: dict[str, Any], reason: str) -> None:
    done = train([job("a", **config), job("b")], slots=2)
    assert _statuses(done) == {"a": "failed", "b": "success"}
    assert re.search(reason, done.last("a").error or "")


def test_neighbours_with_more_rows_have_no_effect() -> None:
    # beside a job with batches of six, the rows of one with batches of one are mostly padding
    alone = train([job("small", 1, batch_size=1, epochs=4)], slots=1)
    beside = train([job("small", 1, batch_size=1, epochs=4), job("large", 2, batch_size=6, epochs=24)], slots=2)
    assert distance(alone.workload.exported["small"], beside.workload.exported["small"]) < 1e-12
    for row, other in zip(alone.history("small"), beside.history("small"), strict=True):
        assert row == pytest.approx(other, rel=1e-12)
        assert (row["tokens"], row["examples"]) == (other["tokens"], other["examples"])


def test_zero_padding_of_smaller_ranks_stays_exactly_zero() -> None:
    jobs = [job(str(rank), rank, rank=rank, epochs=6, weight_decay=0.1) for rank in (1, 2, 3)]
    jobs.append(job("partial", 9, rank=2, target_modules=["down"], epochs=6))
    done = train(jobs, slots=4)
    bank = done.engine.bank
    for slot, rank in enumerate((1, 2, 3, 2)):
        for name in bank.a:
            used = rank if slot < 3 or name == "down" else 0
            # `idle` takes part in no job
            used = 0 if name == "idle" else used
            assert not bank.a[name][slot, used:].any() and not bank.b[name][slot, :, used:].any()
            assert bool(bank.b[name][slot, :, :used].any()) == bool(used)


# -------------------------------------------------------------------------------------------------------------- refills


@pytest.mark.parametrize("first", [{}, {"fault": "nan"}, {"lr": 1e200}], ids=["finished", "nan", "diverged"])
def test_a_refill_resets_everything(first: dict[str, Any]) -> None:
    second = job("second", 2, rank=2, epochs=6, target_modules=["up", "down"], patience=3, lr_schedule="linear")
    used = train(
        [
            job("first", 1, rank=4, epochs=7, lr_schedule="cosine") if not first else job("first", 1, rank=4, **first),
            second,
        ],
        slots=1,
    )
    fresh = train([second], slots=1)
    assert used.last("second").metrics["slot"] == 0
    assert same(used.workload.exported["second"], fresh.workload.exported["second"])
    assert used.history("second") == fresh.history("second")
    assert torch.equal(used.engine.bank.flat, fresh.engine.bank.flat)
    for name in ("optimizer.first_moment", "optimizer.second_moment", "best", "initial"):
        assert torch.equal(attrgetter(name)(used.engine), attrgetter(name)(fresh.engine)), name


def test_more_adapters_finish_at_once_than_are_evaluated_in_a_batch() -> None:
    # the first waits aside for a second, and two come at the same step
    jobs = [job("a", 1, epochs=1), job("b", 2, epochs=2), job("c", 3, epochs=1), job("d", 4, epochs=1)]
    done = train(jobs, slots=2)
    assert _statuses(done) == dict.fromkeys("abcd", "success")
    assert [len(batch) for batch in done.workload.evaluations] == [2, 2]


def test_seeds_give_different_adapters() -> None:
    done = train([job("a", 1, epochs=1), job("b", 2, epochs=1)], slots=2)
    assert not torch.allclose(done.workload.exported["a"]["up"][0], done.workload.exported["b"]["up"][0], atol=0.1)


# ---------------------------------------------------------------------------------------------------------------- rungs


def test_reports_come_at_rungs_only_and_every_epoch_once() -> None:
    done = train([job("a", epochs=5, report_every=2), job("b", 1, epochs=4, report_every=2)], slots=2)
    said = [(r.trial_id, r.status, r.epoch, [row["epoch"] for row in r.history]) for r in done.reports]
    assert [s for s in said if s[0] == "a"] == [
        ("a", "running", 2, [1, 2]),
        ("a", "running", 4, [3, 4]),
        ("a", "success", 5, [5]),
    ]
    assert [s for s in said if s[0] == "b"] == [("b", "running", 2, [1, 2]), ("b", "success", 4, [3, 4])]


def test_a_running_report_carries_the_losses_of_its_epoch() -> None:
    done = train([job("a", epochs=3, report_every=2)], slots=1)
    running = done.reports[0]
    assert running.metrics["eval_loss"] == running.history[-1]["eval_loss"]
    assert running.metrics["train_loss"] == running.history[-1]["train_loss"]


def test_predictions_come_with_the_last_report_alone() -> None:
    reports = train([job("a", epochs=4, report_every=2), job("b", fault="evaluate")], slots=2).reports
    said = {(r.trial_id, r.status): list(r.predictions) for r in reports}
    assert said == {
        ("a", "running"): [],
        ("a", "success"): [{"pair": 0, "adapted": [[1]]}],
        ("b", "failed"): [],
    }


def test_the_last_report_has_the_columns_of_the_trials_table() -> None:
    metrics = train([job("a", epochs=2)], slots=1).last("a").metrics
    expected = {
        "epochs": 2,
        "early_stopped": False,
        "num_examples": 6,
        "checkpoint": "adapters/task-a",
        "slot": 0,
        "gpu_seconds": 0.0,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["final_cell_accuracy"] == 0.5
    assert metrics["best_loss"] <= metrics["final_loss"] == metrics["eval_loss"]
    assert 0 < metrics["busy_seconds"] <= metrics["seconds"] and metrics["peak_memory_bytes"] > 0


class _Queue(ListQueue):
    """Calls ``seen`` with every report before it is kept."""

    def __init__(self, jobs: Sequence[Job], seen: Callable[[Report], None]) -> None:
        super().__init__(jobs)
        self.seen = seen

    def report(self, reports: Sequence[Report]) -> None:
        for report in reports:
            self.seen(report)
        super().report(reports)


def test_the_checkpoint_is_there_before_the_rung_is_reported(tmp_path: Path) -> None:
    found = []

    def seen(report: Report) -> None:
        if report.status == "running":
            data = Folder(tmp_path).read(f"checkpoints/{report.trial_id}.safetensors")
            assert data is not None
            facts = parse_slot(data, "tiny")[1]
            found.append((report.epoch, facts["epoch"], len(facts["history"])))

    train(_Queue([job("a", epochs=5, report_every=2)], seen), 1, folder=Folder(tmp_path))
    assert found == [(2, 2, 2), (4, 4, 4)]


# ----------------------------------------------------------------------------------------------------------- cancelling


def test_a_cancelled_job_stops_and_its_slot_is_used_again() -> None:
    def seen(report: Report) -> None:
        if (report.trial_id, report.status) == ("a", "running"):
            queue.cancel("a")

    queue = _Queue([job("a", epochs=9, report_every=2), job("b", 1, epochs=9), job("c", 2, epochs=2)], seen)
    done = train(queue, 2)
    stopped = done.last("a")
    assert (stopped.status, stopped.epoch, stopped.error) == ("stopped", 2, None)
    assert stopped.metrics["eval_loss"] == done.reports[0].metrics["eval_loss"]
    assert "a" not in done.workload.exported
    assert done.last("c").status == "success" and done.last("c").metrics["slot"] == 0
    fresh = train([job("c", 2, epochs=2)], 1)
    assert distance(done.workload.exported["c"], fresh.workload.exported["c"]) < 1e-12


def test_a_finished_adapter_can_be_cancelled_before_its_evaluation() -> None:
    def seen(report: Report) -> None:
        if (report.trial_id, report.epoch) == ("b", 4):
            queue.cancel("a")

    queue = _Queue([job("a", epochs=2), job("b", 1, epochs=6, report_every=4)], seen)
    done = train(queue, 2)
    assert _statuses(done) == {"a": "stopped", "b": "success"}
    assert done.workload.evaluations == [["b"]]


# ------------------------------------------------------------------------------------------------------------- resuming

# as many steps an epoch in both, so that they are at the same epoch whenever they are killed
RESUMED = [
    job("a", 1, epochs=9, report_every=2, rank=3, lr_schedule="cosine", target_modules=["up", "down"]),
    job("b", 2, epochs=7, report_every=2, lr=0.1, lr_schedule="linear", patience=5, min_delta=0.02),
]


def _killed_at(epoch: int, folder: Folder, **options: Any) -> list[Report]:
    """Train until the last job has reported a rung, then die; return what was said."""

    def seen(report: Report) -> None:
        if (report.trial_id, report.epoch) == ("b", epoch):
            raise KeyboardInterrupt

    queue = _Queue(RESUMED, seen)
    with pytest.raises(KeyboardInterrupt):
        train(queue, 2, folder=folder, **options)
    return queue.reports


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("epoch", [2, 4])
def test_a_killed_engine_continues_as_if_nothing_had_happened(dtype: torch.dtype, epoch: int, tmp_path: Path) -> None:
    unbroken = train(RESUMED, 2, dtype=dtype)
    _killed_at(epoch, Folder(tmp_path), dtype=dtype)
    resumed = train(RESUMED, 2, dtype=dtype, folder=Folder(tmp_path))
    for name in ("a", "b"):
        first = next(r for r in resumed.reports if r.trial_id == name)
        assert first.epoch == epoch + 2 and [row["epoch"] for row in first.history] == list(range(1, epoch + 3))
        assert resumed.history(name) == unbroken.history(name)
        assert same(resumed.workload.exported[name], unbroken.workload.exported[name])
        for column in ("best_loss", "final_loss", "epochs", "early_stopped"):
            assert resumed.last(name).metrics[column] == unbroken.last(name).metrics[column]


def test_adapters_killed_while_they_wait_for_their_evaluation_are_only_evaluated(tmp_path: Path) -> None:
    def jobs() -> list[Job]:
        return [job("a", epochs=3, report_every=2), job("b", 1, epochs=9, patience=1, script=[9.0, 1.0, 2.0])]

    class Killed(TinyWorkload):
        def evaluate(self, finished: Any) -> Any:
            raise KeyboardInterrupt

    workload = Killed()
    with pytest.raises(KeyboardInterrupt):
        PackEngine(workload.pack, workload, 2, 4, Folder(tmp_path), "tiny", torch.float64).run(ListQueue(jobs()))
    resumed, unbroken = train(jobs(), 2, folder=Folder(tmp_path)), train(jobs(), 2)
    assert resumed.engine.stats.steps == 0
    for name, early in (("a", False), ("b", True)):
        last = resumed.last(name)
        assert last.status == "success" and last.metrics["early_stopped"] == early
        assert resumed.history(name) == unbroken.history(name)
        assert same(resumed.workload.exported[name], unbroken.workload.exported[name])


def test_patience_counts_on_over_a_kill(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5]
    first = job("b", epochs=20, patience=4, report_every=2, script=[9.0, *losses])
    _killed_at_first_rung = _Queue([first], _raise_at(4))
    with pytest.raises(KeyboardInterrupt):
        train(_killed_at_first_rung, 1, folder=Folder(tmp_path))
    again = replace(first, config={**first.config, "script": losses[4:]})
    done = train([again], 1, folder=Folder(tmp_path))
    assert done.last("b").epoch == 6 and done.last("b").metrics["best_loss"] == 2.0
    unbroken = train([first], 1)
    assert unbroken.last("b").epoch == 6
    assert same(done.workload.exported["b"], unbroken.workload.exported["b"])


def _raise_at(epoch: int) -> Callable[[Report], None]:
    def seen(report: Report) -> None:
        if report.epoch == epoch:
            raise KeyboardInterrupt

    return seen


def test_a_job_continues_in_another_slot_of_a_larger_pack(tmp_path: Path) -> None:
    unbroken = train(RESUMED, 2)
    _killed_at(4, Folder(tmp_path))
    resumed = train([job("new", 7), *RESUMED], 3, rank=6, folder=Folder(tmp_path))
    assert resumed.last("a").metrics["slot"] == 1
    for name in ("a", "b"):
        assert distance(resumed.workload.exported[name], unbroken.workload.exported[name]) < 1e-12


def test_a_checkpoint_of_another_base_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _killed_at(4, Folder(tmp_path))
    with caplog.at_level(logging.WARNING):
        other = train(RESUMED, 2, folder=Folder(tmp_path), signature="another base")
    assert "a starts anew: The checkpoint belongs to tiny, not to another base." in caplog.text
    fresh = train(RESUMED, 2)
    assert all(same(other.workload.exported[name], fresh.workload.exported[name]) for name in ("a", "b"))
    assert other.reports[0].epoch == 2


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"\0" * len(d)], ids=["half", "empty", "zeros"]
)
def test_where_the_newest_checkpoint_is_corrupt_the_one_before_is_taken(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, name = Folder(tmp_path), "checkpoints/a.safetensors"
    _killed_at(4, folder)
    data = folder.read(name)
    assert data is not None
    folder.write(name, damage(data))
    with caplog.at_level(logging.WARNING):
        done = train(RESUMED, 2, folder=folder)
    assert "a goes on from the checkpoint before the last one: The checkpoint cannot be read" in caplog.text
    fresh = train(RESUMED, 2)
    assert distance(done.workload.exported["a"], fresh.workload.exported["a"]) < 1e-12
    assert [row["epoch"] for row in done.history("a")] == list(range(1, 10))


def test_where_both_checkpoints_are_corrupt_the_adapter_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _killed_at(4, Folder(tmp_path))
    for file in Path(tmp_path, "checkpoints").glob("a.*"):
        file.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        done = train(RESUMED, 2, folder=Folder(tmp_path))
    assert "a starts anew: The checkpoint cannot be read" in caplog.text
    assert [row["epoch"] for row in done.history("a")] == list(range(1, 10))


# ------------------------------------------------------------------------------------------------------------- patience


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "epochs", "early", "best"),
    [
        ([5.0, 4.0, 4.0, 4.0], 2, 0.0, 4, True, 4.0),
        # improvements below min_delta do not count, though their weights are kept
        ([5.0, 4.96, 4.92, 4.88], 3, 0.2, 4, True, 4.88),
        # many small steps add up to one that counts
        ([5.0, 4.96, 4.92, 4.88, 4.84, 4.84, 4.84], 3, 0.1, 7, True, 4.84),
        # patience that runs out with the last epoch is no early stop
        ([5.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0], 9, 0.0, 10, False, 5.0),
        # a rise in between starts no new count
        ([5.0, 6.0, 4.0, 4.5, 4.5], 2, 0.0, 5, True, 4.0),
    ],
)
def test_patience_counts_epochs_without_an_improvement_by_min_delta(
    losses: list[float], patience: int, min_delta: float, epochs: int, early: bool, best: float
) -> None:
    last = train([job("a", epochs=10, patience=patience, min_delta=min_delta, script=[9.0, *losses])], 1).last("a")
    assert (last.status, last.epoch, last.metrics["epochs"]) == ("success", epochs, epochs)
    assert last.metrics["early_stopped"] is early
    assert (last.metrics["best_loss"], last.metrics["final_loss"]) == pytest.approx((best, losses[epochs - 1]))


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    stopped = train([job("a", epochs=2, script=[9.0, 3.0, 2.0])], 1).workload.exported["a"]
    went_on = train([job("a", epochs=5, script=[9.0, 3.0, 2.0, 2.0, 4.0, 2.5])], 1).workload.exported["a"]
    assert same(stopped, went_on)


def test_what_is_answered_exactly_counts_before_the_loss() -> None:
    stopped = train([job("a", epochs=2, script=[9.0, 3.0, (8.0, True)])], 1)
    went_on = train([job("a", epochs=9, patience=3, script=[9.0, 3.0, (8.0, True), (8.0, True), 1.0, 2.0])], 1)
    assert same(stopped.workload.exported["a"], went_on.workload.exported["a"])
    last = went_on.last("a")
    assert (last.epoch, last.metrics["best_epoch"], last.metrics["best_loss"]) == (5, 2, pytest.approx(8.0))
    assert [row["eval_exact"] for row in went_on.history("a")] == [0, 1, 1, 0, 0]


def test_an_adapter_that_is_never_better_than_the_base_changes_nothing() -> None:
    done = train([job("a", epochs=2, script=[(2.0, True), 1.0, (3.0, True)]), job("b", epochs=1, script=[2.0, 1.0])], 2)
    kept, better = (done.last(name).metrics for name in ("a", "b"))
    assert (kept["kept_base"], kept["best_epoch"], kept["best_loss"]) == (True, 0, pytest.approx(2.0))
    assert (better["kept_base"], better["best_epoch"]) == (False, 1)
    assert all(not up.any() for _, up in done.workload.exported["a"].values())
    assert any(up.any() for _, up in done.workload.exported["b"].values())


# -------------------------------------------------------------------------------------------------------------- history


def test_a_component_without_a_gradient_fails_the_job_by_name() -> None:
    done = train([job("a", target_modules=["up", "idle"]), job("b", 1, target_modules=["up"])], 2)
    assert _statuses(done) == {"a": "failed", "b": "success"}
    assert (done.last("a").error or "").startswith("DeadComponentError: No gradient reached idle in the first epoch")


def test_norms_are_recorded_for_each_component_that_is_adapted() -> None:
    row = train([job("a", epochs=1, examples=2, target_modules=["up", "hidden"])], 1).history("a")[0]
    norms = {name: value for name, value in row.items() if "/" in name}
    assert sorted(norms) == ["grad_norm/body", "grad_norm/up", "update_norm/body", "update_norm/up"]
    assert all(value > 0 for value in norms.values())
    # of a single step, the squares of the components' norms add up to that of the whole
    assert row["grad_norm"] == pytest.approx(math.hypot(norms["grad_norm/up"], norms["grad_norm/body"]), rel=1e-12)


def test_update_norms_are_distances_from_the_initial_weights() -> None:
    done = train([job("a", epochs=3)], 1)
    engine = done.engine
    place = engine.bank.columns["up"]
    change = (engine.bank.flat - engine.initial)[0, place.start : place.end].norm()
    assert done.history("a")[-1]["update_norm/up"] == pytest.approx(float(change), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1]), ("linear", [10 / 12, 7 / 12, 4 / 12, 1 / 12])]
    + [("cosine", [(1 + math.cos(math.pi * step / 12)) / 2 for step in (2, 5, 8, 11)])],
)  # fmt: skip
def test_the_learning_rate_in_the_history_is_the_one_used_last(schedule: str, factors: list[float]) -> None:
    history = train([job("a", lr=0.5, epochs=4, lr_schedule=schedule)], 1).history("a")
    assert [row["lr"] for row in history] == pytest.approx([0.5 * f for f in factors])
    assert [row["step"] for row in history] == [3, 6, 9, 12]


def test_examples_and_tokens_are_counted_for_each_job_alone() -> None:
    done = train([job("a", examples=5, batch_size=4), job("b", 1, examples=7, batch_size=1)], 2)
    for name, seed, count in (("a", 0, 5), ("b", 1, 7)):
        plan = done.workload.plan(job(name, seed, examples=count))
        for row in done.history(name):
            assert row["examples"] == count
            assert row["tokens"] == sum(len(e.classes) for e in plan.examples(row["epoch"]))
    assert done.engine.stats.examples == 3 * (5 + 7)
    assert 0 < done.engine.stats.padding_waste < 1
    computed = sum(row["padded_tokens"] for report in done.reports for row in report.history)
    assert computed == pytest.approx(done.engine.stats.padded_tokens)
