"""Expected free energy of one step on discrete distributions, as pymdp defines it, and divergences.

For a belief ``Q(s)`` over hidden states, a likelihood ``A = P(o|s)`` and log preferences ``C`` over outcomes, with
``Q(o) = A Q(s)``::

    risk + ambiguity = KL[Q(o) || softmax(C)] + E_Q(s) H[P(o|s)] = G + logsumexp(C)

where ``-G = H[Q(o)] - E_Q(s) H[P(o|s)] + sum Q(o) C`` is what ``pymdp.control`` computes for a policy's step, state
information gain plus utility. Source: Da Costa et al. (2020), "Active inference on discrete state-spaces".

All functions take and give tensors over the last axis, in natural logarithms; gradients reach every argument.
"""

from __future__ import annotations

import torch
from torch import Tensor

# smaller probabilities count as this one, so that a logarithm is finite
TINY = 1e-12


def outcomes(q_s: Tensor, likelihood: Tensor) -> Tensor:
    """Return ``Q(o)`` [..., O] of beliefs [..., S] under a likelihood [O, S] whose columns sum to 1."""
    return q_s @ likelihood.mT


def risk(q_o: Tensor, log_preference: Tensor) -> Tensor:
    """Return ``KL[Q(o) || P(o)]`` [...] of predicted outcomes [..., O]; ``log_preference`` [..., O] is normalised."""
    return (q_o * (log(q_o) - log_preference)).sum(-1)


def ambiguity(q_s: Tensor, likelihood: Tensor) -> Tensor:
    """Return ``E_Q(s) H[P(o|s)]`` [...] of beliefs [..., S] under a likelihood [O, S]."""
    return q_s @ entropy(likelihood.mT)


def expected_free_energy(q_s: Tensor, likelihood: Tensor, preference: Tensor) -> Tensor:
    """Return ``G`` [...] of one step, with log preferences [O] that need not be normalised."""
    q_o = outcomes(q_s, likelihood)
    total = risk(q_o, torch.log_softmax(preference, -1)) + ambiguity(q_s, likelihood)
    return total - torch.logsumexp(preference, -1)


def entropy(p: Tensor) -> Tensor:
    """Return ``H[p]`` [...] of distributions [..., K]."""
    return -(p * log(p)).sum(-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return ``KL[p || q]`` [...] of distributions [..., K]."""
    return (p * (log(p) - log(q))).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence [...] of distributions [..., K], in [0, log 2]."""
    middle = (p + q) / 2
    return (divergence(p, middle) + divergence(q, middle)) / 2


def log(p: Tensor) -> Tensor:
    """Return the logarithm of probabilities, finite for 0."""
    return p.clamp_min(TINY).log()
