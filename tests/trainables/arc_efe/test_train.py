"""The whole system trains: leakage, resume in mid-epoch, a language model with a gradient, and what fails by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.sweeps.killed import rows_after_kills
from tests.trainables.arc_efe.tiny import make_tasks, save_language_model, tiny_config
from trainables.arc import Pair, compare
from trainables.arc_efe import language, train
from trainables.arc_efe.config import EfeConfig
from trainables.arc_efe.data import Dataset, collate, make_dataset
from trainables.arc_efe.evaluation import solve
from trainables.arc_efe.trainer import Trainer, size_schedule
from trainables.common.context import PlainRun
from trainables.common.errors import InputError
from trainables.common.monitor import DeadComponentError


def _dataset(count: int = 4) -> Dataset:
    return make_dataset(make_tasks(count), 30, 2)


def _settings(config: EfeConfig, folder: Path) -> dict[str, Any]:
    settings = {"config": dataclasses.asdict(config), "seed": 0, "folder": str(folder)}
    return settings | {"data": "tiny", "tasks": list(make_tasks())}


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    train.load_dataset.cache_clear()
    monkeypatch.setattr(train, "load_tasks", lambda data, ids: {i: make_tasks()[i] for i in ids})


def _trained(config: EfeConfig, steps: int, dataset: Dataset | None = None) -> Trainer:
    trainer = Trainer(config, dataset or _dataset(), 0, "cpu")
    for _ in range(steps):
        trainer.train_step()
    return trainer


def test_a_trial_that_is_killed_when_nothing_is_stored_has_a_row_for_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tiny_config("", prompt="none", epochs=4), tmp_path)
    rows = rows_after_kills(train.train_loop, settings, tmp_path, monkeypatch)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_a_run_leaves_rows_weights_and_answers(language_model: str, tmp_path: Path) -> None:
    run = PlainRun()
    train.train_loop(_settings(tiny_config(language_model, no_prompt_baseline=True), tmp_path), run)
    assert [row["epoch"] for row in run.reports] == [1, 2]
    last = run.reports[-1]
    for term in ("risk", "ambiguity", "step", "consistency", "bidirectional", "preference", "prompt", "size", "policy"):
        assert last[f"term_grad_norm/{term}"] > 0 and np.isfinite(last[f"term/{term}"]), term
    for part in ("encoder", "steps", "size_head", "prompt_reader", "memory_reader", "likelihood", "backward_model",
                 "pair_encoder", "policy", "baseline"):  # fmt: skip
        assert last[f"grad_norm/{part}"] > 0 and last[f"update_norm/{part}"] > 0, part
    assert last["no_prompt_cell_accuracy"] >= 0 and last["lm_grad_norm"] == 0.0 and last["memory_entries"] > 0
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) == 8 and answers[0]["prompt"].startswith("Input")
    assert torch.load(tmp_path / "agent.pt", weights_only=True)["config"]["prompt"] == "plain"


def test_a_run_that_is_broken_in_mid_epoch_has_the_same_losses(
    language_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(language_model)
    whole, broken = PlainRun(), PlainRun()
    train.train_loop(_settings(config, tmp_path / "whole"), whole)

    class Killed(Exception):
        pass

    step = Trainer.train_step

    def killed(trainer: Trainer) -> None:
        if trainer.step == 5:
            raise Killed
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(Killed):
        train.train_loop(_settings(config, tmp_path / "broken"), broken)
    monkeypatch.setattr(Trainer, "train_step", step)
    train.train_loop(_settings(config, tmp_path / "broken"), broken)
    left_out = {"seconds"}
    for one, other in zip(whole.reports, broken.reports, strict=True):
        assert {k: v for k, v in one.items() if k not in left_out} == {
            k: v for k, v in other.items() if k not in left_out
        }
    with pytest.raises(InputError, match=r"was made with steps = 2, but this run has 3"):
        train.train_loop(_settings(dataclasses.replace(config, steps=3), tmp_path / "broken"), PlainRun())


def test_max_batches_ends_in_mid_epoch_with_a_row(language_model: str, tmp_path: Path) -> None:
    run = PlainRun()
    train.train_loop(_settings(tiny_config(language_model, max_batches=2), tmp_path), run)
    assert [row["step"] for row in run.reports] == [2] and run.reports[0]["exact_accuracy"] >= 0


def test_a_target_changes_no_answer(language_model: str) -> None:
    trainer = _trained(tiny_config(language_model), 6)
    items = trainer.dataset.held_out
    blind = [dataclasses.replace(i, pair=Pair(i.pair.input, np.full((3, 1), 9, dtype=np.int8))) for i in items]
    mine, other = (solve(trainer.system, some, 3) for some in (items, blind))
    for one, two in zip(mine, other, strict=True):
        assert np.array_equal(one["before"], two["before"]) and np.array_equal(one["after"], two["after"])
        assert one["change"] == two["change"] and one["memory"] == two["memory"]


def test_demonstrations_of_other_tasks_cost_accuracy(language_model: str) -> None:
    trainer = _trained(tiny_config(language_model, epochs=30, hidden=24, lr=1e-2), 100)
    items = trainer.dataset.held_out
    others = {item.task: item.prompt for item in items}
    shuffled = [dataclasses.replace(item, prompt=others[(item.task + 1) % 4]) for item in items]
    cells = [
        np.mean([compare(row["after"], row["item"].pair)["cell"] for row in solve(trainer.system, some, 8)])
        for some in (items, shuffled)
    ]
    assert cells[0] > cells[1] + 0.2, cells


def test_reading_memory_changes_the_prediction(language_model: str) -> None:
    trainer = _trained(tiny_config(language_model, memory_similarity=-1.0), 6)
    batch = collate(trainer.dataset.held_out[:4])
    arrays = [torch.from_numpy(a) for a in (batch.inputs, batch.input_size, batch.prompt)]
    with torch.no_grad():
        remembering = trainer.system.answer(*arrays)
        trainer.system.memory = None
        forgetting = trainer.system.answer(*arrays)
    assert remembering.hit.all() and not forgetting.hit.any()
    assert not torch.allclose(remembering.before.logits, forgetting.before.logits)


def test_lora_gives_the_language_model_a_gradient(language_model: str) -> None:
    trainer = _trained(tiny_config(language_model, lm_training="lora", lora_rank=2, lm_layers=1), 4)
    row = trainer.end_epoch()
    assert row["lm_grad_norm"] > 0 and row["update_norm/language_model"] > 0
    assert any("lora" in name for name in trainer._weights())
    assert not any("embed_tokens" in name for name in trainer._weights())


def test_a_term_or_component_without_a_gradient_fails_by_name(
    language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the old system's reward was a constant
    from trainables.arc_efe import policy

    learned = policy.policy_loss
    monkeypatch.setattr(policy, "policy_loss", lambda *arguments: learned(*arguments).detach().requires_grad_())
    trainer = _trained(tiny_config(language_model), 4)
    with pytest.raises(DeadComponentError, match="the loss term policy"):
        trainer.end_epoch()
    monkeypatch.setattr(policy, "policy_loss", learned)
    # its memory was never written
    trainer = _trained(tiny_config(language_model, memory_similarity=1.0), 4)
    with pytest.raises(DeadComponentError, match="memory_reader"):
        trainer.end_epoch()


def test_a_language_model_under_no_grad_fails_by_name(language_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = language.LanguageModel.forward
    monkeypatch.setattr(language.LanguageModel, "forward", lambda model, rows: forward(model, rows).detach())
    trainer = _trained(tiny_config(language_model, lm_training="lora", lora_rank=2), 4)
    with pytest.raises(DeadComponentError, match="language_model"):
        trainer.end_epoch()


def test_the_size_weight_takes_three_epochs() -> None:
    schedule = size_schedule("linear:1.0:0.5", 10)
    assert [schedule.value(step, 1000) for step in (0, 15, 30, 500)] == [1.0, 0.75, 0.5, 0.5]
    assert size_schedule("linear:1.0:0.5:50%", 10).value(500, 1000) == 0.5


def test_long_prompts_are_cut_and_counted_and_embeddings_are_kept(language_model: str, cache: Path) -> None:
    texts = ["a" * 50, "b" * 5, "a" * 50]
    found, cut = language.frozen_embeddings(language_model, 1, 8, "cpu", texts)
    assert cut == 1 and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    (kept,) = cache.glob("*.npz")
    again, cut = language.frozen_embeddings(language_model, 1, 8, "cpu", texts)
    assert cut == 1 and torch.equal(again, found) and [kept] == list(cache.glob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:50])
    assert torch.equal(language.frozen_embeddings(language_model, 1, 8, "cpu", texts)[0], found)
    alone = language.frozen_embeddings(language_model, 1, 8, "cpu", ["b" * 5])[0]
    assert torch.allclose(alone[0], found[1], atol=2e-2)


def test_a_prompt_is_cut_to_the_models_context(tmp_path: Path) -> None:
    short = save_language_model(tmp_path / "short", context=16)
    model = language.LanguageModel(short, 0, 1000, "cpu")
    assert [len(row) for row in model.tokens(["x" * 40, "y"])] == [16, 1] and model.cut == 1


def test_rules_are_written_by_the_model_and_are_json(language_model: str) -> None:
    trainer = Trainer(tiny_config(language_model, prompt="rule"), _dataset(2), 0, "cpu")
    assert trainer.system.prompts is not None
    for variants in trainer.system.prompts.texts:
        assert set(json.loads(variants[0])) == {"rule"} and len(variants[0].encode()) < 400


@pytest.mark.parametrize(
    ("lm", "layers", "message"),
    [
        ("smolm2", 0, "lm 'smolm2' is not one of smollm2, minilm; or write hf:NAME_OR_FOLDER"),
        ("hf:{folder}/nowhere", 0, "cannot be loaded"),
        ("hf:{folder}/vision", 0, "has no hidden states of tokens"),
        ("{model}", 9, "lm_layers is 9, but .* has 2 layers; give at most that"),
    ],
)
def test_models_that_cannot_read_prompts_are_refused(
    lm: str, layers: int, message: str, language_model: str, tmp_path: Path
) -> None:
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(InputError, match=message):
        language.read_config(lm.format(folder=tmp_path, model=language_model), layers)


def test_official_pairs_are_a_second_held_out_set(language_model: str) -> None:
    tasks = {name: dataclasses.replace(task, official=task.test[:1]) for name, task in make_tasks().items()}
    trainer = _trained(tiny_config(language_model), 1, make_dataset(tasks, 30, 2))
    found, rows = trainer.evaluate()
    assert len(rows) == 8 and 0 <= found["official_cell_accuracy"] <= 1 and "official_exact_accuracy" in found
