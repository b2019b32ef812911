"""Every term has a gradient and is small where it should be; cells weigh one by one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from trainables.arc_efe import loss
from trainables.arc_efe.config import TERMS
from trainables.arc_efe.model import Prediction

GRIDS = torch.tensor([[[1, 2, 10], [3, 0, 10], [10, 10, 10]]])
INPUTS = torch.tensor([[[1, 1, 10], [3, 3, 10], [10, 10, 10]]])


def _targets(grids: torch.Tensor = GRIDS) -> loss.Targets:
    return loss.Targets(grids, torch.tensor([[2, 2]]), INPUTS, torch.full((1, 10), 0.1))


def _prediction(grids: torch.Tensor, sure: float, steps: int = 2) -> Prediction:
    logits = sure * F.one_hot(grids.clamp_max(9), 10).float()
    size = torch.zeros(1, 2, 30)
    size[0, :, 1] = sure
    return Prediction(logits[:, None].repeat(1, steps, 1, 1, 1).requires_grad_(), size.requires_grad_())


def _terms(prediction: Prediction, hard_weight: float = 2.0) -> dict[str, torch.Tensor]:
    likelihood = (8.0 * torch.eye(10)).softmax(0)
    return loss.prediction_terms(prediction, likelihood, _targets(), 0.1, hard_weight)


def test_every_term_of_a_prediction_has_a_gradient_and_falls_with_a_better_one() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 3, 3, 10, requires_grad=True)
    size = torch.randn(1, 2, 30, requires_grad=True)
    terms = _terms(Prediction(logits, size))
    assert set(terms) <= set(TERMS) and len(terms) == 6
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, [logits, size], retain_graph=True, allow_unused=True)
        assert sum(float(g.norm()) for g in gradients if g is not None) > 0, name
    right, wrong = _terms(_prediction(GRIDS, 6.0)), _terms(_prediction((GRIDS + 1) % 10, 6.0))
    for name in ("risk", "cross_entropy"):
        assert right[name] < wrong[name], name
    assert right["step"].item() == pytest.approx(0.0, abs=1e-6)


def test_hard_cells_are_chosen_one_by_one() -> None:
    prediction = _prediction(GRIDS, 6.0)
    logits = prediction.logits.detach().clone()
    logits[0, -1, 0, 1] = 6.0 * F.one_hot(torch.tensor(7), 10)
    hard = loss.hard_cells(logits[:, -1], GRIDS)
    assert hard.sum() == 1 and hard[0, 0, 1]
    changed = Prediction(logits, prediction.size)
    plain, weighted = (_terms(changed, weight)["cross_entropy"] for weight in (1.0, 3.0))
    q_o = (8.0 * torch.eye(10)).softmax(0) @ logits[0, -1, 0, 1].softmax(-1)
    assert float(weighted - plain) == pytest.approx(-2 * float(q_o[2].log()) / 4)


def test_cells_beyond_the_output_count_nothing() -> None:
    prediction = _prediction(GRIDS, 6.0)
    logits = prediction.logits.detach().clone()
    logits[:, :, 2] = 50.0 * torch.randn(1, 2, 3, 10)
    other = _terms(Prediction(logits, prediction.size))
    for name, term in _terms(prediction).items():
        assert term.item() == pytest.approx(other[name].item()), name


def test_the_backward_model_is_trained_and_compared() -> None:
    torch.manual_seed(0)
    one, other = (torch.randn(1, 3, 3, 10, requires_grad=True) for _ in range(2))
    terms = loss.backward_terms(one, other, INPUTS)
    assert torch.autograd.grad(terms["backward"], one, retain_graph=True)[0].norm() > 0
    assert all(g.norm() > 0 for g in torch.autograd.grad(terms["bidirectional"], [one, other]))
    assert float(loss.backward_terms(one, one, INPUTS)["bidirectional"]) == pytest.approx(0.0, abs=1e-6)


def test_consistency_is_zero_for_equal_predictions_alone() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(1, 3, 3, 10), torch.randn(1, 3, 3, 10)
    assert float(loss.consistency(one, one, GRIDS)) == pytest.approx(0.0, abs=1e-6)
    assert float(loss.consistency(one, other, GRIDS)) > 0.01


def test_the_prompt_term_takes_prompts_of_the_same_task_for_no_negatives() -> None:
    own = torch.eye(3)
    task = torch.tensor([0, 1, 2])
    assert loss.prompt_term(own, task) < loss.prompt_term(1 - own, task)
    same = torch.ones(3, 3)
    assert float(loss.prompt_term(same, torch.tensor([0, 0, 0]))) == pytest.approx(0.0, abs=1e-6)
