"""Training on a tiny teacher: what moves and what does not, what a component without a gradient does, and resuming."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.sweeps.killed import rows_after_kills
from tests.trainables.common.tiny_package import installed
from tests.trainables.sad_student.conftest import SMALL
from trainables.common.context import PlainRun
from trainables.common.errors import InputError
from trainables.common.monitor import DeadComponentError
from trainables.sad_student.data import Material
from trainables.sad_student.train import train_loop
from trainables.sad_student.trainer import Trainer

pytestmark = installed("smollm2")
Make = Callable[..., Material]


def trained(material: Material, steps: int = 2, **settings: Any) -> Trainer:
    trainer = Trainer(dataclasses.replace(SMALL, **settings), material, 0, "cpu")
    for _ in range(steps):
        trainer.train_step()
    return trainer


@pytest.mark.parametrize("rank", [0, 4])
def test_the_student_moves_and_the_teacher_does_not(material: Make, rank: int) -> None:
    one = material()
    teacher = {name: p.clone() for name, p in one.teacher.model.state_dict().items()}
    trainer = Trainer(dataclasses.replace(SMALL, rank=rank), one, 0, "cpu")
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.train_step()
    trainer.train_step()
    moved = [not torch.equal(p, old) for p, old in zip(trainer.parameters, before, strict=True)]
    assert all(moved) and all(torch.equal(p, teacher[name]) for name, p in one.teacher.model.state_dict().items())
    row = trainer.monitor.end_epoch()
    assert {n.split("/")[1] for n in row} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(norm > 0 for norm in row.values())


def test_without_the_reasoning_mask_the_update_is_another(material: Make) -> None:
    one = trained(material(), 1)
    other = trained(material(), 1, reasoning_weight="0")
    again = trained(material(), 1)
    apart = [not torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True)]
    assert any(apart) and all(torch.equal(a, b) for a, b in zip(one.parameters, again.parameters, strict=True))
    # and on one trajectory the loss is the weighted mean of the spans' divergences
    item = one.items[0]
    values = one.scheduled(0)
    both = float(one.loss([item], values))
    parts = [float(one.loss([item], values | {"reasoning_weight": r, "action_weight": a})) for r, a in ((1, 0), (0, 1))]
    assert both == pytest.approx(2.5 * parts[0] + 1.8 * parts[1], rel=1e-5)


def test_random_logits_fail_the_component_monitor(material: Make) -> None:
    """The system that this family replaces trained on logits that no parameter had made."""

    class RandomLogits(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.randn(*hidden.shape[:-1], self.out_features, requires_grad=True)

    one = material()
    head = RandomLogits(16, len(one.vocabulary), bias=False)
    head.weight = one.student.model.embed_tokens.weight
    one.student.lm_head = head
    trainer = trained(one, 4)
    with pytest.raises(DeadComponentError, match="q_proj"):
        trainer.end_epoch()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "ce"}, {"loss": "token_kd", "divergence": "js"}, {"loss": "sad", "divergence": "skew"},
        {"loss": "sad", "depth": "linear:1:4:50%", "reasoning_weight": "linear:0.5:2.0", "entropy_weight": 0.1},
        {"loss": "sad", "consistency_weight": 1.0, "temperature": 2.0, "adaptive_temperature": True, "rank": 4},
    ],
)  # fmt: skip
def test_each_loss_falls_on_what_it_is_trained_on(material: Make, settings: dict[str, Any]) -> None:
    trainer = trained(material(), 0, **settings)
    values = trainer.scheduled(0)
    before = float(trainer.loss(trainer.items, values))
    for _ in range(8):
        trainer.train_step()
    assert float(trainer.loss(trainer.items, values)) < before


def test_a_curriculum_begins_with_what_is_easy(material: Make) -> None:
    trainer = trained(material(), 0, depth="linear:1:4:50%")
    assert {item.tokens.trajectory.difficulty for item in trainer.rows_at(0, trainer.scheduled(0))} == {1}
    last = [i for s in range(4, 8) for i in trainer.rows_at(s, trainer.scheduled(s))]
    assert {item.tokens.trajectory.difficulty for item in last} == {1, 2, 3}


def test_guided_learns_from_its_own_tokens_within_the_budget_of_the_others(material: Make) -> None:
    one = material()
    trainer = trained(one, 4, loss="guided", teacher_share="linear:0.5:0")
    assert trainer.guided_from == 4 and not trainer.buffer
    offline = trainer.teacher_tokens
    trainer.train_step()
    assert trainer.buffer and trainer.teacher_tokens > offline
    own = np.concatenate([item.own for item in trainer.buffer if item.own is not None])
    assert own.any() and not own.all()
    for item in trainer.buffer:
        assert item.own is not None and len(item.own) == len(item.tokens.ids) == len(item.targets.ids)
    assert trainer.scheduled(4)["teacher_share"] == 0.5 and trainer.scheduled(7)["teacher_share"] < 0.5


def test_a_trial_that_is_killed_when_nothing_is_stored_has_a_row_for_every_epoch(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.asdict(dataclasses.replace(SMALL, loss="ce", epochs=3))
    settings = {"config": config, "source": source, "seed": 0, "folder": str(tmp_path)}
    rows = rows_after_kills(train_loop, settings, tmp_path, monkeypatch, deaths=(0, 1))
    assert [row["epoch"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("loss", ["sad", "guided"])
def test_a_run_goes_on_in_the_middle_of_an_epoch_with_the_same_losses(
    source: dict[str, Any], tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.asdict(dataclasses.replace(SMALL, loss=loss, rollouts=2))

    def run(folder: str) -> list[dict[str, Any]]:
        plain = PlainRun()
        train_loop({"config": config, "source": source, "seed": 0, "folder": str(tmp_path / folder)}, plain)
        return plain.reports

    whole = run("whole")
    step = Trainer.train_step

    def stops(trainer: Trainer) -> None:
        # after the checkpoint of step 5, in the second epoch
        if trainer.step == 6:
            raise KeyboardInterrupt
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    monkeypatch.setattr(Trainer, "train_step", step)
    broken = run("broken")
    timing = ("seconds", "tokens_per_second")
    assert {n: v for n, v in broken[-1].items() if n not in timing} == {
        n: v for n, v in whole[-1].items() if n not in timing
    }
    shown = json.loads((tmp_path / "broken" / "episode.json").read_text())
    assert len(shown["texts"]) == len(shown["spans"]) == len(shown["kl"])
    with pytest.raises(InputError, match="was made with lr = 0.003, but this run has 0.1"):
        config["lr"] = 0.1
        run("broken")


def test_a_saved_student_has_the_whole_vocabulary_and_the_same_answers(material: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    one = material()
    trainer = trained(one, 3, rank=4)
    trainer.export(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == len(tokenizer) and loaded.config.num_hidden_layers == 1
    row = one.train[0]
    own = torch.tensor([[one.vocabulary.kept[i] for i in row.ids]])  # type: ignore[index]
    assert tokenizer.decode(own[0]) == row.trajectory.text
    ours = trainer.evaluated().float()(torch.from_numpy(row.ids)[None]).logits
    torch.testing.assert_close(loaded(own).logits[..., one.vocabulary.kept], ours, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("given", ["file", "teacher"])
def test_a_users_file_is_trained_on_and_a_teacher_without_success_leaves_nothing(
    source: dict[str, Any], tmp_path: Path, given: str
) -> None:
    file = tmp_path / "mine.jsonl"
    lines = [{"text": f"Add {n}.\nThought: I add {n}.\nAction: calc {n}+{n}\nObservation: ok\n"} for n in range(20)]
    file.write_text("\n".join(map(json.dumps, lines)))
    source = source | {"trajectories": str(file) if given == "file" else given}
    config = dataclasses.asdict(dataclasses.replace(SMALL, epochs=1, mode="research"))
    run = PlainRun()
    settings = {"config": config, "source": source, "seed": 0, "folder": str(tmp_path / "run")}
    if given == "teacher":
        # random weights solve nothing
        with pytest.raises(InputError, match="--trajectories teacher leaves 0 to train on, fewer than the 4"):
            train_loop(settings, run)
        return
    train_loop(settings, run)
    assert run.reports[-1]["kl_action"] > 0 and run.reports[-1]["token_accuracy_reasoning"] >= 0
