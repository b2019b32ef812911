"""Schedules are pure functions of the global step."""

from __future__ import annotations

import math

import pytest

from trainables.schedules import DECAYS, constant, cosine, cosine_warm_restarts, linear


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS.keys())
def test_decays_start_at_one_and_never_rise(decay) -> None:
    values = [decay(step, 40) for step in range(60)]
    assert values[0] == 1.0 and values == sorted(values, reverse=True) and values[-1] >= 0.0


def test_decays_at_known_steps() -> None:
    assert constant(7, 10) == 1.0
    assert linear(5, 20) == 0.75 and linear(20, 20) == linear(30, 20) == 0.0
    assert cosine(5, 10) == pytest.approx(0.5) and cosine(10, 10) == cosine(99, 10) == 0.0
    assert cosine(2, 8) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_warm_restarts_double_their_cycles() -> None:
    values = [cosine_warm_restarts(step, cycle=10, floor=0.01) for step in range(70)]
    # cycles of 10, 20 and 40 steps
    assert [step for step, value in enumerate(values) if value == 1.0] == [0, 10, 30]
    assert all(0.01 <= value <= 1.0 for value in values)
    for start, length in ((0, 10), (10, 20), (30, 40)):
        cycle = values[start : start + length]
        assert cycle == sorted(cycle, reverse=True)
        assert cycle[length // 2] == pytest.approx(0.01 + 0.99 * 0.5)


def test_warm_up_multiplies_the_cycle() -> None:
    warm = [cosine_warm_restarts(step, cycle=10, warmup=4) for step in range(20)]
    plain = [cosine_warm_restarts(step, cycle=10) for step in range(20)]
    ramp = [0.25, 0.5, 0.75] + [1.0] * 17
    assert warm == pytest.approx([r * p for r, p in zip(ramp, plain, strict=True)])


def test_growth_one_repeats_the_cycle() -> None:
    assert cosine_warm_restarts(25, cycle=10, growth=1) == cosine_warm_restarts(5, cycle=10)
