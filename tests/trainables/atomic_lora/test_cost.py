"""What an adapter is expected to cost, beside the tokens that it really trains on."""

from __future__ import annotations

import pytest

from trainables.arc import EVALUATION, grid_tokens, load_tasks, training_examples
from trainables.atomic_lora.cost import (
    ANSWERED_PATCHES,
    DECODED_TOKENS,
    EXAMPLE_PATCHES,
    EXAMPLE_TOKENS,
    epoch_patches,
    epoch_tokens,
    evaluation_patches,
    evaluation_tokens,
)
from trainables.atomic_lora.data import example_tokens


def test_an_epoch_costs_the_tokens_of_its_examples() -> None:
    # of tasks whose context pairs are read in full
    tasks = sorted(load_tasks().values(), key=lambda task: (task.tokens, task.id))[:200:20]
    for task in tasks:
        drawn = [example_tokens(example) for epoch in range(50) for example in training_examples(task, 8, 0, epoch)]
        expected = epoch_tokens(task, 8) - 8 * EXAMPLE_TOKENS
        assert sum(drawn) / 50 == pytest.approx(expected, rel=0.05), task.id


def test_an_evaluation_costs_the_outputs_of_all_test_pairs() -> None:
    task = next(task for task in load_tasks().values() if len(task.test) > 1)
    assert evaluation_tokens(task) == DECODED_TOKENS * sum(grid_tokens(pair.output) for pair in task.test)


def test_on_a_canvas_patches_are_what_counts() -> None:
    # two demonstrations and a test pair of 2 x 2 to 6 x 6
    task = load_tasks(EVALUATION, ["00576224"])["00576224"]
    assert epoch_patches(task, 8) == 8 * (9 + EXAMPLE_PATCHES) and evaluation_patches(task) == 9 * ANSWERED_PATCHES
