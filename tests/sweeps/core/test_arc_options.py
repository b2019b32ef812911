"""Which tasks are read, which are left out and counted, and what a run is known by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_spaces.arc_efe import SPACE as EFE
from search_spaces.champion import SPACES
from sweeps import arc_efe, atomic_lora, champion
from sweeps.core import cli
from sweeps.core.arc_options import choose_tasks
from sweeps.core.sweep import Inputs
from sweeps.store.summary import print_summary, summarise
from tests.sweeps.test_atomic_lora import refused
from tests.sweeps.tiny import save_tiny_champion
from trainables.arc import Pair, grid_key, write_pairs
from trainables.common.errors import InputError

PRESET = ("full", "all")


def entries(count: int, colour: int = 1) -> list[dict[str, Any]]:
    return [{"input": [[i % 10, i // 10, colour]], "output": [[i % 10]]} for i in range(count)]


def write(folder: Path, name: str, content: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two good tasks."""
    for number in (1, 2):
        write(tmp_path / "data", f"good{number}", entries(12, number))
    return tmp_path / "data"


ARC_LAYOUT = {"train": entries(3), "test": entries(1)}
BAD: dict[str, Any] = {
    "of another kind": {"examples": 3},
    "ARC's own": ARC_LAYOUT,
    "ARC's own, all in one": {"007bbfb7": ARC_LAYOUT},
    "empty": "",
    "brackets": "[" * 100_000,
    "closed brackets": "[" * 100_000 + "]" * 100_000,
    "digits": "[" + "1" * 5_000 + "]",
    "deep grid": [{"input": json.loads("[" * 90 + "1" + "]" * 90), "output": [[1]]}] * 9,
    "too few": entries(3),
    "no examples": [1, "two", None],
}
SAID = {
    "of another kind": "an object with 'examples'", "ARC's own": "ARC's own layout",
    "ARC's own, all in one": "ARC's own layout, many tasks in one file", "brackets": "nested too deeply",
    "closed brackets": "nested too deeply", "digits": "thousands of digits", "too few": "holds 3 examples",
    "no examples": "3 malformed",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_neighbour_is_nothing_to_a_chosen_task_and_is_left_out_of_all(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    before = choose_tasks(f"re-arc:{folder}", "good1", PRESET)
    write(folder, "bad", BAD[kind])
    assert json.dumps(before[1]) == json.dumps(choose_tasks(f"re-arc:{folder}", "good1", PRESET)[1]) == "{}"
    assert not capsys.readouterr().err
    for text in ("all", "smallest:2"):
        tasks, left_out = choose_tasks(f"re-arc:{folder}", text, PRESET)
        assert sorted(tasks) == ["good1", "good2"] and left_out == {"bad": {"tasks": 1}}
        warning = capsys.readouterr().err
        assert warning.count("\n") == 1 and "left out 1 tasks" in warning and "bad.json" in warning
    with pytest.raises(InputError, match="from 1 to 2") as caught:
        choose_tasks(f"re-arc:{folder}", "smallest:3", PRESET)
    with pytest.raises(InputError) as caught:
        choose_tasks(f"re-arc:{folder}", "bad,good1", PRESET)
    message = str(caught.value)
    assert "bad.json" in message and SAID.get(kind, "") in message and "\n" not in message and len(message) < 500


def test_hidden_files_folders_and_byte_order_marks_are_no_obstacle(folder: Path) -> None:
    (folder / "._good1.json").write_bytes(b"\x00\x05\x16\x07")
    (folder / "folder.json").mkdir()
    (folder / "good1.json").write_text(json.dumps(entries(12)), encoding="utf-8-sig")
    with pytest.raises(InputError, match="is a single JSON file; give the folder it is in"):
        choose_tasks(f"re-arc:{folder / 'good1.json'}", "all", PRESET)
    tasks, left_out = choose_tasks(f"re-arc:{folder}", "all", PRESET)
    assert sorted(tasks) == ["good1", "good2"] and not left_out


def test_bad_examples_are_left_out_with_one_counted_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{"input": [[1]] * 31, "output": [[1]]}, {"input": [[1, 2], [3]], "output": [[1]]}, {"input": [[1]]}, 7]
    for name in ("mixed", "mixed2"):
        write(folder, name, [*entries(6), *bad, *entries(20)[6:]])
    tasks, left_out = choose_tasks(f"re-arc:{folder}", "mixed,mixed2,good1", PRESET)
    assert left_out == {"mixed": {"malformed": 4}, "mixed2": {"malformed": 4}}
    assert len(tasks["mixed"].train) + len(tasks["mixed"].validation) + len(tasks["mixed"].test) == 20
    assert capsys.readouterr().err == f"warning: --data re-arc:{folder}: left out 8 malformed.\n"


@pytest.mark.parametrize("output", [[[0]], [[9]]], ids=["the same pair", "another output"])
def test_no_input_is_in_two_sets(folder: Path, output: list[list[int]]) -> None:
    pairs = entries(20)
    write(folder, "twice", [*pairs[:18], {**pairs[0], "output": output}, {**pairs[1], "output": output}])
    (task,), left_out = choose_tasks(f"re-arc:{folder}", "twice", PRESET)[0].values(), {"repeated": 2}
    sets = [{grid_key(pair.input) for pair in some} for some in (task.train, task.validation, task.test)]
    assert task.left_out == left_out and sum(map(len, sets)) == len(set.union(*sets)) == 18
    # in the places, and with the outputs, of the first ones
    kept = [pair.output.tolist() for pair in (*task.train, *task.validation, *task.test)]
    assert kept == [entry["output"] for entry in pairs[:18]]


def test_a_file_of_pairs_is_read_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    grids = [Pair(np.full((1, 1 + i), 1, np.int8), np.full((1, 1), 2, np.int8)) for i in range(12)]
    file = tmp_path / "pairs=all" / "pairs.parquet"
    file.parent.mkdir()
    write_pairs(file, {"a": grids, "b": grids}, {"seed": "0"})
    assert pq.ParquetFile(file).num_row_groups == 2
    table = pq.read_table(file, partitioning=None)
    # a task whose grids are of other sizes than they say, and one with a row that has none
    broken = table.set_column(2, "width", pa.array([0] * 12 + table["width"].to_pylist()[12:-1] + [None], pa.uint8()))
    pq.write_table(broken, file)
    tasks, left_out = choose_tasks(f"re-arc:{file}", "b", PRESET)
    assert (
        list(tasks) == ["b"]
        and left_out == {"b": {"malformed": 1}}
        and "left out 1 malformed" in capsys.readouterr().err
    )
    assert choose_tasks(f"re-arc:{file}", "all", PRESET)[1] == {"a": {"tasks": 1}, "b": {"malformed": 1}}
    with pytest.raises(InputError, match="holds 0 examples of a to use.*12 malformed"):
        choose_tasks(f"re-arc:{file}", "a", PRESET)


def test_a_preset_that_asks_for_too_many_tasks_is_not_blamed_on_tasks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "--preset", "smoke", "--data", f"re-arc:{folder}")
    assert "--preset smoke" in error and "from 1 to 2" in error and "--tasks smallest" not in error
    assert "from 1 to 2" in refused(capsys, "--tasks", f"smallest:{'9' * 5000}", "--data", f"re-arc:{folder}")


