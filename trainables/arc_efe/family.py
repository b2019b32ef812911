"""What the prompted grid agent reports, and what its trials are judged by."""

from __future__ import annotations

from trainables.common.family import Column, Family


def _share(name: str, meaning: str, headline: str = "", baselines: tuple[str, ...] = ()) -> Column:
    return Column(name, float, f"{meaning}, in [0, 1]", headline, "max", baselines=baselines, percent=True)


FAMILY = Family(
    name="arc_efe",
    metric="validation_score",
    mode="max",
    not_identity=("eval_every", "checkpoint_every", "keep_checkpoints", "no_prompt_baseline"),
    columns=(
        Column(
            "validation_score", float, "exact accuracy on validation pairs, and a thousandth of their cell accuracy"
        ),
        Column("prompt", str, "what the prompt is made of: rule, plain or none"),
        Column("lm_training", str, "whether the language model is frozen or trained by LoRA"),
        _share(
            "exact_accuracy",
            "held-out pairs answered exactly, size included",
            "exact",
            ("no_prompt_exact_accuracy", "copy_exact_accuracy"),
        ),
        _share("no_prompt_exact_accuracy", "the same of an agent trained without a prompt", "exact without a prompt"),
        _share("copy_exact_accuracy", "the same of giving the input back", "exact by copying"),
        _share("exact_low", "lower end of the 95 % interval of exact_accuracy over held-out pairs (Wilson)"),
        _share("exact_high", "upper end of that interval"),
        _share(
            "cell_accuracy",
            "cells of held-out outputs answered correctly, mean over pairs",
            "cells",
            ("no_prompt_cell_accuracy", "copy_cell_accuracy", "prior_cell_accuracy"),
        ),
        _share("no_prompt_cell_accuracy", "the same of an agent trained without a prompt", "cells without a prompt"),
        _share("copy_cell_accuracy", "the same of giving the input back", "cells by copying"),
        _share(
            "prior_cell_accuracy",
            "the same of the commonest colour of the demonstrations' outputs, in the input's size",
            "cells by the colour prior",
        ),
        _share(
            "contested_cell_accuracy",
            "cells of the held-out pairs of which copying has less than 90 %",
            "cells where copying is not nearly right",
            ("contested_copy_cell_accuracy", "no_prompt_contested_cell_accuracy"),
        ),
        _share("contested_copy_cell_accuracy", "the same of giving the input back", "there by copying"),
        _share("no_prompt_contested_cell_accuracy", "the same without a prompt", "there without a prompt"),
        _share("size_accuracy", "held-out pairs whose size was predicted", "right size", ("copy_size_accuracy",)),
        _share("copy_size_accuracy", "the same of the input's size", "right size by copying"),
        _share("no_prompt_size_accuracy", "the same of an agent trained without a prompt"),
        _share("change_recall", "cells answered correctly of those that differ from the input", "changed cells"),
        _share("no_prompt_change_recall", "the same of an agent trained without a prompt"),
        _share("unchanged_exact_accuracy", "exact_accuracy before the policy changed the prompt"),
        _share("unchanged_cell_accuracy", "cell_accuracy before the policy changed the prompt"),
        Column(
            "score_before",
            float,
            "score of held-out pairs before the prompt was changed, 0 to 2.5",
            "score before",
            "max",
        ),
        Column("score_after", float, "the same after the policy changed it, 0 to 2.5", "score after", "max"),
        Column("reward", float, "score after minus before on demonstrations left out of the prompt, last epoch"),
        _share("prompts_changed", "held-out pairs whose prompt the policy changed"),
        _share("memory_hits", "held-out pairs for which memory held a similar prompt"),
        Column("hard_share", float, "share of cells of held-out outputs that are predicted wrongly, size aside"),
        Column("lm_grad_norm", float, "gradient norm of the language model, mean over the last epoch; 0 where frozen"),
        Column("cut_prompts", int, "texts that were longer than prompt_tokens or the model's context and were cut"),
        _share("official_exact_accuracy", "official test pairs answered exactly, where generated ones are held out"),
        _share("official_cell_accuracy", "their cells answered correctly"),
        _share("official_copy_cell_accuracy", "the same of giving the input back"),
        Column("held_out_pairs", int, "held-out pairs"),
        Column("contested_pairs", int, "held-out pairs of which copying has less than 90 % of the cells"),
    ),
)
