"""What the reasoning agents report, and what their trials are judged by."""

from __future__ import annotations

from typing import Literal

from trainables.common.family import Column, Family


def _share(name: str, meaning: str, headline: str = "", baselines: tuple[str, ...] = ()) -> Column:
    return Column(name, float, f"{meaning}, in [0, 1]", headline, "max", baselines=baselines, percent=True)


def _number(name: str, meaning: str, headline: str = "", baselines: tuple[str, ...] = (),
            better: Literal["max", "min"] = "min") -> Column:  # fmt: skip
    return Column(name, float, meaning, headline, better, baselines=baselines)


def _met(name: str, criterion: str) -> Column:
    return Column(f"{name}_met", bool, f"whether the criterion is met: {criterion}")


# bounds that the published system set itself; which way each is met is its column's
CRITERIA = {
    "hrm_accuracy": 0.70,
    "refinements": 2.5,
    "mcts_win_rate": 0.60,
    "retrieval_precision": 0.75,
    "router_accuracy": 0.65,
}

FAMILY = Family(
    name="reasoning_agents",
    metric="phase_metric",
    mode="max",
    not_identity=("grace_period",),
    columns=(
        Column("phase", int, "phase of the latest measurement, 1 to 5"),
        Column("stage", str, "stage of the latest measurement"),
        Column("phase_metric", float, "held-out score of the stage; trials are compared at the same epoch, so stage"),
        Column("criteria_met", int, "criteria that are met, of five", "criteria met, of 5", "max"),
        # phase 1
        _share(
            "hrm_accuracy",
            "steps found with both ends, on the harder of deeper problems and unseen wordings",
            "HRM: steps found (criterion 70 %)",
            ("hrm_rule_accuracy",),
        ),
        _share("hrm_rule_accuracy", "the same of a rule: what stands between marks", "steps found by a rule"),
        _share(
            "hrm_depth_accuracy",
            "steps found with both ends and the depth, on problems deeper than any in training",
            "HRM: steps and their depths",
            ("hrm_depth_rule_accuracy",),
        ),
        _share("hrm_depth_rule_accuracy", "the same of the rule, all steps as deep as most", "the same by a rule"),
        _number(
            "refinements",
            "refinements of a wrong candidate until its answer is right, mean; never right counts as max_refinements",
            "TRM: refinements until right (criterion 2.5)",
            ("refinements_without",),
        ),
        _number("refinements_without", "the same of candidates that nobody refines", "refinements if none helped"),
        _share("corrected_answers", "wrong candidates that become right, deep problems", "TRM: candidates corrected"),
        _share("refined_answers", "deep problems answered after refinement of HRM's solution", "TRM: problems answered",
               ("unrefined_answers",)),
        _share("unrefined_answers", "deep problems answered by HRM's solution", "answered without refinement"),
        _number("score_brier", "Brier score of the score of candidates", "TRM: Brier score", ("score_brier_constant",)),
        _number("score_brier_constant", "Brier score of the share of right candidates", "Brier score of a constant"),
        _number("score_calibration_error", "expected calibration error of TRM's score, 10 bins"),
        _share(
            "retrieval_precision",
            "ten retrieved chunks that are of the queried module, mean over queries",
            "RAG: precision at 10 (criterion 75 %)",
            ("random_precision",),
        ),
        _share("random_precision", "the same of ten random chunks", "precision of random chunks"),
        _share("dense_precision", "the same of embeddings alone"),
        _share("lexical_precision", "the same of BM25 alone"),
        # phase 2
        _share(
            "tuned_answers",
            "instructions answered, half of which a fact in the corpus decides, deep problems",
            "instructions answered",
            ("tuned_answers_without_retrieval", "untuned_answers"),
        ),
        _share("tuned_answers_without_retrieval", "the same without retrieval", "answered without retrieval"),
        _share("untuned_answers", "the same before instruction tuning", "answered before tuning"),
        # phase 3
        _share(
            "mcts_win_rate",
            "games won against a random player, draws as half",
            "MCTS: wins against random (criterion 60 %)",
            ("untrained_mcts_win_rate",),
        ),
        _share("untrained_mcts_win_rate", "the same without trained networks", "wins of the search untrained"),
        _share(
            "bot_win_rate",
            "games won against OpenSpiel's MCTS with as many simulations, draws as half",
            "MCTS: wins against OpenSpiel's",
            ("untrained_bot_win_rate",),
        ),
        _share("untrained_bot_win_rate", "the same without trained networks", "against OpenSpiel's, untrained"),
        _share(
            "optimal_moves",
            "moves in solved positions that keep the value",
            "MCTS: optimal moves",
            ("untrained_optimal_moves", "optimal_random"),
        ),
        _share("untrained_optimal_moves", "the same without trained networks", "optimal moves untrained"),
        _share("optimal_random", "the same of random moves", "optimal random moves"),
        _share(
            "policy_optimal_moves",
            "the same of the policy network without search",
            "optimal moves of the policy alone",
            ("untrained_policy_optimal_moves",),
        ),
        _share("untrained_policy_optimal_moves", "the same of a uniform policy", "the policy alone, untrained"),
        _number("games_per_second", "games of self-play a second", better="max"),
        # phase 4
        _share(
            "router_accuracy",
            "problems given to an agent of the highest utility",
            "router: accuracy (criterion 65 %)",
            ("single_accuracy",),
        ),
        _share("single_accuracy", "the same of always taking the best single agent", "accuracy of one agent for all"),
        _number("router_regret", "utility that the oracle has more, mean", "router: regret",
                ("single_regret", "shuffled_regret")),
        _number("single_regret", "the same of always taking the best single agent", "regret of one agent for all"),
        _number("shuffled_regret", "the same of a router trained on shuffled outcomes", "regret, outcomes shuffled"),
        _number("router_over_hull", "success above that of mixing single agents at the same cost", better="max"),
        _number("router_calibration_error", "expected calibration error of the router's confidence"),
        # phase 5
        _share(
            "system_accuracy",
            "problems answered by the whole system",
            "whole system",
            ("without_retrieval", "without_router", "without_refinement", "without_search"),
        ),
        _share("without_retrieval", "the same without retrieval", "without retrieval"),
        _share("without_router", "the same with the best single agent", "without router"),
        _share("without_refinement", "the same with HRM in TRM's place", "without refinement"),
        _share("without_search", "the same with TRM in MCTS's place", "without search"),
        _met("hrm_accuracy", "at least 0.70"),
        _met("refinements", "at most 2.5, and more than half of the wrong candidates become right"),
        _met("mcts_win_rate", "at least 0.60"),
        _met("retrieval_precision", "at least 0.75"),
        _met("router_accuracy", "at least 0.65"),
    ),
)  # fmt: skip
