"""Held-out evaluation: means over examples, whatever the batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainables.arc import EOS, ROW_END, Example, Pair
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.data import collate
from trainables.atomic_lora.decoding import generate, grid_metrics
from trainables.atomic_lora.evaluation import autoregressive, by_size, mean_metrics, teacher_forced
from trainables.atomic_lora.loss import row_losses
from trainables.atomic_lora.model import Champion

TINY = ChampionConfig(
    width=16, heads=2, feedforward=24, decoder_layers=1, context_width=8, context_heads=2, context_feedforward=16
)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Champion:
    torch.manual_seed(0)
    model = Champion(TINY).double().train()
    with torch.no_grad():
        # short answers
        model.head.bias[[ROW_END, EOS]] += 3.0
    return model


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)

    def pair() -> Pair:
        sides = rng.integers(1, 5, 4)
        return Pair(*(rng.integers(0, 10, sides[i : i + 2]).astype(np.int8) for i in (0, 2)))

    return [Example((pair(), pair()), pair()) for _ in range(7)]


def test_batches_hold_every_example_once_in_order_of_size(examples: list[Example]) -> None:
    batches = by_size(examples, 3)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(id(e) for batch in batches for e in batch) == sorted(map(id, examples))
    sizes = [e.query.input.shape[0] * (e.query.input.shape[1] + 1) for batch in batches for e in batch]
    outputs = [e.query.output.shape[0] * (e.query.output.shape[1] + 1) for batch in batches for e in batch]
    totals = [a + b for a, b in zip(sizes, outputs, strict=True)]
    assert totals == sorted(totals)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_teacher_forced_is_the_mean_over_examples(model: Champion, examples: list[Example], batch_size: int) -> None:
    losses, accuracies = [], []
    with torch.no_grad():
        for example in examples:
            batch = collate([example])
            logits = model(batch)
            total, count = row_losses(logits, batch.target[:, 0])
            losses.append(float(total / count))
            output, length = example.query.output, batch.target.shape[2]
            chosen = logits[0].argmax(-1)[: length - 1].reshape(output.shape[0], -1)[:, :-1].numpy()
            accuracies.append(float((chosen == output).mean()))
    metrics = teacher_forced(model, examples, "cpu", batch_size)
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert metrics["teacher_forced_cell_accuracy"] == pytest.approx(np.mean(accuracies), rel=1e-6)
    assert all(type(value) is float for value in metrics.values()) and not model.training


def test_autoregressive_is_the_mean_over_examples(model: Champion, examples: list[Example]) -> None:
    rows = [grid_metrics(generate(model, [example])[0], example) for example in examples]
    metrics = autoregressive(model, examples, "cpu", batch_size=3)
    assert metrics["cell_accuracy"] == pytest.approx(np.mean([row["cell"] for row in rows]))
    assert metrics["copy_cell_accuracy"] == pytest.approx(np.mean([row["copy_cell"] for row in rows]))
    assert all(0.0 <= value <= 1.0 for value in metrics.values())


def test_change_recall_averages_where_something_changes() -> None:
    row = {"grid": 1.0, "cell": 0.5, "size": 0.0, "copy_grid": 0.0, "copy_cell": 0.25, "change_recall": 0.5}
    means = mean_metrics([row, row | {"grid": 0.0, "change_recall": math.nan}])
    assert means == {
        "grid_accuracy": 0.5,
        "cell_accuracy": 0.5,
        "size_accuracy": 0.0,
        "change_recall": 0.5,
        "copy_grid_accuracy": 0.0,
        "copy_cell_accuracy": 0.25,
    }
    assert mean_metrics([row | {"change_recall": math.nan}])["change_recall"] is None
