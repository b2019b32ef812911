from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from search_spaces.atomic_lora_search import SPACE, stratified_panel
from trainables.common.errors import InputError

CATEGORIES = {f"t{i:03}": "A" if i < 60 else "B" if i < 90 else "C" for i in range(100)}
SIZES = {task: (37 * i) % 100 for i, task in enumerate(CATEGORIES)}


def test_every_preset_holds_a_pair_out_and_names_its_panel():
    for preset, count in (("smoke", 4), ("demo", 16), ("full", 40)):
        config, domains = SPACE.resolve(preset, num_samples=8)
        assert config.validation_pairs == 1 and domains
        assert SPACE.presets[preset].tasks == f"panel:{count}"


def test_panel_is_proportional_and_covers_every_category():
    chosen = Counter(CATEGORIES[task] for task in stratified_panel(CATEGORIES, SIZES, 20, seed=0))
    assert chosen == {"A": 12, "B": 6, "C": 2}
    assert Counter(CATEGORIES[task] for task in stratified_panel(CATEGORIES, SIZES, 3, 0)) == {"A": 1, "B": 1, "C": 1}
    assert [CATEGORIES[task] for task in stratified_panel(CATEGORIES, SIZES, 1, 0)] == ["A"]


def test_panel_is_spread_over_sizes():
    sizes = sorted(SIZES[task] for task in stratified_panel({}, SIZES, 10, seed=5))
    assert [size // 10 for size in sizes] == list(range(10))


def test_panel_is_the_same_for_the_same_seed_and_any_order_of_tasks():
    panel = stratified_panel(CATEGORIES, SIZES, 16, seed=1)
    assert panel == stratified_panel(CATEGORIES, dict(reversed(SIZES.items())), 16, seed=1)
    assert panel != stratified_panel(CATEGORIES, SIZES, 16, seed=2)


@given(st.integers(1, 100), st.integers(0, 5))
@hypothesis_settings(max_examples=50, deadline=None)
def test_panel_has_as_many_different_tasks_as_asked_for(count, seed):
    panel = stratified_panel(CATEGORIES, SIZES, count, seed)
    assert len(set(panel)) == count and set(panel) <= SIZES.keys()


@pytest.mark.parametrize("count", [0, 101])
def test_an_impossible_panel_is_refused(count):
    with pytest.raises(InputError, match=f"A panel of {count} tasks is not possible; choose from 1 to 100"):
        stratified_panel(CATEGORIES, SIZES, count, seed=0)
