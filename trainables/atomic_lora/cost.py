"""What an adapter costs, in tokens or patches trained on: by this a sweep estimates the time that it has left.

The constants for tokens were fitted to the processor time of 80 tasks on one core, those for patches to when the
adapters of a demo ended (docs/log.md).
"""

from __future__ import annotations

from trainables.arc import CONTEXT_PAIRS, Pair, Task, grid_tokens

# An example costs as much as this many tokens beside its own: preparation, steps of the optimizer, small products.
EXAMPLE_TOKENS = 128
# A token that is decoded costs as much as this many that are trained on: they come one at a time.
DECODED_TOKENS = 40
# The same for a canvas model: an example costs so many patches beside its own, and the evaluation of a test pair, whose
# views are all answered, so many times its patches.
EXAMPLE_PATCHES, ANSWERED_PATCHES = 40, 20


def epoch_tokens(task: Task, examples: int) -> float:
    """Return what an epoch of ``examples`` examples costs: a query each, and as many context pairs as it shows.

    Context pairs count in full, although the model reads only a part of long ones: that makes up for attention, whose
    cost grows faster than the number of tokens.
    """
    pairs = len(task.train)
    mean = sum(grid_tokens(pair.input) + grid_tokens(pair.output) for pair in task.train) / pairs
    return examples * (mean * (1 + min(CONTEXT_PAIRS, pairs - 1)) + EXAMPLE_TOKENS)


def evaluation_tokens(task: Task) -> float:
    """Return what the evaluation of a trained adapter costs: the outputs of all test pairs are decoded."""
    return DECODED_TOKENS * sum(grid_tokens(pair.output) for pair in task.test)


def epoch_patches(task: Task, examples: int) -> float:
    """Return what an epoch of ``examples`` examples costs on a canvas model."""
    return examples * (sum(map(_patches, task.train)) / len(task.train) + EXAMPLE_PATCHES)


def evaluation_patches(task: Task) -> float:
    """Return what the evaluation of a trained adapter of a canvas model costs."""
    return ANSWERED_PATCHES * sum(map(_patches, (*task.test, *task.official)))


def _patches(pair: Pair) -> int:
    # patches of 2 x 2 pixels on a square
    return ((max(*pair.input.shape, *pair.output.shape) + 1) // 2) ** 2
