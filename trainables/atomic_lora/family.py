"""The families of this package: adapters for ARC tasks and for text tasks on a frozen base, and the default base."""

from __future__ import annotations

from trainables.common.family import Column, Family

_GRIDS, _CELLS = "exact-match accuracy", "cell accuracy"


def _share(name: str, meaning: str, headline: str = "", base: str = "", baselines: tuple[str, ...] = ()) -> Column:
    return Column(
        name, float, f"{meaning}, in [0, 1]", headline, "max" if headline else "", base, baselines, percent=True
    )


MODAL = _share(
    "modal_grid_accuracy",
    "held-out grids solved by answering with the task's most frequent training output",
    "most frequent training output, exact match",
)
COPY = (
    _share("copy_grid_accuracy", "held-out grids solved by copying the input", "copying the input, exact match"),
    _share("copy_cell_accuracy", "held-out cells right when the input is copied", "copying the input, cells"),
)
RECALL = _share(
    "change_recall",
    "of the held-out cells that differ from the input, those decoded correctly",
    "recall of changed cells",
)
OFFICIAL_BASELINES = (
    _share(
        "official_copy_grid_accuracy", "official test pairs solved by copying", "official pairs, copying, exact match"
    ),
    _share(
        "official_copy_cell_accuracy", "cells of official pairs right when copied", "official pairs, copying, cells"
    ),
    _share(
        "official_modal_grid_accuracy",
        "official test pairs solved by the task's most frequent training output",
        "official pairs, most frequent training output, exact match",
    ),
)
# Generated tasks have the official test pairs as a second held-out set.
OFFICIAL = (
    _share("official_base_grid_accuracy", "official test pairs that the base solves exactly before training"),
    _share(
        "official_final_grid_accuracy",
        "official test pairs solved exactly after training",
        f"official pairs, {_GRIDS}",
        "official_base_grid_accuracy",
        ("official_copy_grid_accuracy", "official_modal_grid_accuracy"),
    ),
    _share("official_base_cell_accuracy", "cells of official test pairs that the base gets right before training"),
    _share(
        "official_final_cell_accuracy",
        "cells of official test pairs that are right after training",
        f"official pairs, {_CELLS}",
        "official_base_cell_accuracy",
        ("official_copy_cell_accuracy",),
    ),
    _share("official_base_size_accuracy", "official test pairs whose size the base gets right"),
    _share(
        "official_final_size_accuracy",
        "official test pairs whose size is right after training",
        "official pairs, size accuracy",
        "official_base_size_accuracy",
    ),
    *OFFICIAL_BASELINES,
)

FAMILY = Family(
    name="atomic_lora",
    noun="adapters",
    verdict=("final_grid_accuracy", "final_cell_accuracy"),
    columns=(
        Column(
            "kept_base", bool, "no epoch was better than the base on validation examples: the adapter changes nothing"
        ),
        _share("best_exact", "validation examples that the kept weights answer exactly"),
        Column("best_epoch", int, "epoch whose weights were kept, 0 for none"),
        Column("num_examples", int, "training examples of the task before augmentation"),
        Column(
            "context_pairs", float, "demonstrations shown with a test query, mean; on language models as many as fit"
        ),
        _share("base_grid_accuracy", "held-out grids that the base solves exactly before training"),
        _share(
            "final_grid_accuracy",
            "held-out grids solved exactly after training",
            _GRIDS,
            "base_grid_accuracy",
            ("copy_grid_accuracy", "modal_grid_accuracy"),
        ),
        _share("base_cell_accuracy", "held-out cells that the base decodes correctly before training"),
        _share(
            "final_cell_accuracy",
            "held-out cells decoded correctly after training",
            _CELLS,
            "base_cell_accuracy",
            ("copy_cell_accuracy",),
        ),
        _share("base_size_accuracy", "held-out grids whose size the base gets right"),
        _share(
            "final_size_accuracy",
            "held-out grids whose size is right after training",
            "size accuracy",
            "base_size_accuracy",
        ),
        _share("base_teacher_forced_cell_accuracy", "cells right when the true prefix is given, before training"),
        _share(
            "teacher_forced_cell_accuracy",
            "held-out cells right when the true prefix is given, after training",
            "cell accuracy, true prefix given",
            "base_teacher_forced_cell_accuracy",
        ),
        RECALL,
        *COPY,
        MODAL,
        *OFFICIAL,
    ),
)

