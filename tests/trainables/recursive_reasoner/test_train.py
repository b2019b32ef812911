"""Training: it learns, every schedule takes effect, it resumes bit for bit at any step, and it fails by name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.sweeps.killed import cut_newest, rows_after_kills
from trainables.common.checkpoints import Checkpoints
from trainables.common.context import PlainRun
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.monitor import DeadComponentError, FrozenScheduleError
from trainables.common.schedules import Schedule
from trainables.puzzles import sudoku
from trainables.puzzles.views import MODALITIES
from trainables.recursive_reasoner import trainer as module
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import load_dataset
from trainables.recursive_reasoner.halting import CONTINUE, EXPAND, HALT
from trainables.recursive_reasoner.model import Reasoner
from trainables.recursive_reasoner.planner import hint_share
from trainables.recursive_reasoner.train import train_loop
from trainables.recursive_reasoner.trainer import Trainer, schedules_of

# 8 steps an epoch
TINY = ReasonerConfig(
    width=16, heads=2, layers=1, prefix=1, h_cycles=2, l_cycles=1, max_steps=3, halting="fixed", replay=64,
    replay_batch=8, lr=3e-3, warmup_steps=0, weight_decay=0.1, ema=0.9, batch_size=8, epochs=3, views_per_puzzle=2,
    train_puzzles=32, held_out_puzzles=8, maze_side=9, eval_every=1, checkpoint_every=5, precision="float32",
    direct_baseline=False,
)  # fmt: skip
torch.set_num_threads(1)


def _settings(folder: Path, **config: Any) -> dict[str, Any]:
    return {
        "config": asdict(replace(TINY, **config)),
        "dataset": "sudoku4",
        "data_seed": 0,
        "dataset_dir": None,
        "seed": 0,
        "folder": str(folder),
        "checkpoint": None,
    }


def _trainer(seed: int = 0, **config: Any) -> Trainer:
    chosen = replace(TINY, **config)
    return Trainer(chosen, load_dataset("sudoku4", chosen), seed, "cpu")


def _losses(trainer: Trainer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        before = float(trainer.sums.get("train_loss", 0.0))
        trainer.train_step()
        losses.append(float(trainer.sums["train_loss"]) - before)
    return losses


def _weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


def _measured(reports: list[dict[str, Any]]) -> str:
    timed = ("seconds", "cpu_seconds", "puzzles_per_second", "rows_per_second")
    return repr([{name: value for name, value in report.items() if name not in timed} for report in reports])


# ------------------------------------------------------------------------------------------------------------- learning


def test_the_loss_falls_and_the_last_row_is_complete(tmp_path: Path) -> None:
    run = PlainRun()
    train_loop(_settings(tmp_path, epochs=6, halting="bce", direct_baseline=True, views_per_puzzle=8), run)
    assert [row["epoch"] for row in run.reports] == list(range(1, 7))
    assert [row["step"] for row in run.reports] == [32 * epoch for epoch in range(1, 7)]
    assert run.reports[-1]["answer_loss"] < 0.9 * run.reports[0]["answer_loss"]
    last = run.reports[-1]
    assert {"token_accuracy", "exact_accuracy", "mean_steps", "q_calibration_error", "flops_per_puzzle", "lr"} <= set(
        last
    )
    assert {"direct_exact_accuracy", "majority_token_accuracy", "halted_at_step/3", "exact_at_step/1"} <= set(last)
    assert (last["dataset"], last["halting"], last["planner"]) == ("sudoku4", "bce", "none")
    assert all(
        row[f"grad_norm/{name}"] > 0 for row in run.reports for name in ("network", "halting", "puzzle_embedding")
    )
    assert sum(last[f"halted_at_step/{step}"] for step in (1, 2, 3)) == pytest.approx(1)
    solved = json.loads((tmp_path / "solved.json").read_text())
    assert len(solved["inputs"]) == len(solved["targets"]) == 8 and all(1 <= steps <= 3 for steps in solved["steps"])
    assert [len(answers) for answers in solved["answers"]] == [3] * 8
    trained = torch.load(tmp_path / "reasoner.pt", weights_only=True)
    Reasoner(ReasonerConfig(**trained["config"]), 5, 16).load_state_dict(trained["model"])


@pytest.mark.parametrize("name", ["maze", "arc"])
def test_other_puzzles(tmp_path: Path, name: str) -> None:
    run = PlainRun()
    settings = _settings(tmp_path, epochs=1, arc_side=3, halting="dqn", views_per_puzzle=1) | {"dataset": name}
    train_loop(settings, run)
    assert 0 < run.reports[-1]["token_accuracy"] < 1 and run.reports[-1]["grad_norm/puzzle_embedding"] > 0


def test_a_mixture_is_shown_and_asked_for_the_grid(tmp_path: Path) -> None:
    run = PlainRun()
    train_loop(
        _settings(tmp_path, halting="dqn", direct_baseline=True, held_out_puzzles=24) | {"dataset": "mixed"}, run
    )
    last = run.reports[-1]
    for name in MODALITIES:
        assert last[f"grad_norm/{name}_encoder"] > 0 and last[f"update_norm/{name}_decoder"] > 0
        assert 0 <= last[f"exact_accuracy/{name}"] <= last[f"token_accuracy/{name}"] <= 1
    assert min(last[f"token_accuracy/{m}"] for m in MODALITIES) <= last["token_accuracy"]
    assert run.reports[-1]["reconstruction_loss"] < 0.95 * run.reports[0]["reconstruction_loss"]
    assert last["flops_per_puzzle"] > 0 and last["direct_token_accuracy"] > 0
    trained = torch.load(tmp_path / "reasoner.pt", weights_only=True)
    Reasoner(ReasonerConfig(**trained["config"]), 5, 16, 3, modalities=MODALITIES).load_state_dict(trained["model"])
    solved = json.loads((tmp_path / "solved.json").read_text())
    assert [len(grid) for grid in solved["inputs"]] == [16] * 8


@pytest.mark.parametrize("name", ["sudoku6", "maze"])
def test_a_wrong_or_a_blank_puzzle_id_costs_nothing_where_puzzles_have_one_rule(name: str) -> None:
    chosen = replace(TINY, prefix=2)
    trainer = Trainer(chosen, load_dataset(name, chosen), 0, "cpu")
    trainer.train_step()
    model, held_out = trainer.model, trainer.dataset.held_out
    inputs, ids = (torch.from_numpy(array).long() for array in (held_out.inputs, held_out.ids))
    assert model.prefix is not None and model.prefix.weight.abs().max() > 0, "the prefix has learned something"
    with torch.no_grad():
        right, blank, wrong = (
            model(model.start(len(inputs)), inputs, puzzle_ids=said).logits for said in (ids, None, ids + 7)
        )
    assert torch.equal(right, blank) and torch.equal(right, wrong)


def test_puzzles_harder_than_trained_on_are_measured_by_level_and_direct_prediction_has_its_own_rate(
    tmp_path: Path,
) -> None:
    run = PlainRun()
    settings = _settings(tmp_path, epochs=1, train_puzzles=64, direct_baseline=True, direct_lr_ratio=0.5)
    train_loop(settings | {"dataset": "maze"}, run)
    last, dataset = run.reports[-1], load_dataset("maze", ReasonerConfig(**settings["config"]), 0)
    levels = np.concatenate([dataset.held_out.difficulty, dataset.harder.difficulty])
    assert len(dataset.harder) and {f"exact_at_level/{level}" for level in levels} <= set(last)
    assert last["exact_accuracy"] <= last["valid_accuracy"] <= 1 and last["harder_exact_accuracy"] >= 0
    assert {"direct_harder_exact_accuracy", "direct_valid_accuracy"} <= set(last) and last["cpu_seconds"] > 0
    notes = Checkpoints(Folder(tmp_path / "direct" / "checkpoints"), 1).notes()
    assert {note.identity["lr"] for note in notes} == {0.5 * settings["config"]["lr"]}


def test_targets_of_a_mixture_are_the_answers_of_its_grids() -> None:
    chosen = replace(TINY, planner="continuous_thought")
    trainer = Trainer(chosen, load_dataset("mixed", chosen), 0, "cpu")
    trainer.train_step()
    given, targets, asked, ids = trainer.stream.at(np.arange(8), hint_share(chosen, 0))
    carry = trainer.carry
    assert (sudoku.solve(given, 4)[2] == carry["targets"].numpy()).all() and (carry["targets"].numpy() == targets).all()
    assert (carry["asked"].numpy() == asked).all() and (carry["ids"].numpy() == ids).all()
    assert (carry["inputs"].numpy() == trainer.dataset.kind.show(given, ids)).all()


@pytest.mark.parametrize("halting", ["fixed", "bce", "dqn"])
@pytest.mark.parametrize("planner", ["none", "latent_paths", "continuous_thought"])
def test_every_halting_rule_with_every_planner(tmp_path: Path, halting: str, planner: str) -> None:
    run = PlainRun()
    train_loop(_settings(tmp_path, halting=halting, planner=planner, epochs=1), run)
    row = run.reports[-1]
    assert row["exact_accuracy"] >= 0 and 1 <= row["mean_steps"] <= 3
    assert set(schedules_of(replace(TINY, halting=halting, planner=planner))) <= set(row)
    components = {name.removeprefix("grad_norm/") for name in row if name.startswith("grad_norm/")}
    assert ("halting" in components) == (halting != "fixed") and ("planner" in components) == (planner != "none")


def test_rows_that_end_are_refilled_and_others_go_on() -> None:
    trainer = _trainer()
    trainer.train_step()
    first = trainer.carry["inputs"].clone()
    assert trainer.position == 8 and trainer.carry["steps"].tolist() == [1] * 8
    trainer.train_step()
    assert torch.equal(trainer.carry["inputs"], first) and not trainer.carry["halted"].any()
    trainer.carry["halted"][2] = True
    trainer.train_step()
    assert trainer.position == 9 and trainer.carry["steps"].tolist() == [3, 3, 1, 3, 3, 3, 3, 3]
    assert not torch.equal(trainer.carry["inputs"][2], first[2])
    trainer.train_step()
    assert trainer.position == 16 and trainer.carry["steps"].tolist() == [1, 1, 2, 1, 1, 1, 1, 1]


def test_actions_of_rows() -> None:
    trainer = _trainer(halting="dqn", max_steps=4)
    wanted = torch.tensor([CONTINUE, HALT, EXPAND, CONTINUE, HALT, EXPAND, CONTINUE, CONTINUE])
    trainer.halting.explore = lambda values, draws, exploration: wanted
    trainer.train_step()
    assert trainer.carry["halted"].tolist() == (wanted == HALT).tolist()
    assert trainer.carry["steps"].tolist() == [1, 1, 2, 1, 1, 2, 1, 1]
    replay = trainer.halting.replay
    assert len(replay) == 2 and replay.ended[:2].all() and (replay.reward[:2] == -0.5).all()
    trainer.train_step()
    # six rows went on, and the two that were refilled halt again
    assert len(replay) == 2 + 6 + 2
    assert trainer.carry["steps"].tolist() == [2, 1, 3, 2, 1, 3, 2, 2], "no room is left for another expansion"
    price = Schedule.parse(TINY.expansion_penalty).value(1, trainer.total)
    expanded = replay.action[2:8] == EXPAND
    assert expanded.sum() == 2 and not replay.ended[2:8].any()
    assert (replay.reward[2:8][expanded] + price + 0.01 <= 1).all()


def test_an_expansion_is_a_step_but_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(halting="dqn", max_steps=4)
    actions = iter([EXPAND, HALT, HALT, HALT])
    monkeypatch.setattr(type(trainer.halting), "decide", lambda self, values: torch.full((len(values),), next(actions)))
    solved = trainer.solved_puzzles()
    assert solved["steps"] == [3] * 8 and solved["answered"] == [2] * 8
    assert [len(answers) for answers in solved["answers"]] == [4] * 8


def test_bce_rows_may_have_to_take_a_random_number_of_steps() -> None:
    trainer = _trainer(halting="bce", max_steps=6, epsilon="1.0")
    torch.nn.init.constant_(trainer.halting.logit.bias, 50.0)
    trainer.train_step()
    least = trainer.carry["least"]
    assert least.min() >= 2 and least.max() <= 6 and not trainer.carry["halted"].any()
    free = _trainer(halting="bce", max_steps=6, epsilon="0.0")
    torch.nn.init.constant_(free.halting.logit.bias, 50.0)
    free.train_step()
    assert free.carry["halted"].all()


# ------------------------------------------------------------------------------------------------------------ schedules

MOVING = {
    "lr_floor": ({"lr_floor": 1.0, "lr_schedule": "linear"}, {"lr_floor": 0.0, "lr_schedule": "linear"}),
    "lr_schedule": ({"lr_schedule": "constant"}, {"lr_schedule": "exponential"}),
    "epsilon": ({"epsilon": "0.2"}, {"epsilon": "linear:0.2:1.0"}),
    "temperature": ({"temperature": "10.0"}, {"temperature": "exponential:10.0:0.01"}),
    "expansion_penalty": ({"expansion_penalty": "0.1"}, {"expansion_penalty": "cosine:0.1:0.9:50%"}),
    "thoughts": ({"thoughts": "linear:0:2:100%"}, {"thoughts": "linear:0:2:30%"}),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_schedule_takes_effect_on_training(name: str) -> None:
    # both begin at the same value: what tells the runs apart is that one of them sees the step
    common: dict[str, Any] = {"halting": "dqn", "planner": "continuous_thought", "dqn_warmup": 0.0, "epochs": 2}
    still, moving = (_trainer(**(common | changes)) for changes in MOVING[name])
    scheduled = "lr" if name.startswith("lr") else name
    assert still.scheduled(0)[scheduled] == moving.scheduled(0)[scheduled]
    losses = [_losses(trainer, 16) for trainer in (still, moving)]
    assert losses[0][0] == losses[1][0]
    assert losses[0] != losses[1] and not torch.equal(_weights(still), _weights(moving))


@pytest.mark.parametrize("hints", [0.0, 1.0])
def test_hints_show_from_none_to_all_of_the_asked_cells(tmp_path: Path, hints: float) -> None:
    settings = _settings(tmp_path, planner="continuous_thought", hints=hints, checkpoint_every=1, keep_checkpoints=30)
    train_loop(settings, PlainRun())
    # The rows of the first step belong to the first stage of the curriculum.
    state = torch.load(tmp_path / "checkpoints" / "step-000000001.pt", weights_only=True)
    carry = state["parts"][0]["carry"]
    assert torch.equal(carry["inputs"], carry["targets"]) == (hints == 1)


def test_a_replay_smaller_than_the_batch_is_filled_with_the_last_rows(tmp_path: Path) -> None:
    run = PlainRun()
    train_loop(_settings(tmp_path, halting="dqn", replay=4, replay_batch=4, epochs=1), run)
    assert run.reports[-1]["halting_loss"] > 0


def test_the_row_holds_the_values_of_the_last_step(tmp_path: Path) -> None:
    run = PlainRun()
    train_loop(_settings(tmp_path, halting="dqn", planner="continuous_thought", lr_schedule="cosine"), run)
    schedules = schedules_of(replace(TINY, halting="dqn", planner="continuous_thought", lr_schedule="cosine"))
    assert set(schedules) == {"lr", "epsilon", "temperature", "expansion_penalty", "thoughts"}
    for row in run.reports:
        assert {n: row[n] for n in schedules} == {n: s.value(row["step"] - 1, 24) for n, s in schedules.items()}


def test_a_schedule_that_does_not_see_the_step_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Schedule.value
    monkeypatch.setattr(Schedule, "value", lambda self, step, total: real(self, 0, total))
    with pytest.raises(FrozenScheduleError, match="epsilon, expansion_penalty, temperature did not move"):
        train_loop(_settings(tmp_path, halting="dqn"), PlainRun())


# -------------------------------------------------------------------------------------------------------------- failing


def test_a_component_without_gradient_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Reasoner):
        """A reasoner whose planner's work is thrown away."""

        def forward(self, state: Any, inputs: torch.Tensor, thoughts: int = 0, puzzle_ids: Any = None) -> Any:
            planner, self.planner = self.planner, lambda network, z_h, z_l, x, thoughts: (z_l, x)
            output = super().forward(state, inputs, thoughts)
            self.planner = planner
            return output

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "planner" and not isinstance(value, torch.nn.Module):
                self._modules["planner"] = value
            else:
                super().__setattr__(name, value)

    monkeypatch.setattr(module, "Reasoner", Deaf)
    with pytest.raises(DeadComponentError, match="No gradient reached planner"):
        train_loop(_settings(tmp_path, planner="latent_paths"), PlainRun())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"in epoch 1; lower lr \(1e\+30\)"):
        train_loop(_settings(tmp_path, lr=1e30, clip_norm=1e30), PlainRun())


