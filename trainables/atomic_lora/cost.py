"""What an adapter costs, in tokens trained on: by this a sweep estimates the time that it has left.

The two constants were fitted to the processor time of 80 tasks of the demo on one core (docs/log.md).
"""

from __future__ import annotations

from trainables.arc import CONTEXT_PAIRS, Task, grid_tokens

# An example costs as much as this many tokens beside its own: preparation, steps of the optimizer, small products.
EXAMPLE_TOKENS = 128
# A token that is decoded costs as much as this many that are trained on: they come one at a time.
DECODED_TOKENS = 40


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
