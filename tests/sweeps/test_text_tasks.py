"""Text tasks of one's own as a user trains them: a folder of files, a tiny random base, a real pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from search_spaces.atomic_lora_search import stratified_panel
from sweeps import atomic_lora
from tests.sweeps.test_atomic_lora import refused
from tests.sweeps.tiny import rows
from tests.trainables.atomic_lora.language_models import save_qwen2
from trainables.pack.serving import unservable

CHAT = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|end|>\n' }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_qwen2(tmp_path_factory.mktemp("base"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


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


@pytest.mark.slow
def test_a_folder_of_files_becomes_adapters_that_load(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["answers=exact", "answer_tokens=4", "rank=4", "lr_multiple=10", "epochs=6"]
    argv = words(base, data, tmp_path, *(word for text in settings for word in ("--set", text)))
    assert atomic_lora.main(argv) == 0
    out = capsys.readouterr().out
    assert "adapts 14 layers" in out and "score of generated answers" in out and "exact match of completions" in out
    trials = rows(tmp_path, "a").set_index("task_id")
    assert set(trials.status) == {"success"} and set(trials.family) == {"text_lora"}
    assert trials.category.to_dict() == {"chat": "talk", "letters": "text", "notes": "text"}
    assert [json.loads(trials.config[task])["rank"] for task in ("chat", "letters")] == [2, 4]
    assert trials.epochs.to_dict()["chat"] == 3 and trials.epochs.to_dict()["letters"] == 6
    assert (trials.final_test_loss < trials.base_test_loss).all()
    assert trials.num_examples.to_dict() == {"chat": 33, "letters": 33, "notes": 33}
    # the completion of every row is one letter, which is learnt
    assert trials.base_exact_match["letters"] == 0.0 and trials.final_exact_match["letters"] == 1.0
    assert trials.final_answer_score["letters"] == 1.0 and pd.isna(trials.final_answer_score["notes"])
    answers = rows(tmp_path, "a", "predictions")
    letters = answers[answers.task_id == "letters"]
    assert set(letters.adapted_answer) == {"a"} and letters.adapted_exact.all() and not letters.base_exact.any()

    place = tmp_path / "atomic_lora" / "a" / trials.checkpoint["letters"]
    assert unservable(place) == {"vLLM": "", "SGLang": ""}
    card = (place / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and trials.data_fingerprint["letters"] is not None
    assert "| exact match of completions | 0.0 % | 100.0 % |" in card and "vLLM: names, ranks and types fit" in card
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    adapted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(place))
    row = letters.iloc[0]
    ids = torch.tensor([tokenizer(row.prompt).input_ids])
    written = adapted.generate(input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True) == "a"

    # other rows are another run
    write(data, "letters", [{"prompt": f"{i}", "completion": "b"} for i in range(40)])
    assert "data" in refused(capsys, *argv)


def test_a_search_takes_text_tasks_as_its_panel(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = words(base, data, tmp_path, "--sweep", "batch_size=2,4", "--num-samples", "2", "--tasks", "panel:2")
    sweep, _, tasks = atomic_lora.prepare(
        "atomic_lora_search", atomic_lora.TEXT_SPACE, "", [*argv, "--set", "max_tokens=5"], stratified_panel
    )
    assert len(tasks) == 2 and "chat" in tasks and sweep.longest == 3
    # settings of its own hold in every configuration
    assert sweep.job("chat", vars(sweep.config) | {"epochs": 1}, 0, 0).config["epochs"] == 3
    assert sweep.cost(sweep.job("chat", vars(sweep.config), 0, 0)).epochs == 3
    assert "chat: 40 rows are longer than 5 tokens and are cut at their end." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "jsonl:/there/is/none"], "is no folder"),
        (["--tasks", "leters"], "the nearest are letters"),
        (["--set", "answers=sometimes"], "none, exact or package.module:function"),
        (["--set", "validation_pairs=1"], "no setting 'validation_pairs'"),
        (["--sweep", "rank=2,4", "--num-samples", "2"], "tasks.yaml, chat sets rank, which this sweep varies"),
        (["--set", "max_tokens=2", "--set", "too_long=leave_out"], "chat has no train row that fits into 2 tokens"),
        (["--base", "canvas"], "reads no text"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    capsys.readouterr()
    assert said in refused(capsys, *words(base, data, tmp_path, *more))
    assert not (tmp_path / "atomic_lora").exists()