def test_gradients_are_clipped() -> None:
    free, clipped = _trainer(), _trainer(clip_norm=1e-6)
    _losses(free, 1), _losses(clipped, 1)
    assert float(free.sums["grad_norm"]) == float(clipped.sums["grad_norm"]) > 1e-3
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in clipped.parameters if p.grad is not None]))
    assert float(norm) == pytest.approx(1e-6, rel=1e-3)


# ------------------------------------------------------------------------------------------------------------- resuming


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("halting", "planner", "dataset"),
    [
        ("fixed", "none", "sudoku4"),
        ("bce", "latent_paths", "sudoku4"),
        ("dqn", "continuous_thought", "sudoku4"),
        ("dqn", "continuous_thought", "mixed"),
    ],
)
@pytest.mark.parametrize("death", [7, 13])
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halting: str, planner: str, dataset: str, death: int
) -> None:
    def settings(name: str) -> dict[str, Any]:
        return _settings(tmp_path / name, halting=halting, planner=planner) | {"dataset": dataset}

    whole, broken, resumed = PlainRun(), PlainRun(), PlainRun()
    train_loop(settings("whole"), whole)
    step = Trainer.train_step

    def dying(trainer: Trainer) -> None:
        if trainer.step == death:
            raise _Killed
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", dying)
    with pytest.raises(_Killed):
        train_loop(settings("broken"), broken)
    resumed_from: list[int] = []

    def watched(trainer: Trainer) -> None:
        resumed_from.append(trainer.step)
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", watched)
    # seeds of the new process are not those of the old one
    torch.manual_seed(123)
    train_loop(settings("broken"), resumed)
    assert resumed_from[0] == death // 5 * 5 and resumed_from[0] % 8, "the last checkpoint, within an epoch"
    assert _measured(broken.reports + resumed.reports) == _measured(whole.reports)
    first, second = (torch.load(tmp_path / name / "reasoner.pt", weights_only=True) for name in ("whole", "broken"))
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


