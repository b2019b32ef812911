"""Expected free energy against pymdp's own numbers, and what risk, ambiguity and divergences must be."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch

from tests.trainables.arc_efe.pymdp_cases import FILE, by_pymdp, cases
from trainables.arc_efe import free_energy

RECORDED = json.loads(FILE.read_text())["cases"]


def _expected(case: dict[str, list]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    belief, transition, likelihood, preference = (
        torch.tensor(case[name], dtype=torch.float64) for name in ("belief", "transition", "likelihood", "preference")
    )
    return transition @ belief, likelihood, preference


@pytest.mark.parametrize("name", RECORDED)
def test_expected_free_energy_is_pymdps(name: str) -> None:
    q_s, likelihood, preference = _expected(RECORDED[name])
    found = free_energy.expected_free_energy(q_s, likelihood, preference)
    assert float(-found) == pytest.approx(RECORDED[name]["neg_efe"], abs=1e-6)
    q_o = free_energy.outcomes(q_s, likelihood)
    parts = free_energy.risk(q_o, preference.log_softmax(0)) + free_energy.ambiguity(q_s, likelihood)
    assert float(parts) == pytest.approx(-RECORDED[name]["neg_efe"] + float(preference.logsumexp(0)), abs=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("pymdp") is None, reason="needs inferactively-pymdp, for the live numbers")
def test_the_recorded_numbers_are_what_pymdp_says_now() -> None:
    for name, case in cases().items():
        assert by_pymdp(case) == pytest.approx(RECORDED[name]["neg_efe"], abs=1e-4)


def test_only_partly_observed_cases_have_ambiguity_and_the_cue_is_worth_what_it_tells() -> None:
    assert {name: RECORDED[name]["likelihood"] for name in RECORDED} == {n: c["likelihood"] for n, c in cases().items()}
    ambiguous = {name: float(free_energy.ambiguity(*_expected(case)[:2])) for name, case in RECORDED.items()}
    assert ambiguous["observed"] == pytest.approx(0.0, abs=1e-9) and ambiguous["blind"] == pytest.approx(math.log(3))
    # both arms promise the same; what the cue is worth is what it tells: log 2 - H[0.9, 0.1]
    values = {name: RECORDED[name]["neg_efe"] for name in ("cue", "cue left arm", "cue right arm")}
    assert values["cue left arm"] == pytest.approx(values["cue right arm"])
    told = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    assert values["cue"] == pytest.approx(told, abs=1e-6)


def test_divergences_have_their_bounds_and_gradients() -> None:
    torch.manual_seed(0)
    p, q = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    apart = free_energy.jensen_shannon(p.softmax(-1), q.softmax(-1))
    assert (apart > 0).all() and (apart < math.log(2)).all()
    apart.sum().backward()
    assert p.grad.norm() > 0 and q.grad.norm() > 0
    certain = torch.eye(2)
    assert float(free_energy.jensen_shannon(certain[0], certain[1])) == pytest.approx(math.log(2))
    assert torch.isfinite(free_energy.divergence(certain[0], certain[1]))