# ----------------------------------------------------------------------------------------------- what a run is known by


def adapters(tmp_path: Path, data: str, *words: str) -> Any:
    base = tmp_path / "champion.safetensors"
    if not base.exists():
        save_tiny_champion(tmp_path)
    argv = ["--preset", "smoke", "--base", str(base), "--results-dir", str(tmp_path / "results"), "--run-id", "r"]
    return atomic_lora.prepare("atomic_lora", atomic_lora.SPACE, "", [*argv, "--data", data, *words])[0]


def inputs_of(script: Any, space: Any, *words: str) -> Inputs:
    """Return what a script's `prepare` says of its data."""
    parser = cli.common_parser(space, "")
    cli.worker_options(parser)
    ours = () if script is arc_efe else (space,)
    script.add_options(*ours, parser)
    args = parser.parse_args(["--preset", "smoke", *words])
    config, domains = space.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
    return script.prepare(*ours, args, config, domains).inputs


def test_other_files_of_a_folder_and_its_place_change_no_run(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"

    def known() -> list[tuple[Any, ...]]:
        place = f"re-arc:{moved if moved.exists() else folder}"
        found = [
            adapters(tmp_path, place, "--tasks", "good1").inputs,
            inputs_of(champion, SPACES["autoregressive"], "--data", place, "--tasks", "good1"),
            inputs_of(champion, SPACES["canvas"], "--data", place, "--tasks", "good1"),
            inputs_of(arc_efe, EFE, "--data", place, "--tasks", "good1"),
        ]
        return [(one.data_fingerprint, one.fingerprints, one.left_out) for one in found]

    first = known()
    write(folder, "good3", entries(30))
    write(folder, "bad", "[")
    assert known() == first
    folder.rename(moved)
    assert known() == first
    write(moved, "good1", entries(13))
    assert not any(now == before for now, before in zip(known(), first, strict=True))


def test_a_run_goes_on_with_further_tasks_but_not_with_other_data_of_its_own(folder: Path, tmp_path: Path) -> None:
    data = f"re-arc:{folder}"
    write(folder, "good1", [*entries(12), 5, *entries(3)])
    adapters(tmp_path, data, "--tasks", "good1").open_store()
    write(folder, "good2", [*entries(12), 5])
    store = adapters(tmp_path, data, "--tasks", "good2").open_store()
    record = store.run()
    assert record is not None and sorted(record["fingerprints"]) == ["good1", "good2"]
    assert record["left_out"] == {"good1": {"malformed": 1, "repeated": 3}, "good2": {"malformed": 1}}
    assert summarise(store)["left_out"] == {"malformed": 2, "repeated": 3}
    write(folder, "good2", entries(13))
    with pytest.raises(InputError, match="has the data of good2 = "):
        adapters(tmp_path, data, "--tasks", "all").open_store()


def test_the_closing_table_says_what_was_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "good1", [*entries(12), 5, *entries(3)])
    print_summary(summarise(adapters(tmp_path, f"re-arc:{folder}", "--tasks", "good1").open_store()))
    assert "left out of the data: 1 malformed, 3 repeated" in capsys.readouterr().out
