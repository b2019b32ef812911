"""Pairs to train on and held-out pairs, each with the prompt of other demonstrations, and batches of them.

Trials are compared on validation pairs: those of generated tasks, else the last demonstration of every fourth task with
three or more, which is not trained on. Test pairs are only reported on. The prompt of a training pair is made of other
demonstrations of its task (leave-one-out), that of a held-out pair of the first demonstrations. Grids lie in the upper
left corner of a square canvas; its side depends on the task's demonstrations and test inputs, never on a test output.
numpy only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainables.arc import COLOURS, MAX_SIDE, Grid, Pair, Task, pair_key, split_demonstrations
from trainables.common.errors import InputError

OUTSIDE = COLOURS
# sides of canvases; a batch holds tasks of one side
CANVASES = (5, 10, 15, 20, MAX_SIDE)
# Among tasks without validation pairs, every fourth gives up a demonstration.
VALIDATED = 4
# prompts of a task with more pairs than it has prompts
PROMPTS_PER_TASK = 4


@dataclass(frozen=True)
class Item:
    """A pair with the demonstrations of its prompt.

    Attributes:
        task: Place of its task.
        pair: The pair; of a held-out one the output is only compared with.
        prompt: Place of its prompt among the prompts of the dataset.
        canvas: Side of its canvas.
    """

    task: int
    pair: Pair
    prompt: int
    canvas: int


@dataclass(frozen=True)
class Dataset:
    """Tasks as items.

    Attributes:
        ids: Ids of the tasks.
        prompts: The demonstrations of each prompt.
        train: Items to train on.
        validation: Pairs that trials are compared on.
        held_out: Test pairs.
        official: Official test pairs, where the others are generated; empty for ARC's own tasks.
        left_out: By task, demonstrations that are not trained on because they show one that is validated on.
    """

    ids: tuple[str, ...]
    prompts: tuple[tuple[Pair, ...], ...]
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    held_out: tuple[Item, ...]
    official: tuple[Item, ...] = ()
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Items as arrays; ``OUTSIDE`` marks cells beyond a grid.

    Attributes:
        inputs, targets: int64 [B, S, S].
        input_size, target_size: Height and width, int64 [B, 2].
        prompt: Place of the prompts, int64 [B].
        task: Place of the tasks, int64 [B].
    """

    inputs: np.ndarray
    targets: np.ndarray
    input_size: np.ndarray
    target_size: np.ndarray
    prompt: np.ndarray
    task: np.ndarray


def make_dataset(tasks: Mapping[str, Task], max_side: int, prompt_pairs: int) -> Dataset:
    """Return the items of all tasks whose sides are at most ``max_side``.

    Raises:
        InputError: If there is no such task, or none with a validation pair.
    """
    prompts: dict[Hashable, int] = {}
    demonstrations: list[tuple[Pair, ...]] = []
    ids: list[str] = []
    train: list[Item] = []
    validation: list[Item] = []
    held_out: list[Item] = []
    able = 0
    official: list[Item] = []
    left_out: dict[str, Mapping[str, int]] = {}

    def prompt_of(pairs: Sequence[Pair]) -> int:
        key = tuple(pair_key(pair) for pair in pairs)
        if key not in prompts:
            prompts[key] = len(demonstrations)
            demonstrations.append(tuple(pairs))
        return prompts[key]

    for task_id, task in tasks.items():
        side = known_side(task)
        if side > max_side or len(task.train) < 2:
            continue
        canvas = next(canvas for canvas in CANVASES if canvas >= side)
        number = len(ids)
        ids.append(task_id)
        known, kept = task.train, task.validation
        if not kept and len(known) > 2:
            known, kept = split_demonstrations(task, int(able % VALIDATED == 0))
            able += 1
            if len(known) + len(kept) < len(task.train):
                left_out[task_id] = {"held_out": len(task.train) - len(known) - len(kept)}
        for place, pair in enumerate(known):
            others = leave_one_out(known, place, prompt_pairs)
            if others:
                train.append(Item(number, pair, prompt_of(others), canvas))
        test_prompt = prompt_of(known[:prompt_pairs])
        validation += [Item(number, pair, test_prompt, canvas) for pair in kept]
        held_out += [Item(number, pair, test_prompt, canvas) for pair in task.test]
        official += [Item(number, pair, test_prompt, canvas) for pair in task.official]
    if not train:
        raise InputError(f"No task has sides of at most {max_side} and two different pairs; raise max_side.")
    if not validation:
        raise InputError("No task has three demonstrations, so that one could be validated on; choose others.")
    return Dataset(
        tuple(ids), tuple(demonstrations), tuple(train), tuple(validation), tuple(held_out), tuple(official), left_out
    )


