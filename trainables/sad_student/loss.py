"""Divergences between teacher and student, and the losses that are made of them.

A teacher is known by its K most probable tokens at each position; the other tokens share what is left as one more
outcome, for teacher and student alike. With all tokens of a small vocabulary among the K, that is the exact divergence.

- Forward and reverse KL; Jensen-Shannon generalised by a mixture (Agarwal et al., 2024, "On-Policy Distillation of
  Language Models"), whose value equals TRL's ``generalized_jsd_loss``; skew KL (Ko et al., 2024, "DistiLLM"); Amari's
  alpha divergence.
- The loss of structured agent distillation: a mean for each span, weighted (Liu et al., 2025, "Structured Agent
  Distillation for Large Language Models").
- The adaptive temperature follows the idea of token-adaptive distillation: the nearer student and teacher are, by
  Hellinger's distance, the higher the temperature.

Shapes: N tokens, V vocabulary, C = K + 1 outcomes (K where nothing is left over), H width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# log-probability below which an outcome counts as impossible
FLOOR = -30.0
# numbers of a matrix of logits that are in memory at once, in float32 64 MB
CHUNK_NUMBERS = 1 << 24


def outcomes(log_p: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of K named tokens, and of all others together, [N, C].

    Args:
        log_p: [N, V] log-probabilities.
        ids: [N, K] different tokens.
    """
    named = log_p.gather(-1, ids)
    if ids.shape[-1] == log_p.shape[-1]:
        return named
    rest = log_p.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([named, rest.clamp_min(FLOOR)], dim=-1)


def with_rest(log_p: Tensor, complete: bool) -> Tensor:
    """Return a teacher's K log-probabilities [N, K] with the logarithm of what they leave, [N, C]."""
    log_p = log_p.clamp_min(FLOOR)
    if complete:
        return log_p
    rest = torch.log1p(-log_p.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-12))
    return torch.cat([log_p, rest.clamp_min(FLOOR)], dim=-1)


def divergence(kind: str, log_p: Tensor, log_q: Tensor, mixture: float = 0.5) -> Tensor:
    """Return the divergence of student q from teacher p for each token, [N].

    Args:
        kind: ``forward_kl`` KL(p, q); ``reverse_kl`` KL(q, p); ``js`` b KL(p, m) + (1 - b) KL(q, m) with
            m = b p + (1 - b) q; ``skew`` KL(p, b p + (1 - b) q); ``alpha`` (sum p^b q^(1 - b) - 1) / (b (b - 1)).
        log_p, log_q: [N, C] log-probabilities of the same outcomes.
        mixture: b, in (0, 1).
    """
    if kind == "forward_kl":
        return _kl(log_p, log_q)
    if kind == "reverse_kl":
        return _kl(log_q, log_p)
    if kind == "alpha":
        return ((mixture * log_p + (1 - mixture) * log_q).exp().sum(-1) - 1) / (mixture * (mixture - 1))
    mixed = torch.logaddexp(log_p + math.log(mixture), log_q + math.log1p(-mixture))
    if kind == "skew":
        return _kl(log_p, mixed)
    if kind == "js":
        return mixture * _kl(log_p, mixed) + (1 - mixture) * _kl(log_q, mixed)
    raise ValueError(f"There is no divergence {kind!r}.")


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def tempered_divergence(
    kind: str, log_p: Tensor, log_q: Tensor, mixture: float, temperature: float, adaptive: bool
) -> Tensor:
    """Return the divergence at a temperature times its square, [N]; see `divergence`.

    Args:
        adaptive: Take the temperature 1 + (``temperature`` - 1) (1 - h) of each token, where h in [0, 1] is Hellinger's
            distance, of which no gradient is taken.
    """
    if temperature == 1.0:
        return divergence(kind, log_p, log_q, mixture)
    heat: Tensor | float = temperature
    if adaptive:
        with torch.no_grad():
            overlap = (0.5 * (log_p + log_q)).exp().sum(-1).clamp(max=1.0)
            heat = (1 + (temperature - 1) * (1 - (1 - overlap).sqrt()))[:, None]
    cooled = divergence(kind, F.log_softmax(log_p / heat, -1), F.log_softmax(log_q / heat, -1), mixture)
    return cooled * (heat.squeeze(-1) ** 2 if isinstance(heat, Tensor) else heat**2)