TEXT = Family(
    name="text_lora",
    noun="adapters",
    verdict=("final_exact_match", "final_token_accuracy"),
    columns=(
        Column("kept_base", bool, "no epoch was better than the base on validation rows: the adapter changes nothing"),
        _share("best_exact", "validation rows that the kept weights write exactly"),
        Column("best_epoch", int, "epoch whose weights were kept, 0 for none"),
        Column("num_examples", int, "rows trained on"),
        Column("num_test", int, "held-out test rows"),
        Column("num_repeats", int, "rows in no set, because a held-out row repeats them or nearly does"),
        Column("num_cut", int, "rows cut at their end because they are too long"),
        Column("num_left_out", int, "rows left out because they are too long"),
        _share("base_exact_match", "test completions that the base writes token by token, decoding greedily"),
        _share(
            "final_exact_match",
            "test completions written token by token after training, decoding greedily",
            "exact match of completions",
            "base_exact_match",
        ),
        _share("base_token_accuracy", "tokens of test completions right before training, the true prefix given"),
        _share(
            "final_token_accuracy",
            "tokens of test completions right after training, the true prefix given",
            "token accuracy",
            "base_token_accuracy",
        ),
        Column("base_test_loss", float, "mean cross-entropy of a token of the test rows before training, in nats"),
        Column(
            "final_test_loss",
            float,
            "mean cross-entropy of a token of the test rows after training, in nats",
            "test loss",
            "min",
            "base_test_loss",
        ),
        _share("base_answer_score", "score of the answers that the base generates; where answers are asked for"),
        _share(
            "final_answer_score",
            "score of the answers generated after training; where answers are asked for",
            "score of generated answers",
            "base_answer_score",
        ),
    ),
)

CHAMPION = Family(
    name="champion",
    columns=(
        _share(
            "grid_accuracy",
            "held-out grids solved exactly",
            _GRIDS,
            baselines=("copy_grid_accuracy", "modal_grid_accuracy"),
        ),
        _share("cell_accuracy", "held-out cells decoded correctly", _CELLS, baselines=("copy_cell_accuracy",)),
        _share("size_accuracy", "held-out grids whose size is right", "size accuracy"),
        _share(
            "teacher_forced_cell_accuracy",
            "held-out cells right when the true prefix is given",
            "cell accuracy, true prefix given",
        ),
        RECALL,
        *COPY,
        MODAL,
        _share(
            "official_grid_accuracy",
            "official test pairs solved exactly",
            f"official pairs, {_GRIDS}",
            baselines=("official_copy_grid_accuracy", "official_modal_grid_accuracy"),
        ),
        _share(
            "official_cell_accuracy",
            "cells of official test pairs that are right",
            f"official pairs, {_CELLS}",
            baselines=("official_copy_cell_accuracy",),
        ),
        _share("official_size_accuracy", "official test pairs whose size is right", "official pairs, size accuracy"),
        *OFFICIAL_BASELINES,
        Column("untrained_eval_loss", float, "evaluation loss before training"),
        _share("untrained_grid_accuracy", "held-out grids solved exactly before training"),
        _share("untrained_cell_accuracy", "held-out cells decoded correctly before training"),
        _share("untrained_size_accuracy", "held-out grids whose size is right before training"),
        _share("untrained_teacher_forced_cell_accuracy", "cells right when the true prefix is given, before training"),
    ),
)
