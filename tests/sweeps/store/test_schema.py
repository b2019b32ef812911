"""The schema of the results: casting rows, refusing wrong values, reading older files."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from sweeps.store.schema import (
    HISTORY,
    PREDICTIONS,
    SCHEMA_VERSION,
    TRIALS,
    check_row,
    extra_columns,
    merge_extra,
    schema_of,
    to_table,
    upgrade,
)
from trainables.common.errors import InputError
from trainables.common.family import Column

KEY = {"trial_id": "a-1", "attempt": 1}


def test_every_column_is_declared_once_and_documented():
    tables = ((TRIALS, schema_of("trials")), (HISTORY, schema_of("history")), (PREDICTIONS, schema_of("predictions")))
    for columns, schema in tables:
        assert len({name for name, _, _ in columns}) == len(columns)
        assert all(schema.field(name).metadata[b"doc"].decode() == doc and doc for name, _, doc in columns)


def test_a_row_is_cast_into_the_declared_types():
    started = datetime(2025, 1, 2, tzinfo=UTC)
    row = {**KEY, "config": {"rank": 8}, "epochs": 3.0, "final_loss": np.float32(0.5), "started_at": started}
    table = to_table([row], "trials")
    assert table.schema.equals(schema_of("trials"))
    got = table.to_pylist()[0]
    assert (got["config"], got["epochs"], got["final_loss"], got["started_at"]) == ('{"rank": 8}', 3, 0.5, started)
    assert got["error"] is None


def test_columns_that_nobody_declared_are_typed_by_their_values():
    rows = [
        {
            **KEY,
            "config/rank": 8,
            "config/lr": 1,
            "config/rslora": True,
            "config/modules": ["q", "v"],
            "depth": 3,
            "note": "deep",
            "solved": True,
            "steps": [1, 2],
            "unknown": None,
            "huge": 2**70,
        },
        {**KEY, "config/rank": None, "config/lr": 0.5, "config/dropout": None, "depth": 0.5, "solved": "no"},
    ]
    table = to_table(rows, "trials")
    extra = {name: table.schema.field(name).type for name in table.schema.names[len(TRIALS) :]}
    assert extra == {
        "config/dropout": pa.null(),
        "config/lr": pa.float64(),
        "config/modules": pa.string(),
        "config/rank": pa.int64(),
        "config/rslora": pa.bool_(),
        "metric/depth": pa.float64(),
        "metric/huge": pa.string(),
        "metric/note": pa.string(),
        "metric/solved": pa.string(),
        "metric/steps": pa.string(),
    }
    assert table["config/modules"].to_pylist() == ['["q", "v"]', None]
    assert table["metric/depth"].to_pylist() == [3.0, 0.5] and table["metric/note"].to_pylist() == ["deep", None]
    assert table["metric/solved"].to_pylist() == ["true", "no"] and table["metric/steps"][0].as_py() == "[1, 2]"


def test_a_familys_columns_have_their_types_and_meanings_and_come_after_the_common_ones():
    own = (Column("wins", float, "held-out wins"), Column("teacher", str, "who wrote the labels"))
    table = to_table([{**KEY, "wins": 1, "metric/teacher": "large", "other": 2}], "trials", own=own)
    assert table.schema.names[len(TRIALS) :] == ["wins", "teacher", "metric/other"]
    assert table.schema.field("wins").metadata[b"doc"] == b"held-out wins"
    assert table.select(["wins", "teacher", "metric/other"]).to_pylist() == [
        {"wins": 1.0, "teacher": "large", "metric/other": 2}
    ]
    with pytest.raises(TypeError, match="'wins' of trials holds double, but trial 'a-1' gave 'many'"):
        check_row({**KEY, "wins": "many"}, "trials", own)


def test_a_metric_that_has_been_declared_since_reads_under_its_name():
    old = to_table([{**KEY, "wins": 0.5}], "trials")
    assert old.schema.names[-1] == "metric/wins"
    new = upgrade(old, "trials", own=(Column("wins", float, "held-out wins"),))
    assert new["wins"].to_pylist() == [0.5] and "metric/wins" not in new.schema.names


def test_a_component_column_keeps_its_name_in_history():
    table = to_table([{**KEY, "epoch": 1, "grad_norm/attention": 1.0}], "history")
    assert table.schema.field("grad_norm/attention").type == pa.float64()


def test_grids_are_arrays_or_lists_of_colours_and_may_be_missing():
    row = {**KEY, "pair": 0, "input": np.array([[1, 2]], dtype=np.int8), "expected": [[3], [4]], "base": None}
    table = to_table([row], "predictions")
    assert table.schema.equals(schema_of("predictions"))
    got = table.to_pylist()[0]
    assert (got["input"], got["expected"], got["base"], got["adapted"]) == ([[1, 2]], [[3], [4]], None, None)


@pytest.mark.parametrize("grid", [[[10]], [[-1]], [[0.5]], [1, 2], "12", 3, np.zeros(3)])
def test_what_is_no_grid_is_refused(grid):
    with pytest.raises(TypeError, match="'base' of predictions .* 'a-1'"):
        to_table([{**KEY, "pair": 0, "base": grid}], "predictions")


def test_a_diverged_loss_is_kept():
    table = to_table([{**KEY, "final_loss": math.nan, "best_loss": math.inf}], "trials")
    assert math.isnan(table["final_loss"][0].as_py()) and table["best_loss"][0].as_py() == math.inf


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            "trials",
            {**KEY, "final_loss": "low"},
            "'final_loss' of trials holds double, but trial 'a-1' gave 'low' .str.",
        ),
        ("trials", {**KEY, "epochs": 1.5}, "'epochs' of trials holds int64"),
        ("trials", {**KEY, "epochs": math.inf}, "'epochs' of trials holds int64"),
        ("trials", {**KEY, "seed": 2**64}, "'seed' of trials holds int64"),
        ("trials", {**KEY, "task_id": 7}, "'task_id' of trials holds string"),
        ("trials", {**KEY, "started_at": datetime(2025, 1, 1)}, "'started_at' of trials holds timestamp"),
        ("trials", {"trial_id": "a-1"}, "no 'attempt'"),
        ("history", KEY, "no 'epoch'"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_column_and_trial(kind, row, message):
    with pytest.raises(TypeError, match=message):
        to_table([row], kind)


def test_merging_types_keeps_every_value():
    merged = merge_extra({"a": pa.null(), "b": pa.int64(), "c": pa.bool_()}, {"a": pa.int64(), "b": pa.float64()})
    assert merged == {"a": pa.int64(), "b": pa.float64(), "c": pa.bool_()}
    assert merge_extra(merged, {"c": pa.int64()})["c"] == pa.string()
    assert extra_columns([{**KEY, "config/a": 1}, {**KEY, "config/a": "x"}], "trials") == {"config/a": pa.string()}


def test_a_table_of_an_older_version_reads_with_nulls_for_what_it_lacks():
    old = pa.table({"trial_id": ["a-1"], "attempt": pa.array([1], pa.int32()), "config/rank": [8]})
    new = upgrade(old, "trials")
    assert new.schema.equals(schema_of("trials", {"config/rank": pa.int64()}))
    assert new.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    row = new.to_pylist()[0]
    assert (row["trial_id"], row["attempt"], row["config/rank"], row["status"]) == ("a-1", 1, 8, None)


def test_a_table_of_a_newer_version_or_of_another_kind_is_refused():
    newer = (
        schema_of("trials").with_metadata({"schema_version": str(SCHEMA_VERSION + 1), "table": "trials"}).empty_table()
    )
    with pytest.raises(InputError, match=f"version {SCHEMA_VERSION + 1}"):
        upgrade(newer, "trials")
    with pytest.raises(InputError, match="'history'"):
        upgrade(schema_of("history").empty_table(), "trials")
