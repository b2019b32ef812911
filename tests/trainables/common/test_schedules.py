"""Schedules are pure functions of the global step."""

from __future__ import annotations

import math

import pytest

from trainables.common.errors import InputError
from trainables.common.schedules import DECAYS, Schedule, constant, cosine, cosine_warm_restarts, linear, total_steps


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


# ------------------------------------------------------------------------------------------------- from start to end


@pytest.mark.parametrize("total", [1_000, 100_000])
@pytest.mark.parametrize(
    ("text", "start", "quarter", "end"),
    [
        # a quarter of the length: f = 1/4, (1 - cos(pi/4)) / 2, 1 - exp(-5/4)
        ("linear:0.3:0.05", 0.3, 0.2375, 0.05),
        ("cosine:0.1:0.001:50%", 0.1, 0.1 - 0.099 * 0.1464466094, 0.001),
        ("exponential:1.0:0.1", 1.0, 1.0 - 0.9 * 0.7134952031, 1.0 - 0.9 * 0.9932620530),
    ],
)
def test_a_schedule_scales_with_the_run(text: str, start: float, quarter: float, end: float, total: int) -> None:
    schedule = Schedule.parse(text)
    length = int(total * schedule.ratio)
    assert schedule.value(0, total) == start
    assert schedule.value(length // 4, total) == pytest.approx(quarter)
    assert schedule.value(length, total) == schedule.value(2 * length, total) == pytest.approx(end)
    values = [schedule.value(step, total) for step in range(0, length + 1, length // 100)]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)


def test_the_same_share_of_a_short_and_a_long_run_has_the_same_value() -> None:
    for text in ("linear:0:1", "cosine:3:1:30%", "exponential:0.2:0.9:80%"):
        schedule = Schedule.parse(text)
        for percent in (0, 7, 30, 55, 99):
            short, long = schedule.value(10 * percent, 1_000), schedule.value(1_000 * percent, 100_000)
            assert short == pytest.approx(long, abs=1e-12)


def test_a_length_in_steps_does_not_scale() -> None:
    schedule = Schedule.parse("linear:0:4:200")
    assert schedule == Schedule(0.0, 4.0, "linear", steps=200)
    assert schedule.value(50, 1_000) == schedule.value(50, 100_000) == 1.0
    assert schedule.value(200, 1_000) == schedule.value(900, 1_000) == 4.0


def test_a_number_is_a_schedule_that_does_not_move() -> None:
    schedule = Schedule.parse("0.25")
    assert {schedule.value(step, 10) for step in range(20)} == {0.25} and not schedule.moves
    assert Schedule.parse("linear:0.3:0.05").moves and not Schedule.parse("linear:1:1").moves


@pytest.mark.parametrize(
    "text",
    ["", "nan", "linear", "linear:1", "linear:1:2:0%", "linear:1:2:0", "linear:1:2:120%", "cubic:1:2", "linear:a:2"],
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a schedule; write a number, or SHAPE:START:END"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("groups", "mean_examples", "batch", "epochs", "steps"),
    [(1000, 8.0, 32, 4, 1_000), (10_000, 32.0, 32, 10, 100_000), (10, 1.0, 32, 7, 7), (100, 1.25, 50, 3, 6)],
)
def test_steps_of_a_run(groups: int, mean_examples: float, batch: int, epochs: int, steps: int) -> None:
    assert total_steps(groups, mean_examples, batch, epochs) == steps
