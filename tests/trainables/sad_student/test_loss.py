"""Each divergence and each loss equals a plain reference in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from trainables.sad_student import loss
from trainables.sad_student.loss import Judged, consistency, divergence, guided_loss, outcomes, span_loss, with_rest

KINDS = ("forward_kl", "reverse_kl", "js", "skew", "alpha")


def pair(rows: int = 6, classes: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, classes, generator=draw, dtype=torch.float64) * 2
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1)


def plain(kind: str, p: np.ndarray, q: np.ndarray, b: float) -> float:
    def kl(x: np.ndarray, y: np.ndarray) -> float:
        return float(sum(a * math.log(a / c) for a, c in zip(x, y, strict=True)))

    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "js": lambda: b * kl(p, b * p + (1 - b) * q) + (1 - b) * kl(q, b * p + (1 - b) * q),
        "skew": lambda: kl(p, b * p + (1 - b) * q),
        "alpha": lambda: (float(np.sum(p**b * q ** (1 - b))) - 1) / (b * (b - 1)),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixture", [0.1, 0.5, 0.8])
def test_divergences_equal_the_reference_and_are_zero_only_for_equals(kind: str, mixture: float) -> None:
    log_p, log_q = pair()
    found = divergence(kind, log_p, log_q, mixture)
    wanted = [plain(kind, *rows, mixture) for rows in zip(log_p.exp().numpy(), log_q.exp().numpy(), strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert (found > 0).all()
    np.testing.assert_allclose(divergence(kind, log_p, log_p, mixture).numpy(), 0, atol=1e-12)
    in_float32 = divergence(kind, log_p.float(), log_q.float(), mixture)
    np.testing.assert_allclose(in_float32.numpy(), wanted, rtol=2e-5, atol=1e-6)


def test_jensen_shannon_and_its_ends_equal_trl() -> None:
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    log_p, log_q = pair()
    for kind, mixture, beta in [("js", 0.5, 0.5), ("js", 0.1, 0.1), ("forward_kl", 0.5, 0.0), ("reverse_kl", 0.5, 1.0)]:
        theirs = trainer.generalized_jsd_loss(log_q[None], log_p[None], beta=beta, reduction="sum")
        assert float(divergence(kind, log_p, log_q, mixture).sum()) == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_temperature_is_that_of_tempered_distributions(adaptive: bool) -> None:
    log_p, log_q = pair()
    found = loss.tempered_divergence("forward_kl", log_p, log_q, 0.5, 3.0, adaptive)
    for row, (p, q) in enumerate(zip(log_p.exp().numpy(), log_q.exp().numpy(), strict=True)):
        hellinger = math.sqrt(1 - np.sqrt(p * q).sum())
        heat = 1 + 2 * (1 - hellinger) if adaptive else 3.0
        p, q = p ** (1 / heat), q ** (1 / heat)
        assert float(found[row]) == pytest.approx(heat**2 * plain("forward_kl", p / p.sum(), q / q.sum(), 0.5))


def test_what_is_left_over_is_one_more_outcome() -> None:
    log_p, log_q = pair()
    best, ids = log_p.topk(4, dim=-1)
    found = divergence("forward_kl", with_rest(best, complete=False), outcomes(log_q, ids))
    for row in range(len(log_p)):
        p, q = log_p[row].exp().numpy(), log_q[row].exp().numpy()
        keep = ids[row].numpy()
        grouped = [np.append(x[keep], 1 - x[keep].sum()) for x in (p, q)]
        assert float(found[row]) == pytest.approx(plain("forward_kl", *grouped, 0.5), rel=1e-9)
    ids = torch.arange(log_p.shape[-1]).expand_as(log_p)
    exact = divergence("forward_kl", with_rest(log_p, complete=True), outcomes(log_q, ids))
    np.testing.assert_allclose(exact.numpy(), divergence("forward_kl", log_p, log_q).numpy(), rtol=1e-12)


def test_a_teacher_who_is_certain_in_half_precision_gives_finite_losses() -> None:
    log_p = torch.tensor([[0.0, -17.0, -40.0, -math.inf]], dtype=torch.float16).float()
    log_q = torch.randn(1, 9).log_softmax(-1).requires_grad_()
    for kind in KINDS:
        value = divergence(kind, with_rest(log_p, complete=False), outcomes(log_q, torch.tensor([[3, 1, 5, 0]])))
        (gradient,) = torch.autograd.grad(value.sum(), log_q)
        assert value.isfinite().all() and gradient.isfinite().all(), kind


def test_losses_of_spans_are_weighted_means() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    spans = torch.tensor([0, 0, 1, 2, 3])
    assert float(span_loss(values, spans, {0: 2.5, 1: 1.8, 2: 0.0, 3: 0.0})) == 2.5 * 1.5 + 1.8 * 4
    assert float(span_loss(values, spans, {4: 1.0})) == 0.0
    rows = torch.tensor([0, 0, 0, 1, 1])
    # row 0: reasoning 1.5, action 4; row 1 has neither
    assert float(consistency(values, spans, rows, 0, 1)) == (1.5 - 4) ** 2 / 2


def test_guided_counts_the_students_tokens_and_trusts_near_turns_more() -> None:
    values = torch.tensor([1.0, 3.0, 0.5, 9.0], dtype=torch.float64)
    own = torch.tensor([True, True, True, False])
    turns = torch.tensor([0, 0, 1, 1])
    near, far = math.exp(-0.5 / 2), math.exp(-2.0 / 2)
    wanted = (far * 1.0 + far * 3.0 + near * 0.5) / (2 * far + near)
    assert float(guided_loss(values, own, turns, trust=2.0)) == pytest.approx(wanted, rel=1e-12)


def test_in_chunks_the_values_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 30, bias=False, dtype=torch.float64)
    targets, ids = torch.randint(30, (20,)), torch.randn(20, 30).topk(5).indices
    log_p = torch.randn(20, 30, dtype=torch.float64).log_softmax(-1).gather(-1, ids)
    found = []
    for numbers in (1 << 24, 90):
        monkeypatch.setattr(loss, "CHUNK_NUMBERS", numbers)
        hidden = torch.linspace(-1, 1, 160, dtype=torch.float64).reshape(20, 8).requires_grad_()
        judged = Judged("js", 0.3, 2.0, True, True)(hidden, head, targets, ids, log_p)
        total = judged["divergence"].sum() + judged["entropy"].sum() + judged["ce"].sum()
        found.append((judged, torch.autograd.grad(total, hidden)[0]))
    (one, gradient), (other, other_gradient) = found
    for name in one:
        np.testing.assert_allclose(one[name].detach(), other[name].detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, other_gradient, rtol=1e-5, atol=1e-6)
    entropy = -(head(hidden).log_softmax(-1).exp() * head(hidden).log_softmax(-1)).sum(-1)
    np.testing.assert_allclose(one["entropy"].detach(), entropy.detach(), rtol=1e-5)
