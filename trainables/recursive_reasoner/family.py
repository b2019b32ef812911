"""What the recursive reasoner reports, and what its trials are judged by."""

from __future__ import annotations

from trainables.common.family import Column, Family


def _share(name: str, meaning: str, headline: str, baselines: tuple[str, ...] = ()) -> Column:
    return Column(name, float, f"{meaning}, in [0, 1]", headline, "max", baselines=baselines, percent=True)


FAMILY = Family(
    name="recursive_reasoner",
    metric="exact_accuracy",
    mode="max",
    not_identity=(
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "compile",
        "direct_baseline",
        "direct_lr_ratio",
    ),
    columns=(
        Column("dataset", str, "puzzles that were trained on"),
        Column("halting", str, "rule by which a puzzle's steps end"),
        Column("planner", str, "what prepares the steps"),
        _share(
            "exact_accuracy",
            "held-out puzzles answered correctly as a whole",
            "solved",
            ("direct_exact_accuracy", "majority_exact_accuracy"),
        ),
        _share("direct_exact_accuracy", "the same of a model that answers in one pass", "solved by direct prediction"),
        _share("majority_exact_accuracy", "the same of the most frequent answer", "solved by the majority"),
        _share(
            "harder_exact_accuracy",
            "puzzles harder than any trained on answered correctly as a whole",
            "harder ones solved",
            ("direct_harder_exact_accuracy",),
        ),
        _share(
            "direct_harder_exact_accuracy",
            "the same of a model that answers in one pass",
            "harder ones solved by direct prediction",
        ),
        _share(
            "valid_accuracy",
            "held-out mazes in which a path from start to goal is marked and nothing else, the shortest or not",
            "valid paths",
            ("direct_valid_accuracy",),
        ),
        _share(
            "direct_valid_accuracy", "the same of a model that answers in one pass", "valid paths by direct prediction"
        ),
        _share(
            "token_accuracy",
            "held-out cells answered correctly, of those asked for",
            "cells",
            ("direct_token_accuracy", "majority_token_accuracy"),
        ),
        _share("direct_token_accuracy", "the same of a model that answers in one pass", "cells by direct prediction"),
        _share("majority_token_accuracy", "the same of the most frequent answer", "cells by the majority"),
        Column("mean_steps", float, "supervision steps that a held-out puzzle took, mean", "steps of a puzzle", "min"),
    ),
)
