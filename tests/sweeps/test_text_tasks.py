"""Sweeps over text tasks before they start: settings, panels, refusals. tests/docs/test_own_tasks.py runs one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search_spaces.atomic_lora_search import stratified_panel
from sweeps import atomic_lora, text_tasks
from tests.sweeps.test_atomic_lora import refused
from tests.trainables.atomic_lora.language_models import save_chat


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat(tmp_path_factory.mktemp("base"))


def write(folder: Path, name: str, found: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write(folder, "letters", [{"prompt": f"{i}{i + 1}", "completion": "a"} for i in range(40)])
    chat = [[{"role": "user", "content": f"line {i}"}, {"role": "assistant", "content": "grid"}] for i in range(40)]
    write(folder, "chat", [{"messages": messages} for messages in chat])
    write(folder, "notes", [{"text": f"{i} an Input and an Output of lines {i}"} for i in range(40)])
    (folder / "tasks.yaml").write_text("chat: {category: talk, set: {rank: 2, epochs: 3}}\n")
    return folder


def words(base: Path, data: Path, results: Path, *more: str) -> list[str]:
    place = ["--results-dir", str(results), "--run-id", "a", "--num-gpus", "0", "--base", f"hf:{base}"]
    return ["--preset", "smoke", "--data", f"jsonl:{data}", *place, *more]


def test_a_search_takes_text_tasks_as_its_panel(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (data / "chat.jsonl").open("a") as file:
        for i in range(40):
            messages = [{"role": "user", "content": f"LINE {i}!"}, {"role": "assistant", "content": "grid"}]
            file.write(json.dumps({"messages": messages}) + "\n")
    argv = words(base, data, tmp_path, "--sweep", "batch_size=2,4", "--num-samples", "2", "--tasks", "panel:2")
    sweep, _, tasks = atomic_lora.prepare(
        "atomic_lora_search", atomic_lora.TEXT_SPACE, "", [*argv, "--set", "max_tokens=23"], stratified_panel
    )
    assert len(tasks) == 2 and "chat" in tasks and sweep.longest == 3
    # settings of its own hold in every configuration
    assert sweep.job("chat", vars(sweep.config) | {"epochs": 1}, 0, 0).config["epochs"] == 3
    assert sweep.cost(sweep.job("chat", vars(sweep.config), 0, 0)).epochs == 3
    # nothing is left of the completions behind the longer prompts
    assert sweep.inputs.left_out["chat"] == {"too_long": 40}
    assert "chat: 40 rows are longer than 23 tokens and are cut at their end." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "jsonl:/there/is/none"], "is no folder"),
        (["--tasks", "leters"], "the nearest are letters"),
        (["--set", "answers=sometimes"], "none, exact or package.module:function"),
        (["--set", "validation_pairs=1"], "no setting 'validation_pairs'"),
        (["--sweep", "rank=2,4", "--num-samples", "2"], "tasks.yaml, chat sets rank, which this sweep varies"),
        (["--base", "canvas"], "reads no text"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    capsys.readouterr()
    assert said in refused(capsys, *words(base, data, tmp_path, *more))
    assert not (tmp_path / "atomic_lora").exists()


def test_the_written_tasks_are_the_same_every_time_and_overwrite_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert text_tasks.main([str(tmp_path / name), "--rows", "12"]) == 0
    one, two = ({p.name: p.read_text() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 25
    assert all(len(set(text.splitlines())) == 12 for name, text in one.items() if name.endswith(".jsonl"))
    capsys.readouterr()
    assert "is not empty" in refused(capsys, str(tmp_path / "one"), main=text_tasks.main)
    assert [text_tasks.in_words(number) for number in (7, 40, 99, 300, 415)] == [
        "seven", "forty", "ninety-nine", "three hundred", "four hundred fifteen",
    ]  # fmt: skip
