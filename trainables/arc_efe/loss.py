"""The terms of the loss. Each is a mean over the pairs of a batch; `weights_of` says which take part.

Risk and ambiguity are those of `free_energy`: hidden states are the colours of cells, outcomes what is seen of them
through the learned likelihood, and preferred is the target's colour. Cells weigh by whether they are hard: predicted
wrongly at the moment.

============== =========================================================================================================
risk           KL of the predicted outcome from the preferred one, mean over steps and cells
ambiguity      expected entropy of the likelihood under the predicted colours; its published weight is 0
step           KL of a step's prediction from the one before it: what it costs to change one's mind
consistency    Jensen-Shannon divergence of the predictions under the unchanged and the changed prompt
bidirectional  Jensen-Shannon divergence of the inputs that the backward model finds from target and prediction
preference     KL of the predicted colour shares from those of the demonstrations' outputs
prompt         InfoNCE: a solved pair is to be nearer to its own prompt than to prompts of other tasks
cross_entropy  of the target under the last step's outcome
size           cross-entropy of height and width
backward       cross-entropy of the input under what the backward model finds from the target
============== =========================================================================================================

The system that this one replaces had neither a backward model nor a size head, so ``backward`` and ``size``, which
train them, have no published weight. What step, consistency, preference and prompt computed there is not known beyond
their names; the definitions are this project's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.arc import COLOURS
from trainables.arc_efe import free_energy
from trainables.arc_efe.model import Prediction

# smoothing of the colours of demonstrations, so that one they do not show is unlikely, not impossible
COLOUR_FLOOR = 0.01
# how sharply the prompt term tells a pair's own prompt from the others
PROMPT_SHARPNESS = 10.0


class Targets(NamedTuple):
    """What a batch is compared with.

    Attributes:
        grids: [B, S, S] with ``OUTSIDE`` beyond the output.
        size: [B, 2].
        inputs: [B, S, S] with ``OUTSIDE`` beyond the input.
        demonstrated: Share of each colour in the outputs of the prompt's demonstrations, [B, 10]; None without prompts.
    """

    grids: Tensor
    size: Tensor
    inputs: Tensor
    demonstrated: Tensor | None


def hard_cells(logits: Tensor, grids: Tensor) -> Tensor:
    """Return which cells of targets [B, S, S] the last step [B, S, S, 10] predicts wrongly, bool [B, S, S]."""
    return (logits.argmax(-1) != grids) & (grids < COLOURS)


def prediction_terms(
    prediction: Prediction, likelihood: Tensor, targets: Targets, smoothing: float, hard_weight: float
) -> dict[str, Tensor]:
    """Return the terms of one prediction: risk, ambiguity, step, preference, cross_entropy and size.

    Args:
        prediction: Of the agent.
        likelihood: ``P(o|s)`` [10, 10].
        targets: What it should be.
        smoothing: Probability that the preferred outcome leaves to other colours.
        hard_weight: What a hard cell counts; others count 1.
    """
    q_s = prediction.logits.softmax(-1)
    q_o = free_energy.outcomes(q_s, likelihood)
    hard = hard_cells(prediction.logits[:, -1], targets.grids)
    asked = (targets.grids < COLOURS).float()
    weight = asked * (1 + (hard_weight - 1) * hard)
    wanted = F.one_hot(targets.grids.clamp_max(COLOURS - 1), COLOURS).float()
    preference = torch.log(wanted * (1 - smoothing) + (1 - wanted) * smoothing / (COLOURS - 1))
    last = q_o[:, -1]
    terms = {
        "risk": _cell_mean(free_energy.risk(q_o, preference[:, None]).mean(1), weight, asked),
        "ambiguity": _cell_mean(free_energy.ambiguity(q_s, likelihood).mean(1), weight, asked),
        "cross_entropy": _cell_mean(-(wanted * free_energy.log(last)).sum(-1), weight, asked),
        "size": F.cross_entropy(prediction.size.flatten(0, 1), (targets.size - 1).flatten(), reduction="none")
        .view(-1, 2)
        .sum(1),
    }
    if targets.demonstrated is not None:
        demonstrated = (targets.demonstrated + COLOUR_FLOOR) / (1 + COLOUR_FLOOR * COLOURS)
        shown = _cell_mean(last, asked[..., None], asked[..., None])
        terms["preference"] = free_energy.divergence(shown, demonstrated)
    if q_s.shape[1] > 1:
        moved = free_energy.divergence(q_s[:, 1:], q_s[:, :-1]).mean(1)
        terms["step"] = _cell_mean(moved, asked, asked)
    return {name: value.mean() for name, value in terms.items()}


def consistency(before: Tensor, after: Tensor, grids: Tensor) -> Tensor:
    """Return the divergence of the predictions under two prompts of one task, of the last steps [B, S, S, 10]."""
    asked = (grids < COLOURS).float()
    return _cell_mean(free_energy.jensen_shannon(before.softmax(-1), after.softmax(-1)), asked, asked).mean()


def backward_terms(from_target: Tensor, from_prediction: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    """Return the terms of the backward model: ``backward``, how well it finds the input from the target, and
    ``bidirectional``, the Jensen-Shannon divergence of what it finds from the target and from the prediction.

    Args:
        from_target, from_prediction: Logits of the input's colours, [B, S, S, 10].
        inputs: [B, S, S].
    """
    given = (inputs < COLOURS).float()
    found = F.cross_entropy(from_target.permute(0, 3, 1, 2), inputs.clamp_max(COLOURS - 1), reduction="none")
    apart = free_energy.jensen_shannon(from_target.softmax(-1), from_prediction.softmax(-1))
    return {
        "backward": _cell_mean(found, given, given).mean(),
        "bidirectional": _cell_mean(apart, given, given).mean(),
    }


def prompt_term(similarity: Tensor, task: Tensor) -> Tensor:
    """Return how badly a pair's own prompt is told from those of other tasks: InfoNCE (van den Oord et al., 2018).

    Args:
        similarity: Of pairs (rows) and prompts (columns), [B, B].
        task: Of each pair [B]; prompts of the same task are no negatives.
    """
    same = (task[:, None] == task[None, :]) & ~torch.eye(len(task), dtype=torch.bool, device=task.device)
    logits = (PROMPT_SHARPNESS * similarity).masked_fill(same, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(task), device=task.device))


def _cell_mean(values: Tensor, weight: Tensor, counted: Tensor) -> Tensor:
    """Return the sum of weighted values over cells, divided by the number of cells that count."""
    return (values * weight).sum((1, 2)) / counted.sum((1, 2))
