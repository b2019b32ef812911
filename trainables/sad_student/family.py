"""What the SAD student reports, and what its trials are judged by."""

from __future__ import annotations

from trainables.common.family import Column, Family


def _success(name: str, meaning: str, headline: str, baselines: tuple[str, ...] = ()) -> Column:
    return Column(name, float, f"{meaning}, in [0, 1]", headline, "max", baselines=baselines, percent=True)


BASELINES = tuple(f"{who}_success_rate" for who in ("teacher", "random", "untrained", "expert"))

FAMILY = Family(
    name="sad_student",
    metric="success_rate",
    mode="max",
    noun="students",
    not_identity=("eval_every", "checkpoint_every", "keep_checkpoints", "mode", "save_student"),
    columns=(
        Column("teacher", str, "model that was distilled"),
        Column("student", str, "model that was trained, before training"),
        Column("loss", str, "what was learned from the teacher"),
        _success("success_rate", "validation problems solved by the student", "solved", BASELINES),
        _success("teacher_success_rate", "the same of the teacher", "solved by the teacher"),
        _success("random_success_rate", "the same of random meaningful actions", "solved at random"),
        _success("untrained_success_rate", "the same of the student before training", "solved by the untrained"),
        _success("expert_success_rate", "the same of the program that knows how", "solved by the expert"),
        _success("test_success_rate", "test problems solved by the student, at the end", "solved of the test problems"),
        Column(
            "kl_reasoning", float, "KL from the teacher on held-out reasoning, nats a token", "KL, reasoning", "min"
        ),
        Column("kl_action", float, "KL from the teacher on held-out actions, nats a token", "KL, actions", "min"),
        Column("kl_observation", float, "the same on observations, which the student does not write"),
        Column("kl_other", float, "the same on tasks, which the student does not write"),
        Column("token_accuracy_reasoning", float, "share of held-out reasoning tokens predicted right"),
        Column("token_accuracy_action", float, "the same of action tokens"),
        Column("steps_per_episode", float, "actions of a validation episode, mean", "steps of an episode"),
        Column("invalid_actions", float, "actions of a validation episode that meant nothing, mean", "invalid", "min"),
        Column("teacher_tokens", int, "tokens that the teacher wrote or judged for this student"),
        Column("trained_parameters", int, "parameters that were trained"),
    ),
)