def test_a_direct_baseline_killed_in_the_middle_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed = PlainRun(), PlainRun()
    train_loop(_settings(tmp_path / "whole", direct_baseline=True), whole)
    step, taken = Trainer.train_step, list[int]()

    def dying(trainer: Trainer) -> None:
        if trainer.config.max_steps == 1 and len(taken) == 13:
            raise _Killed
        taken.append(trainer.step)
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", dying)
    with pytest.raises(_Killed):
        train_loop(_settings(tmp_path / "broken", direct_baseline=True), PlainRun())
    assert taken == list(range(13))
    taken.append(-1)
    train_loop(_settings(tmp_path / "broken", direct_baseline=True), resumed)
    # from its checkpoint at step 10, and then the model itself
    assert taken[14:] == [*range(10, 24), *range(24)]
    assert _measured(resumed.reports) == _measured(whole.reports)


def test_a_finished_run_is_reported_and_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = PlainRun(), PlainRun()
    train_loop(_settings(tmp_path), first)
    monkeypatch.setattr(Trainer, "train_step", None)
    train_loop(_settings(tmp_path), again)
    assert again.reports == first.reports[-1:]


def test_a_trial_that_is_killed_when_nothing_is_stored_has_a_row_for_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_after_kills(train_loop, _settings(tmp_path, epochs=4), tmp_path, monkeypatch)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    whole = PlainRun()
    train_loop(_settings(tmp_path / "whole", epochs=4), whole)
    assert _measured(rows) == _measured(whole.reports)


