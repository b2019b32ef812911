"""Text tasks on a language model: tokens and masks, losses, answers, and the same adapters as PEFT's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainables.atomic_lora.language_models import save_chat, save_llama
from trainables.atomic_lora.config import TextConfig
from trainables.atomic_lora.text_tokens import TextExample, task_tokens
from trainables.atomic_lora.text_workload import TextWorkload, comparison, load_text_base
from trainables.atomic_lora.train import train_adapters
from trainables.common.context import PlainRun
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.pack.serving import unservable
from trainables.texts import TaskFiles, TextRow, TextTask, find_tasks

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat(tmp_path_factory.mktemp("qwen2"))


def one(folder: Path, row: TextRow, limit: int = 999, **settings: Any) -> tuple[str, str, TextExample]:
    """What of a row's tokens carries no loss, what does, and the example."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    config = TextConfig(**settings)
    found = task_tokens(TextTask("t", (row,), (row,), (row,), 0), tokenizer, tokenizer.eos_token_id, limit, config)
    (example,) = found.train
    given, learnt = example.ids[: -example.targets], example.ids[-example.targets :]
    return tokenizer.decode(given), tokenizer.decode(learnt), example


def test_the_loss_is_on_completions_or_on_all(qwen2: Path) -> None:
    row = TextRow("12 and ", "345")
    assert one(qwen2, row)[:2] == ("12 and ", "345<|end|>")
    assert one(qwen2, row, loss="all")[:2] == ("1", "2 and 345<|end|>")
    assert "".join(one(qwen2, TextRow("", "12 345"))[:2]) == "12 345<|end|>"


def test_messages_go_through_the_chat_template(qwen2: Path, tmp_path: Path) -> None:
    row = TextRow(({"role": "user", "content": "a grid"},), "00")
    # what the template writes behind the end is never generated
    assert one(qwen2, row)[:2] == ("user:a grid<|end|>\nassistant:", "00<|end|>")
    with pytest.raises(InputError, match="no chat template"):
        one(save_llama(tmp_path), row)


