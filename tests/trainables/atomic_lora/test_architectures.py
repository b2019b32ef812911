"""Language models of many kinds: adapters of a pack equal PEFT's, and load where PEFT's do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainables.atomic_lora.architectures import make, save
from tests.trainables.atomic_lora.language_models import save_qwen2
from tests.trainables.pack.test_parity import Predictions, compare, start_of, train_alone
from trainables.atomic_lora.config import TextConfig
from trainables.atomic_lora.text_tokens import TextExample
from trainables.atomic_lora.text_workload import TextBase, TextWorkload
from trainables.atomic_lora.train import train_adapters
from trainables.common.context import PlainRun
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.pack.checkpoint import Factors
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Evaluation
from trainables.texts import find_tasks

torch.set_num_threads(1)


class Keeping(TextWorkload):
    """Exports, and keeps the factors as well."""

    kept: dict[str, Factors]

    def export(
        self, job: Job, plan: AdapterPlan[TextExample], factors: Factors, evaluation: Evaluation
    ) -> str:  # fmt: skip
        self.kept[job.trial_id] = factors
        return super().export(job, plan, factors, evaluation)


def predict(model: nn.Module, examples: Sequence[TextExample]) -> Predictions:
    """Logits and tokens of each completion, one example after another, nothing padded."""
    pieces = []
    for example in examples:
        logits = model(input_ids=torch.tensor([example.ids])).logits[0]
        pieces.append((logits[-example.targets - 1 : -1], torch.tensor(example.ids[-example.targets :])))
    return pieces


ALL = ("all-linear",)
# tied heads: qwen2, gpt2, gemma and its successors, opt; Conv1D: gpt2; a head with a bias: phi
KINDS = ["qwen2", "llama", "gpt2", "gemma", "phi", "opt", "falcon", "gemma3"]
CASES = [
    *((kind, ALL, torch.float64) for kind in KINDS),
    # whose attention computes in float32 whatever its weights are
    ("gemma2", ALL, torch.float32),
    # the attention of a mixture of experts
    ("qwen2_moe", ("q_proj", "v_proj"), torch.float64),
    ("mixtral", ("q_proj", "o_proj"), torch.float64),
]


@pytest.mark.parametrize(("kind", "targets", "dtype"), CASES, ids=[kind for kind, *_ in CASES])
def test_a_pack_equals_peft_on(
    kind: str, targets: tuple[str, ...], dtype: torch.dtype, tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    tokenizer: Any = AutoTokenizer.from_pretrained(save_qwen2(tmp_path / "model"))
    make(kind).save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{'a grid ' * (i % 3)}{i}", "completion": "of 00" if i % 2 else "Input"} for i in range(24)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = TextBase(make(kind).to(dtype), tokenizer, tokenizer.eos_token_id, 64, "none")
    tasks = find_tasks(f"jsonl:{tmp_path}")
    name = f"hf:{tmp_path / 'model'}"
    workload = Keeping(base, name, tasks, Folder(tmp_path / "run"), targets, bf16=False)
    workload.kept = {}
    values = vars(TextConfig(rank=3, epochs=2, batch_size=5, lr_multiple=2.0, export_dtype="float32"))
    values |= {"target_modules": targets}
    jobs = [Job("a", "t", 1, values), Job("b", "t", 2, {**values, "rank": 2, "loss": "all", "clip_norm": 0.1})]
    alone = {}
    for job in jobs:
        plan = workload.plan(job)
        alone[job.trial_id] = train_alone(make(kind).to(dtype), plan, start_of(workload.pack, plan, job), predict)
    queue = ListQueue(jobs)
    PackEngine(workload.pack, workload, 2, 3, dtype=dtype).run(queue)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert max(compare(workload.kept, queue.reports, alone, record_property, kind)) < tolerance

    place = tmp_path / "run" / "adapters" / "a"
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(whole, str(place))
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == len(workload.pack.layers)
    example = workload.plan(jobs[0]).validation[0]
    bank = PackEngine(workload.pack, workload, 1, 3, dtype=dtype).bank
    bank.write(0, workload.kept["a"], values["alpha"])
    ids = torch.tensor([example.ids])
    with torch.no_grad(), workload.pack.use(bank, [0]):
        expected = base.model(input_ids=ids).logits
    torch.testing.assert_close(adapted(input_ids=ids).logits.to(dtype), expected, rtol=1e-4, atol=1e-4)


def test_heads_are_tied_where_the_cases_say_so() -> None:
    tied = [
        kind
        for kind in KINDS
        if (model := make(kind)).get_output_embeddings().weight is model.get_input_embeddings().weight
    ]
    assert {"qwen2", "gpt2", "gemma", "opt"} <= set(tied) and not {"llama", "phi"} & set(tied)


# learned positions, of which there are no more than the context's; and a context under another name
@pytest.mark.parametrize(("kind", "limit"), [("gpt2", 64), ("mpt", 64)])
def test_a_short_context_cuts_rows_and_ends_answers(kind: str, limit: int, tmp_path: Path) -> None:
    base = save(kind, tmp_path / "base")
    rows = [{"prompt": f"{i} a grid", "completion": "01" * (3 if i % 5 else 90)} for i in range(30)]
    # a prompt that leaves room for two tokens of an answer
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "base")
    full = "7" * (limit - 2)
    assert len(tokenizer(full).input_ids) == limit - 2
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.test.jsonl").write_text(json.dumps({"prompt": full, "completion": "ab"}) + "\n")
    config = vars(TextConfig(rank=2, epochs=1, answers="exact", answer_tokens=9))
    settings = {
        "base": base, "data": f"jsonl:{tmp_path}", "tasks": ["t"], "folder": str(tmp_path / "run"), "slots": 1,
        "rank": 2, "batch_size": 8, "target_modules": ALL,
    }  # fmt: skip
    queue = ListQueue([Job("t", "t", 0, config)])
    train_adapters(settings, PlainRun(), queue)
    end = queue.reports[-1]
    # six rows with long completions, and the test row, whose end does not fit
    assert end.status == "success" and end.metrics["num_cut"] == 7 and end.metrics["num_left_out"] == 0, end.traceback
    (answer,) = (row["adapted_answer"] for row in end.predictions)
    assert len(tokenizer(answer).input_ids) <= 2
