"""Intervals against published numbers."""

from __future__ import annotations

import math

import pytest

from trainables.common.intervals import half_width, wilson


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert wilson(0, 100) == pytest.approx((0.0, 0.03699), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-4)


def test_half_of_an_interval_is_never_0_for_outcomes_that_all_agree() -> None:
    assert half_width([1, 1, 1, 1]) == pytest.approx((1 - wilson(4, 4)[0]) / 2)
    assert half_width([0, 1] * 50) == pytest.approx(0.09617, abs=1e-4)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(1.96 / math.sqrt(3), abs=1e-3)
    assert half_width([1]) == math.inf