@pytest.mark.parametrize("death", [1, 3])
def test_whatever_file_was_written_last_may_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    settings, damage = _settings(tmp_path, epochs=4), partial(cut_newest, tmp_path)
    rows = rows_after_kills(train_loop, settings, tmp_path, monkeypatch, (death,), damage)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_where_the_newest_checkpoint_is_damaged_the_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    whole = PlainRun()
    train_loop(_settings(tmp_path), whole)
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:100])
    again = PlainRun()
    train_loop(_settings(tmp_path), again)
    assert _measured(again.reports) == _measured(whole.reports[-1:])


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.9, 0.2])
    monkeypatch.setattr(Trainer, "evaluate", lambda trainer: {"exact_accuracy": next(scores)})
    train_loop(_settings(tmp_path, keep_checkpoints=1), PlainRun())
    notes = [json.loads(file.read_text()) for file in sorted((tmp_path / "checkpoints").glob("*.json"))]
    # The checkpoint at step 20 holds another model than the one that was measured at step 16, so it has no metric.
    assert [(note["step"], note["metric"]) for note in notes] == [(16, 0.9), (24, 0.2)]
    assert (tmp_path / "checkpoints" / "step-000000016.pt").exists()


@pytest.mark.parametrize(
    ("change", "message"), [({"width": 24}, "width = 16"), ({"train_puzzles": 40}, "data_fingerprint")]
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    train_loop(_settings(tmp_path, epochs=1), PlainRun())
    with pytest.raises(InputError, match=f"was made with {message}"):
        train_loop(_settings(tmp_path, epochs=1, **change), PlainRun())


def test_the_seed_decides_everything() -> None:
    runs = [_losses(_trainer(seed), 6) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_averaged_weights_follow_the_trained_ones() -> None:
    trainer = _trainer(ema=0.75)
    start = _weights(trainer)
    trainer.train_step()
    average = torch.cat([p.flatten() for p in trainer.averaged])
    torch.testing.assert_close(average, start.lerp(_weights(trainer), 0.25))
    model, _ = trainer.evaluated()
    assert torch.equal(
        model.head.weight, trainer.averaged[[id(p) for p in trainer.parameters].index(id(trainer.model.head.weight))]
    )
    plain, _ = _trainer(ema=0.0).evaluated()
    assert torch.equal(plain.head.weight, _trainer(ema=0.0).model.head.weight)


# ---------------------------------------------------------------------------------------------------------------- times


class _Clock:
    """A clock that the training itself moves: 1 s for a step, 100 s for an evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.computed = 0.0, 0.0
        self.steps_left = 10**9
        step, evaluate = Trainer.train_step, Trainer.evaluate

        def timed_step(trainer: Trainer) -> None:
            if not self.steps_left:
                raise _Killed
            self.steps_left -= 1
            self.now += 1.0
            step(trainer)

        def timed_evaluate(trainer: Trainer) -> dict[str, Any]:
            self.now += 100.0
            return evaluate(trainer)

        monkeypatch.setattr(Trainer, "train_step", timed_step)
        monkeypatch.setattr(Trainer, "evaluate", timed_evaluate)
        monkeypatch.setattr(module, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        # read at both ends of a step
        self.computed += 0.25
        return self.computed


def test_seconds_of_the_epochs_add_up_to_the_time_of_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, run = _Clock(monkeypatch), PlainRun()
    train_loop(_settings(tmp_path, direct_baseline=True), run)
    # the baseline's 24 steps and its evaluation, then three epochs of 8 steps and an evaluation
    assert [row["seconds"] for row in run.reports] == [24 + 100 + 108, 108, 108]
    assert sum(row["seconds"] for row in run.reports) == clock.now
    assert [row["rows_per_second"] for row in run.reports] == [8.0] * 3, "training alone"
    assert [row["cpu_seconds"] for row in run.reports] == [2.0, 4.0, 6.0], "without the baseline"


def test_seconds_leave_out_the_pause_between_two_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, first, second = _Clock(monkeypatch), PlainRun(), PlainRun()
    clock.steps_left = 12
    with pytest.raises(_Killed):
        train_loop(_settings(tmp_path), first)
    clock.now, clock.steps_left = clock.now + 10_000.0, 10**9
    train_loop(_settings(tmp_path), second)
    assert [row["seconds"] for row in first.reports + second.reports] == [108.0] * 3
    assert [row["rows_per_second"] for row in first.reports + second.reports] == [8.0] * 3
    assert [row["cpu_seconds"] for row in first.reports + second.reports] == [2.0, 4.0, 6.0]


# -------------------------------------------------------------------------------------------------------------- workers


class _Worker(PlainRun):
    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size


def _work(rank: int, folder: str, cases: dict[str, tuple[dict[str, Any], int | None]]) -> None:
    """Train each case beside the other worker, until its step of death, and write down what was seen."""
    torch.set_num_threads(1)
    step = Trainer.train_step
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for name, (settings, death) in cases.items():
        baseline_steps: list[int] = []

        def watched(trainer: Trainer, death: int | None = death, steps: list[int] = baseline_steps) -> None:
            if trainer.step == death:
                raise _Killed
            if trainer.config.max_steps == 1:
                steps.append(trainer.step)
            step(trainer)

        Trainer.train_step = watched  # type: ignore[method-assign]
        run = _Worker(rank, 2)
        try:
            train_loop(settings, run)
        except _Killed:
            pass
        seen = {"losses": [report["train_loss"] for report in run.reports], "baseline_steps": baseline_steps}
        last = run.reports[-1] if run.reports else None
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(seen | {"last": last}, default=str))
        # one that ends while the other still talks to it would bring that one down
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


PAIRS: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "fixed": ({"halting": "fixed", "max_steps": 4}, "sudoku4", None),
    "bce": ({"halting": "bce", "max_steps": 4}, "sudoku4", None),
    "killed": ({"halting": "bce", "max_steps": 4}, "sudoku4", 13),
    "dqn": ({"halting": "dqn", "max_steps": 4}, "sudoku4", None),
    "mixed": ({"halting": "bce", "max_steps": 4}, "mixed", None),
    "baseline": ({"direct_baseline": True}, "sudoku4", None),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two workers left of each of `PAIRS`, all trained by the same two processes."""
    folder = tmp_path_factory.mktemp("pairs")
    cases = {name: (_pair_settings(folder, name), death) for name, (_, _, death) in PAIRS.items()}
    torch.multiprocessing.spawn(_work, args=(str(folder), cases), nprocs=2)
    return folder


def _pair_settings(folder: Path, name: str) -> dict[str, Any]:
    config, dataset, _ = PAIRS[name]
    return _settings(folder / name, **config) | {"dataset": dataset}


def _seen(pairs: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (json.loads((pairs / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed", "bce", "mixed"])
def test_two_workers_train_like_one(pairs: Path, tmp_path: Path, name: str) -> None:
    alone = PlainRun()
    train_loop(_pair_settings(tmp_path, name), alone)
    first, second = _seen(pairs, name)
    assert first["losses"] == pytest.approx([report["train_loss"] for report in alone.reports], rel=2e-3)
    # each reports the mean over all rows
    assert first["losses"] == second["losses"]
    weights = [torch.load(place / name / "reasoner.pt", weights_only=True)["model"] for place in (tmp_path, pairs)]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_what_two_workers_left_one_takes_up_in_the_middle_of_the_epoch(pairs: Path, tmp_path: Path) -> None:
    alone, rest = PlainRun(), PlainRun()
    train_loop(_pair_settings(tmp_path, "killed"), alone)
    train_loop(_pair_settings(pairs, "killed"), rest)
    expected = [report["train_loss"] for report in alone.reports[1:]]
    assert [report["train_loss"] for report in rest.reports] == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
def test_two_workers_with_a_replay_each_report_the_rows_of_all(pairs: Path) -> None:
    # their values differ from those of one worker
    first, second = _seen(pairs, "dqn")
    assert first["losses"] == second["losses"] and len(first["losses"]) == 3


@pytest.mark.slow
def test_all_workers_train_the_direct_baseline(pairs: Path, tmp_path: Path) -> None:
    # A worker that waits while another one trains a whole model runs into the time limit of its next collective.
    first, second = _seen(pairs, "baseline")
    assert first["baseline_steps"] == second["baseline_steps"] == list(range(24))
    alone = PlainRun()
    train_loop(_settings(tmp_path / "alone", direct_baseline=True), alone)
    for name in ("direct_token_accuracy", "majority_token_accuracy"):
        assert first["last"][name] == pytest.approx(alone.reports[-1][name], abs=0.1) and name not in second["last"]
