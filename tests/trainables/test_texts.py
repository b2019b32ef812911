"""Folders of text tasks: forms of rows, what is held out, repeats, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainables.common.errors import InputError
from trainables.texts import TextRow, find_tasks, fingerprint, load_task, near_repeats, normal


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"double {i}", "completion": str(2 * i)} for i in range(start, start + count)]


def test_the_forms_of_rows_are_those_of_trl(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [
        {"prompt": "a", "completion": "b"}, {"messages": chat}, {"prompt": chat[:1], "completion": chat[1:]},
        {"text": "a whole text"},
    ]  # fmt: skip
    write(tmp_path / "t.jsonl", pairs(9))
    write(tmp_path / "t.test.jsonl", rows)
    task = load_task("t", find_tasks(f"jsonl:{tmp_path}")["t"])
    said = TextRow(({"role": "user", "content": "hi"},), "ho")
    assert task.test == (TextRow("a", "b"), said, said, TextRow("", "a whole text"))


def test_files_folders_and_tables_hold_the_same_task(tmp_path: Path) -> None:
    rows = pairs(12)
    write(tmp_path / "lines.jsonl", rows)
    # as an editor on Windows writes it, beside what a Mac leaves
    (tmp_path / "marked.jsonl").write_text(
        "".join(json.dumps(row) + "\r\n" for row in rows), encoding="utf-8-sig", newline=""
    )
    (tmp_path / "._lines.jsonl").write_bytes(b"\0")
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "table.parquet")
    write(tmp_path / "folder" / "data" / "train-0.jsonl", rows)
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    found = find_tasks(f"jsonl:{tmp_path}")
    assert list(found) == ["folder", "lines", "marked", "saved", "table"]
    assert len({fingerprint(load_task(name, files)) for name, files in found.items()}) == 1


def test_a_test_set_is_held_out_by_hash_and_nothing_repeats_it(tmp_path: Path) -> None:
    rows = pairs(100)
    echoes = [{"prompt": f"DOUBLE,  {i}!", "completion": "x"} for i in range(100)]
    write(tmp_path / "t.jsonl", [*rows, *echoes])
    task = load_task("t", find_tasks(f"jsonl:{tmp_path}")["t"])
    sets = [{normal(row.question) for row in part} for part in (task.train, task.validation, task.test)]
    assert [len(part) for part in sets] == [81, 9, 10] and not (sets[0] & sets[1] or sets[2] & (sets[0] | sets[1]))
    # another row changes places with one of the others at most
    write(tmp_path / "t.jsonl", [*rows, *echoes, {"prompt": "new", "completion": "y"}])
    again = load_task("t", find_tasks(f"jsonl:{tmp_path}")["t"])
    moved = {normal(row.question) for row in task.test} ^ {normal(row.question) for row in again.test}
    assert len(moved) <= 2


def test_rows_that_repeat_a_test_file_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", pairs(30))
    write(tmp_path / "t.test.jsonl", [{"prompt": "Double 3.", "completion": "6"}])
    task = load_task("t", find_tasks(f"jsonl:{tmp_path}")["t"])
    assert task.repeats == 1 and len(task.train) + len(task.validation) == 29
    assert "double 3" not in {row.prompt for row in (*task.train, *task.validation)}


def test_a_text_with_a_word_changed_is_a_near_repeat_and_a_template_makes_none() -> None:
    def text(words: str, instruction: str) -> TextRow:
        return TextRow(f"{instruction} {words}", "x")

    def numbered(kind: str, count: int) -> str:
        return " ".join(f"{kind}{i}" for i in range(count))

    instruction = numbered("instruction", 40)
    held = [text(numbered("held", 40), instruction)]
    changed = text(numbered("held", 40).replace("held20", "other"), instruction)
    others = [text(numbered(f"row{i}word", 6), instruction) for i in range(30)]
    assert near_repeats([*others, changed], held) == {30}
    # sums differ in a digit
    assert near_repeats([TextRow("what is 12 plus 3", "15")], [TextRow("what is 12 plus 4", "16")]) == set()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no <task>.jsonl"),
        ({"t.jsonl": "{"}, "line 1 is not valid JSON"),
        ({"t.jsonl": "[" * 100_000}, "line 1 is not valid JSON"),
        ({"t.jsonl": "[]"}, "no JSON object"),
        ({"t.jsonl": '{"prompt": "a", "answer": "b"}'}, "has answer, prompt; give"),
        ({"t.jsonl": '{"messages": [{"role": "user", "content": "a"}]}'}, "must be the assistant's"),
        ({"t.jsonl": ""}, "holds no row"),
        ({"t.jsonl": '{"text": "a"}'}, "none is left to train on"),
        ({"t.parquet": "PAR1"}, "cannot be read as a table"),
        ({"a b.jsonl": "{}"}, "cannot be called 'a b'"),
        ({"t.test.jsonl": "{}", "s.jsonl": "{}"}, "no rows to train it on"),
        ({"t.jsonl": "{}", "t.parquet": "x"}, "holds the task 't' twice"),
        ({"t.jsonl": "{}", "tasks.yaml": "s: {set: {rank: 2}}"}, "unknown task 's'"),
        ({"t.jsonl": "{}", "tasks.yaml": "t: {rank: 2}"}, "only 'category' and 'set'"),
        ({"t.jsonl": "{}", "tasks.yaml": "t: ["}, "is not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        for name, task in find_tasks(f"jsonl:{tmp_path}").items():
            load_task(name, task)
    assert said in str(error.value) and (str(tmp_path) in str(error.value))


def test_tasks_have_categories_and_settings_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", pairs(9))
    (tmp_path / "tasks.yaml").write_text("t: {category: sums, set: {rank: 4}}")
    (task,) = find_tasks(f"jsonl:{tmp_path}").values()
    assert task.category == "sums" and task.settings == {"rank": 4} and task.size > 0