def known_side(task: Task) -> int:
    """Return the longest side among what a solver sees: the demonstrations and the test inputs."""
    seen = [grid for pair in task.train for grid in (pair.input, pair.output)]
    return max(max(grid.shape) for grid in (*seen, *(pair.input for pair in (*task.test, *task.official))))


def leave_one_out(pairs: Sequence[Pair], place: int, count: int) -> tuple[Pair, ...]:
    """Return up to ``count`` demonstrations of the prompt of the pair at ``place``: others than itself or its equals.

    A task with few pairs has a prompt for each; one with many has `PROMPTS_PER_TASK`.
    """
    own = pair_key(pairs[place])
    if len(pairs) <= PROMPTS_PER_TASK * count:
        turned = [*pairs[place + 1 :], *pairs[:place]]
        return tuple(pair for pair in turned if pair_key(pair) != own)[:count]
    for offset in range(PROMPTS_PER_TASK):
        start = (place + offset) % PROMPTS_PER_TASK * count
        chosen = tuple(pairs[start : start + count])
        if own not in {pair_key(pair) for pair in chosen}:
            return chosen
    return ()


def epoch_batches(items: Sequence[Item], batch_size: int, per_task: int, seed: int, epoch: int) -> list[list[Item]]:
    """Return the batches of an epoch; the same arguments give the same ones, and every epoch has as many.

    Args:
        items: Items to train on.
        batch_size: Of a batch; the last of a canvas may be smaller.
        per_task: Items of a task, drawn anew each epoch; 0 takes all.
        seed, epoch: Of the order.
    """
    rng = np.random.default_rng([seed, epoch])
    chosen: list[Item] = []
    by_task: dict[int, list[Item]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    for own in by_task.values():
        order = rng.permutation(len(own))
        chosen += [own[i] for i in (order[:per_task] if per_task else order)]
    batches = []
    for canvas in CANVASES:
        fitting = [item for item in chosen if item.canvas == canvas]
        order = rng.permutation(len(fitting))
        batches += [[fitting[i] for i in order[k : k + batch_size]] for k in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yield items in batches of one canvas, in order."""
    for canvas in CANVASES:
        fitting = [item for item in items if item.canvas == canvas]
        for start in range(0, len(fitting), batch_size):
            yield fitting[start : start + batch_size]


def collate(items: Sequence[Item]) -> Batch:
    """Return items of one canvas as arrays. What of a test output lies beyond the canvas is left out."""
    side = items[0].canvas
    return Batch(
        np.stack([_square(item.pair.input, side) for item in items]),
        np.stack([_square(item.pair.output, side) for item in items]),
        np.array([item.pair.input.shape for item in items]),
        np.array([item.pair.output.shape for item in items]),
        np.array([item.prompt for item in items]),
        np.array([item.task for item in items]),
    )


def _square(grid: Grid, side: int) -> np.ndarray:
    square = np.full((side, side), OUTSIDE, dtype=np.int64)
    inner = grid[:side, :side]
    square[: inner.shape[0], : inner.shape[1]] = inner
    return square
