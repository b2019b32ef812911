"""A model in a folder is known by what it computes: weights, tokenizer and configuration, whatever is around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainables.common.errors import InputError
from trainables.common.pretrained import fingerprint, folder_fingerprint, weight_files

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, dtype=np.float16)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "heads": 2, "_name_or_path": "/first"}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0, "y": 1}}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "y", "name_or_path": "/first"}))
    return folder


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(WEIGHTS):
        save_file({name: WEIGHTS[name]}, folder / f"part{number}.safetensors", metadata={"format": "pt"})
    places = {name: f"part{number}.safetensors" for number, name in enumerate(WEIGHTS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def edited(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}, indent=3), encoding="utf-8-sig")

    return edit


def last_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        sharded,
        edited("config.json", _name_or_path="/second", transformers_version="9", dtype="float16"),
        edited("tokenizer_config.json", name_or_path="/second"),
        lambda folder: (folder / "README.md").write_text("about it"),
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b"of its training"),
    ],
    ids=["moved", "in shards", "configuration's path", "tokenizer's path", "readme", "other files"],
)
def test_the_same_model_has_the_same_fingerprint(model: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    moved = tmp_path / "elsewhere" / "another name"
    shutil.copytree(model, moved)
    change(moved)
    assert folder_fingerprint(moved) == fingerprint(str(model)) and len(folder_fingerprint(moved)) == 16


@pytest.mark.parametrize(
    "change",
    [
        last_bit,
        edited("config.json", heads=4),
        edited("tokenizer.json", model={"vocab": {"x": 1, "y": 0}}),
        edited("tokenizer_config.json", eos_token="x"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: save_file({"a": WEIGHTS["a"].reshape(3, 2), "b": WEIGHTS["b"]}, folder / "model.safetensors"),
        lambda folder: save_file({"a": WEIGHTS["a"]}, folder / "model.safetensors"),
    ],
    ids=["a bit", "heads", "vocabulary", "end of sequence", "no tokenizer", "shape", "a tensor less"],
)
def test_another_model_has_another(model: Path, change: Callable[[Path], None]) -> None:
    before = folder_fingerprint(model)
    change(model)
    assert folder_fingerprint(model) != before


def test_every_family_knows_a_model_by_its_content(model: Path, tmp_path: Path) -> None:
    from trainables.arc_efe import language
    from trainables.reasoning_agents.needs import check_backbone
    from trainables.sad_student.data import Source, model_fingerprint, student_fingerprint

    def known(folder: Path) -> list[str]:
        place = str(folder)
        source = Source(teacher=place, student=place).fingerprint
        names = check_backbone(place), model_fingerprint(place), student_fingerprint(place), source
        return [*names, language.fingerprint(f"hf:{place}"), language.known_as(f"hf:{place}")]

    before, moved = known(model), shutil.copytree(model, tmp_path / "moved")
    assert known(moved) == before
    last_bit(moved)
    assert not set(known(moved)) & set(before)
    assert language.known_as("smollm2") == "smollm2" and student_fingerprint("layers:6") == "layers:6"


def test_files_that_are_no_weights_have_a_fingerprint_and_a_bad_index_is_refused(model: Path) -> None:
    found = set()
    for content in (b"", b"version https://git-lfs.github.com/spec/v1", b"\x08\0\0\0\0\0\0\0[1, 2, 3"):
        (model / "model.safetensors").write_bytes(content[:40])
        try:
            found.add(folder_fingerprint(model))
        except InputError as error:
            assert "The header of" in str(error)
    assert len(found) == 2
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="holds a list, not the index"):
        weight_files(model)