class Judged(nn.Module):
    """What a student's hidden states say of some tokens, in chunks, so that [N, V] is never in memory as a whole.

    Args:
        kind, mixture, temperature, adaptive: See `tempered_divergence`.
        entropy: Whether the student's entropy is wanted.
    """

    def __init__(self, kind: str, mixture: float, temperature: float, adaptive: bool, entropy: bool) -> None:
        super().__init__()
        self.kind, self.mixture, self.temperature, self.adaptive = kind, mixture, temperature, adaptive
        self.entropy = entropy

    def forward(
        self, hidden: Tensor, head: nn.Linear, targets: Tensor, ids: Tensor | None, log_p: Tensor | None
    ) -> dict[str, Tensor]:
        """Return ``ce``, ``right`` (whether the first choice is the target), and, with a teacher, ``divergence`` and
        ``kl`` (forward, at temperature 1, without gradient), each [N].

        Args:
            hidden: [N, H].
            head: Turns them into logits.
            targets: [N] the tokens that were written.
            ids, log_p: [N, K] the teacher's most probable tokens; None where no divergence is wanted.
        """
        rows = max(1, CHUNK_NUMBERS // head.weight.shape[0])
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(hidden), rows):
            some = slice(start, start + rows)
            said = [None if t is None else t[some] for t in (ids, log_p)]
            arguments = (hidden[some], head, targets[some], said[0], said[1])
            if len(hidden) > rows and torch.is_grad_enabled():
                parts.append(checkpoint(self._chunk, *arguments, use_reentrant=False))
            else:
                parts.append(self._chunk(*arguments))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _chunk(
        self, hidden: Tensor, head: nn.Linear, targets: Tensor, ids: Tensor | None, log_p: Tensor | None
    ) -> dict[str, Tensor]:
        log_q = F.log_softmax(head(hidden).float(), dim=-1)
        found = {
            "ce": -log_q.gather(-1, targets[:, None])[:, 0],
            "right": (log_q.argmax(-1) == targets).float(),
        }
        if self.entropy:
            found["entropy"] = -(log_q.exp() * log_q).sum(-1)
        if ids is not None and log_p is not None:
            ours = outcomes(log_q, ids)
            theirs = with_rest(log_p.float(), complete=ids.shape[-1] == log_q.shape[-1])
            found["divergence"] = tempered_divergence(
                self.kind, theirs, ours, self.mixture, self.temperature, self.adaptive
            )
            found["kl"] = _kl(theirs, ours.detach())
        return found


def span_loss(values: Tensor, spans: Tensor, weights: Mapping[int, float]) -> Tensor:
    """Return the sum over spans of their weight times the mean of ``values`` on their tokens; a span without any is 0.

    Args:
        values: [N].
        spans: [N] ids of spans.
        weights: By id.
    """
    total = values.new_zeros(())
    for span, weight in weights.items():
        if weight:
            mask = (spans == span).to(values.dtype)
            total = total + weight * (values * mask).sum() / mask.sum().clamp_min(1.0)
    return total


def consistency(values: Tensor, spans: Tensor, rows: Tensor, first: int, second: int) -> Tensor:
    """Return the mean over trajectories of the squared difference between the mean values of two of their spans.

    Args:
        values, spans: [N].
        rows: [N] the trajectory of each token, from 0.
        first, second: Ids of spans.
    """
    count = int(rows.max()) + 1
    means = []
    for span in (first, second):
        mask = (spans == span).to(values.dtype)
        total = values.new_zeros(count).index_add(0, rows, values * mask)
        means.append(total / values.new_zeros(count).index_add(0, rows, mask).clamp_min(1.0))
    return (means[0] - means[1]).square().mean()


def guided_loss(values: Tensor, own: Tensor, turns: Tensor, trust: float) -> Tensor:
    """Return the weighted mean divergence on the student's own tokens; turns of a large divergence weigh less.

    The weight of a turn is exp(-d / trust), where d is its mean divergence, of which no gradient is taken.

    Args:
        values: [N] reverse KL.
        own: [N] whether the student wrote the token.
        turns: [N] the turn of each token, from 0, different for different trajectories.
        trust: Divergence at which the weight is 1/e.
    """
    mask = own.to(values.dtype)
    with torch.no_grad():
        count = int(turns.max()) + 1
        total = values.new_zeros(count).index_add(0, turns, values * mask)
        mean = total / values.new_zeros(count).index_add(0, turns, mask).clamp_min(1.0)
        weights = torch.exp(-mean / trust)[turns] * mask
    return (weights * values).sum() / weights.sum().clamp_min(1e-6)
