"""Prompts come from demonstrations alone, pairs are never their own demonstration, and batches are repeatable."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.trainables.arc_efe.tiny import make_tasks
from trainables.arc import Pair, load_tasks, pair_key
from trainables.arc_efe.data import OUTSIDE, collate, epoch_batches, evaluation_batches, leave_one_out, make_dataset
from trainables.arc_efe.prompts import CHANGES, facts_of, variants
from trainables.common.errors import InputError


def test_no_pair_is_a_demonstration_of_its_own_prompt() -> None:
    for tasks in (load_tasks(), make_tasks(pairs=40)):
        dataset = make_dataset(tasks, 30, 3)
        for item in (*dataset.train, *dataset.validation, *dataset.held_out):
            shown = {pair_key(pair) for pair in dataset.prompts[item.prompt]}
            assert shown and pair_key(item.pair) not in shown
            assert shown <= {pair_key(pair) for pair in tasks[dataset.ids[item.task]].train}


def test_what_trials_are_compared_on_is_neither_trained_on_nor_a_test_pair() -> None:
    tasks = load_tasks()
    dataset = make_dataset(tasks, 30, 3)
    assert 50 < len(dataset.validation) < 100
    trained = {(item.task, pair_key(item.pair)) for item in dataset.train}
    for item in dataset.validation:
        task = tasks[dataset.ids[item.task]]
        assert (item.task, pair_key(item.pair)) not in trained
        assert pair_key(item.pair) == pair_key(task.train[-1]) and len(task.train) > 2


def test_tasks_without_anything_to_validate_on_are_refused() -> None:
    with pytest.raises(InputError, match="No task has three demonstrations"):
        make_dataset(make_tasks(3, pairs=2), 30, 2)


def test_a_task_with_many_pairs_has_few_prompts() -> None:
    pairs = make_tasks(1, pairs=40)["task0"].train
    prompts = {tuple(map(pair_key, leave_one_out(pairs, place, 3))) for place in range(40)}
    assert len(prompts) == 4 and len(make_dataset(make_tasks(3, pairs=40), 30, 3).prompts) == 12


def test_a_test_output_changes_neither_prompt_nor_canvas() -> None:
    tasks = make_tasks()
    other = {
        name: dataclasses.replace(
            task, test=tuple(Pair(pair.input, np.full((9, 9), 7, dtype=np.int8)) for pair in task.test)
        )
        for name, task in tasks.items()
    }
    mine, changed = make_dataset(tasks, 30, 2), make_dataset(other, 30, 2)
    assert [[variants(d, None) for d in ds.prompts] for ds in (mine, changed)][0] == [
        variants(d, None) for d in changed.prompts
    ]
    assert [(i.prompt, i.canvas) for i in mine.held_out] == [(i.prompt, i.canvas) for i in changed.held_out]
    batch = collate(changed.held_out[:2])
    assert (batch.targets == 7).all() and (batch.target_size == 9).all()


def test_every_change_says_more_or_less_and_a_rule_is_json() -> None:
    demonstrations = make_tasks()["task1"].train
    facts = facts_of(demonstrations)
    assert facts["changes"] == "1 to 3" and "0 1 to 0 3" in facts["colours"]
    plain, rule = variants(demonstrations, None), variants(demonstrations, "recolour 1")
    assert len(set(plain)) == len(set(rule)) == len(CHANGES)
    assert plain[0].startswith("Input\n") and plain[0] in plain[1]
    assert [list(json.loads(text)) for text in rule[:3]] == [["rule"], ["rule", "sizes"], ["rule", "colours"]]
    assert json.loads(rule[-1]) == facts


def test_epochs_have_as_many_batches_and_each_pair_once() -> None:
    train = make_dataset(make_tasks(5, pairs=5), 30, 2).train
    first, second = (epoch_batches(train, 4, 0, 7, epoch) for epoch in (1, 2))
    orders = [
        [id(item) for batch in some for item in batch] for some in (first, second, epoch_batches(train, 4, 0, 7, 1))
    ]
    assert len(first) == len(second) and orders[0] != orders[1] and orders[0] == orders[2]
    assert sorted(map(id, (item for batch in first for item in batch))) == sorted(map(id, train))
    some = [item for batch in epoch_batches(train, 4, 2, 7, 1) for item in batch]
    assert np.bincount([item.task for item in some]).tolist() == [2] * 5
    assert sum(len(batch) for batch in evaluation_batches(train, 4)) == len(train)


def test_grids_lie_in_the_upper_left_corner() -> None:
    item = make_dataset(make_tasks(), 30, 2).train[0]
    batch = collate([item])
    height, width = item.pair.input.shape
    assert (batch.inputs[0, :height, :width] == item.pair.input).all()
    assert (batch.inputs[0, height:] == OUTSIDE).all() and (batch.inputs[0, :, width:] == OUTSIDE).all()


def test_no_task_that_fits_is_refused() -> None:
    with pytest.raises(InputError, match="No task has sides of at most 1"):
        make_dataset(make_tasks(), 1, 2)
