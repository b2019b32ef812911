"""The commands of docs/own_tasks.md, from a folder of files to a model behind a server, on a tiny random base."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard

from sweeps import atomic_lora, text_tasks
from tests.sweeps.tiny import rows
from tests.trainables.atomic_lora.language_models import save_chat
from trainables.pack.serving import unservable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_tasks.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    save_chat(folder / "base")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_folder_of_files_becomes_adapters(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    write, train = (shlex.split(command) for command in blocks("bash"))
    assert write[:3] == ["python", "-m", "sweeps.text_tasks"] and text_tasks.main(write[3:]) == 0
    assert len(list(Path("my_tasks").glob("*.jsonl"))) == 24
    (own,) = blocks("yaml")
    assert yaml.safe_load(own)["plural"] == yaml.safe_load(Path("my_tasks/tasks.yaml").read_text())["plural"]
    Path("my_tasks/tasks.yaml").write_text(own)

    assert train[:2] == ["python", "sweeps/atomic_lora.py"]
    words = [f"hf:{folder / 'base'}" if word == "smollm2" else word for word in train[2:]]
    short = ["epochs=2", "examples_per_epoch=16", "lr_multiple=10", "answer_tokens=4"]
    more = [word for text in short for word in ("--set", text)]
    assert atomic_lora.main([*words, "--num-gpus", "0", "--tasks", "addition,plural", *more]) == 0
    out = capsys.readouterr().out
    assert "adapts 14 layers" in out and "exact match of completions" in out and "score of generated answers" in out
    trials = rows(Path("results"), "mine").set_index("task_id")
    assert set(trials.status) == {"success"} and set(trials.family) == {"text_lora"}
    assert trials.category.to_dict() == {"addition": "arithmetic", "plural": "rewrite"}
    ranks = {task: json.loads(config)["rank"] for task, config in trials.config.items()}
    assert ranks == {"addition": 8, "plural": 16}
    assert (trials.final_test_loss < trials.base_test_loss).all() and (trials.num_examples == 122).all()
    predictions = rows(Path("results"), "mine", "predictions")
    assert len(predictions) == 2 * 15 and predictions.adapted_answer.notna().all()
    for place in trials.checkpoint:
        adapter = Path("results/atomic_lora/mine", place)
        assert unservable(adapter) == {"vLLM": "", "SGLang": ""}
        card = ModelCard.load(adapter / "README.md")
        assert card.data.library_name == "peft" and "exact match of completions" in card.text

    (code,) = blocks("python")
    code = code.replace('embedded.folder("smollm2")', repr(str(folder / "base")))
    exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out and Path("addition/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="transformers serve needs fastapi and uvicorn")
def test_a_merged_model_answers_behind_transformers_serve(folder: Path) -> None:
    if not (folder / "addition").exists():
        # where this test runs alone
        save_chat(folder / "addition")
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    (command,) = re.findall(r"^transformers serve .*$", PAGE.read_text(), re.MULTILINE)
    words = [str(port) if word == "8000" else word for word in shlex.split(command)[1:]]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([*program, *words], cwd=folder, stdout=log, stderr=log)
    try:
        asked: dict[str, Any] = {
            "model": "addition",
            "prompt": "Give the sum in words.\none plus one\n",
            "max_tokens": 4,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    found = json.loads(answer.read())
                break
            except urllib.error.HTTPError:
                raise
            except OSError:
                time.sleep(0.2)
        assert isinstance(found["choices"][0]["text"], str)
    finally:
        server.kill()
        server.wait()
