"""The texts that the language model reads, made of demonstrations alone, and the ways in which a policy changes them.

A prompt is either a plain serialisation of demonstrations or a rule as JSON that a language model wrote after reading
one. `CHANGES` add facts about the demonstrations (sizes, colours, which colours change) or leave only those. No
function here sees a pair that is not a demonstration of the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from trainables.arc import COLOURS, Grid, Pair

# what a policy may do to a prompt; the first leaves it as it is
CHANGES = ("keep", "sizes", "colours", "changes", "facts", "only facts")
FACTS = {
    "keep": (), "sizes": ("sizes",), "colours": ("colours",), "changes": ("changes",),
    "facts": ("sizes", "colours", "changes"), "only facts": ("sizes", "colours", "changes"),
}  # fmt: skip
REQUEST = 'The rule that turns each input into its output, as JSON:\n{"rule": "'


def serialise(demonstrations: Sequence[Pair]) -> str:
    """Return demonstrations as text: a digit for each cell, a line for each row."""
    return "\n".join(f"Input\n{_rows(pair.input)}\nOutput\n{_rows(pair.output)}" for pair in demonstrations)


def request(demonstrations: Sequence[Pair]) -> str:
    """Return the text that a language model continues with a rule, up to the next quotation mark."""
    return f"{serialise(demonstrations)}\n{REQUEST}"


def variants(demonstrations: Sequence[Pair], rule: str | None) -> list[str]:
    """Return the prompt under each of `CHANGES`.

    Args:
        demonstrations: Solved pairs of the task.
        rule: What a language model wrote of them; None for a plain serialisation.
    """
    facts = facts_of(demonstrations)
    texts = []
    for change in CHANGES:
        added = {name: facts[name] for name in FACTS[change]}
        if rule is not None:
            texts.append(json.dumps(added if change == "only facts" else {"rule": rule, **added}))
            continue
        lines = [f"{name.capitalize()}: {value}" for name, value in added.items()]
        # the facts come first: a prompt that is too long is cut at its end
        texts.append("\n".join(lines if change == "only facts" else [*lines, serialise(demonstrations)]))
    return texts


def facts_of(demonstrations: Sequence[Pair]) -> dict[str, str]:
    """Return what can be said of demonstrations by counting: sizes, colours, and which colours become which."""
    sizes, colours, changes = [], [], set()
    for pair in demonstrations:
        sizes.append(f"{_size(pair.input)} to {_size(pair.output)}")
        colours.append(f"{_colours(pair.input)} to {_colours(pair.output)}")
        if pair.input.shape == pair.output.shape:
            moved = pair.input != pair.output
            changes |= set(zip(pair.input[moved].tolist(), pair.output[moved].tolist(), strict=True))
    said = ", ".join(f"{before} to {after}" for before, after in sorted(changes))
    return {
        "sizes": ", ".join(dict.fromkeys(sizes)),
        "colours": ", ".join(dict.fromkeys(colours)),
        "changes": said or "the size",
    }


def output_colours(demonstrations: Sequence[Pair]) -> np.ndarray:
    """Return the share of each colour among the output cells of demonstrations, float32 [10]."""
    counts = sum(np.bincount(pair.output.ravel(), minlength=COLOURS) for pair in demonstrations)
    return np.asarray(counts / np.sum(counts), dtype=np.float32)


def _rows(grid: Grid) -> str:
    return "\n".join("".join(map(str, row)) for row in grid.tolist())


def _size(grid: Grid) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]}"


def _colours(grid: Grid) -> str:
    return " ".join(map(str, np.unique(grid).tolist()))