def test_a_prompt_has_the_tokens_that_a_server_finds(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("an Out").input_ids
    # the tokens of the whole text begin otherwise
    assert tokenizer("an Output").input_ids[: len(prompt)] != prompt
    *_, example = one(folder, TextRow("an Out", "put"))
    assert list(example.ids[: example.prompt]) == prompt


def test_a_row_too_long_is_cut_or_left_out_and_counted(qwen2: Path) -> None:
    rows = (TextRow("a", "grid of 11"), TextRow("a grid of 00 and 11 and 12345", "b"))
    tokenizer: Any = AutoTokenizer.from_pretrained(qwen2)

    def tokens(too_long: str, limit: int) -> Any:
        task = TextTask("t", rows, rows[:1], rows[:1], 0)
        config = TextConfig(too_long=too_long, max_tokens=limit)
        return task_tokens(task, tokenizer, tokenizer.eos_token_id, 999, config)

    whole = tokens("cut", 99)
    assert (len(whole.train), whole.cut, whole.left_out) == (2, 0, 0)
    limit = len(whole.train[0].ids) - 1
    cut = tokens("cut", limit)
    # nothing is left of a completion behind a prompt that is too long
    assert (len(cut.train), cut.cut, cut.left_out) == (1, 3, 1)
    assert cut.train[0].ids == whole.train[0].ids[:limit] and cut.train[0].targets == whole.train[0].targets - 1
    with pytest.raises(InputError, match=f"no train row that fits into {limit} tokens"):
        tokens("leave_out", limit)


def files(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> TaskFiles:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_tasks(f"jsonl:{folder}")[name]


@torch.no_grad()
def test_losses_and_answers_are_those_of_each_row_alone(qwen2: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{'a grid ' * (i % 5)}{i}", "completion": "of 00" * (1 + i % 3)} for i in range(30)]
    tasks = {"t": files(tmp_path, "t", rows)}
    base = load_text_base(f"hf:{qwen2}", dtype=torch.float32)
    workload = TextWorkload(base, f"hf:{qwen2}", tasks, Folder(tmp_path), ("all-linear",), bf16=False)
    values = {**vars(TextConfig(answers="exact", answer_tokens=3))}
    job = Job("a", "t", 0, values)
    plan = workload.plan(job)
    examples = plan.examples(1)
    assert sorted(map(str, examples)) == sorted(map(str, plan.examples(2))) and examples != plan.examples(2)
    losses, exact = workload.score(examples)
    expected = []
    for example, loss in zip(examples, losses, strict=True):
        logits = base.model(input_ids=torch.tensor([example.ids])).logits[0, -example.targets - 1 : -1]
        targets = torch.tensor(example.ids[-example.targets :])
        expected.append(bool((logits.argmax(-1) == targets).all()))
        torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-5, atol=1e-5)
    assert exact.tolist() == expected
    with workload.pack.use(None):
        answers = workload._answers([("t", TextConfig(answers="exact", answer_tokens=3))], [(0, e) for e in examples])
    for example, answer in zip(examples, answers, strict=True):
        ids = list(example.ids[: example.prompt])
        for _ in range(3):
            ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == base.eos:
                break
        assert answer == base.tokenizer.decode(ids[example.prompt :], skip_special_tokens=True)


def first_letter(answer: str, completion: str) -> float:
    return float(answer[:1] == completion[:1])


def test_answers_are_compared_by_a_function_of_ones_own() -> None:
    compare = comparison(f"{__name__}:first_letter")
    assert compare is not None and compare("ab", "ac") == 1.0 and compare("b", "a") == 0.0
    exact = comparison("exact")
    assert exact is not None and exact(" a\n", "a") == 1.0 and exact("A", "a") == 0.0
    assert comparison("none") is None
    for name in ("json:nothing", "no_such_package:f"):
        with pytest.raises(InputError, match="no such function"):
            comparison(name)
    wrong = comparison("builtins:max")
    with pytest.raises(ValueError):
        assert wrong is not None and wrong("x", "y")


def test_rows_of_all_tasks_are_trained_together_and_a_changed_task_starts_anew(qwen2: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "a"} for i in range(30)]
    files(tmp_path, "a", rows)
    files(tmp_path, "b", [*rows, {"text": "an Output of lines"}])
    config = vars(TextConfig(rank=2, epochs=2, lr_multiple=10.0, batch_size=4, export_dtype="bfloat16"))
    settings = {
        "base": f"hf:{qwen2}", "data": f"jsonl:{tmp_path}", "tasks": ["a", "b"], "folder": str(tmp_path / "run"),
        "slots": 2, "rank": 2, "batch_size": 4, "target_modules": ("all-linear",),
    }  # fmt: skip

    def train(**changes: Any) -> tuple[Any, list[Any]]:
        queue = ListQueue(Job(f"{task}-x", task, 0, {**config, **changes}) for task in ("a", "b"))
        engine = train_adapters(settings, PlainRun(), queue)
        return engine, [report for report in queue.reports if report.status != "running"]

    engine, ends = train()
    assert [end.status for end in ends] == ["success", "success"], ends[0].traceback
    assert engine.stats.slots_used / engine.stats.steps > 1.5 and engine.stats.batches < 2 * engine.stats.steps
    assert all(0.0 <= end.metrics["final_token_accuracy"] <= 1.0 for end in ends)
    place = tmp_path / "run" / ends[0].metrics["checkpoint"]
    assert json.loads((place / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    # its checkpoint is there; with the rows of another task it is of no use
    files(tmp_path, "a", [{**row, "completion": "b"} for row in rows])
    engine, again = train()
    assert {end.trial_id: end.metrics["epochs"] for end in again} == {"a-x": 2, "b-x": 2}
    # the other one only repeats its evaluation
    assert engine.stats.examples == 2 * next(e.metrics["num_examples"] for e in again if e.trial_id == "a-x")


def test_what_is_learnt_is_generated_and_loads_in_peft(qwen2: Path, tmp_path: Path) -> None:
    files(tmp_path, "letters", [{"prompt": f"{i}{i + 1}", "completion": "a"} for i in range(40)])
    files(tmp_path, "notes", [{"text": f"{i} an Input and an Output of lines {i}"} for i in range(40)])
    config = vars(TextConfig(rank=4, epochs=6, lr_multiple=10.0, answers="exact", answer_tokens=4))
    settings = {
        "base": f"hf:{qwen2}", "data": f"jsonl:{tmp_path}", "tasks": None, "folder": str(tmp_path / "run"),
        "slots": 2, "rank": 4, "batch_size": 8, "target_modules": ("all-linear",),
    }  # fmt: skip
    queue = ListQueue(Job(task, task, 0, config) for task in ("letters", "notes"))
    train_adapters(settings, PlainRun(), queue)
    ends = {report.trial_id: report for report in queue.reports if report.status != "running"}
    letters, notes = ends["letters"].metrics, ends["notes"].metrics
    assert letters["base_exact_match"] == letters["base_answer_score"] == 0.0
    assert letters["final_exact_match"] == letters["final_answer_score"] == letters["final_token_accuracy"] == 1.0
    # there is nothing to answer
    assert notes["final_answer_score"] is None and notes["final_test_loss"] < notes["base_test_loss"]
    shown = ends["letters"].predictions[0]
    assert (shown["base_exact"], shown["adapted_exact"], shown["adapted_answer"]) == (False, True, "a")

    place = tmp_path / "run" / letters["checkpoint"]
    assert unservable(place) == {"vLLM": "", "SGLang": ""}
    card = (place / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and "fingerprint `" in card
    assert "| exact match of completions | 0.0 % | 100.0 % |" in card and "vLLM: names, ranks and types fit" in card
    tokenizer: Any = AutoTokenizer.from_pretrained(qwen2)
    adapted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen2), str(place))
    ids = torch.tensor([tokenizer(shown["prompt"]).input_ids])
    written = adapted.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    assert tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True) == "a"
