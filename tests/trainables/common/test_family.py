"""What families declare: parts that fit together, rows compared, and declarations that can be read back."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.common.family import Column, Family, find_family, value_text

WINS = Column("wins", float, "held-out wins, in [0, 1]", "wins", "max", base="wins_before", percent=True)
BEFORE = Column("wins_before", float, "the same before training")
COST = Column("cost", float, "what a win costs", "cost", "min", base="cost_before")
OTHERS = (BEFORE, Column("cost_before", float, "the same before training"), Column("teacher", str, "who is asked"))
FAMILY = Family("toy", (WINS, COST, *OTHERS), metric="cost", mode="min", verdict=("wins", "cost"))


@pytest.mark.parametrize("name", ["atomic_lora", "champion", "recursive_reasoner"])
def test_the_projects_families_are_found_and_read_back_from_json(name: str) -> None:
    family = find_family(name)
    assert family.columns and Family.from_declaration(json.loads(json.dumps(family.declaration()))) == family


def test_a_declaration_of_a_later_version_reads_as_far_as_it_is_known() -> None:
    declared = json.loads(json.dumps(FAMILY.declaration()))
    declared["colour"] = declared["columns"][0]["colour"] = "red"
    assert Family.from_declaration(declared) == FAMILY
    assert find_family("of-another-project") == Family("of-another-project")


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (lambda: Family("x", (WINS, WINS, BEFORE)), "declares a column twice"),
        (lambda: Family("x", (WINS,)), r"does not declare: \['wins_before'\]"),
        (lambda: Family("x", (BEFORE,), metric="loss"), r"does not declare: \['loss'\]"),
        (lambda: Family("x", (BEFORE,), verdict=("wins_before",)), "give its base and which way is better"),
        (lambda: Family("x", (Column("t", str, "a text", "text"),)), "headlines that are no numbers: t"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(family: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        family()  # type: ignore[operator]


def test_a_row_is_compared_with_its_base_column_by_column() -> None:
    row = {"wins": 0.75, "wins_before": 0.5, "cost": 3.0, "cost_before": 2.0}
    assert FAMILY.change(row) == FAMILY.standing(row) == (0.25, -1.0)
    assert FAMILY.standing_text(row) == "+25.0 wins, +1 cost"
    assert FAMILY.change({"wins": 0.5, "wins_before": 0.5, "cost": math.nan, "cost_before": 2.0}) == (0.0, 0.0)
    assert FAMILY.change({"cost": 1.0, "cost_before": 2.0}) is None
    plain = Family("plain", (Column("cost", float, "what a win costs", "cost", "min"),))
    assert plain.change(row) is None and plain.standing(row) == (-3.0,) and plain.standing_text(row) == "cost 3"
    assert plain.standing({"cost": True}) is None and Family("").standing(row) is None
    assert [value_text(0.256, True), value_text(2.5, False), value_text(None, True)] == ["25.6 %", "2.5", "-"]


def test_declarations_bring_neither_torch_nor_ray() -> None:
    code = "import sys; from trainables.common.family import find_family; find_family('champion')"
    code += "; sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
