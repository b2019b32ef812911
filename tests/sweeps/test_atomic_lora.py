"""The main job as a user runs it: a real command, a real Ray, a tiny Champion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps import atomic_lora, atomic_lora_search
from sweeps.backend.cluster import ClusterInfo
from sweeps.core.cli import run_main
from tests.sweeps.tiny import SMALLEST, TINY, Called, called, rows, save_tiny_champion
from tests.trainables.atomic_lora.language_models import save_llama, save_qwen2
from trainables.arc import load_tasks
from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.model import Champion, load_champion, save_champion


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_champion(tmp_path_factory.mktemp("base"))


def words(base: Path | str, results: Path, run_id: str, *more: str) -> list[str]:
    fixed = ["--preset", "smoke", "--num-gpus", "0", "--base", str(base)]
    return [*fixed, "--results-dir", str(results), "--run-id", run_id, *more]


def run(*args: Any, main: Any = atomic_lora.main) -> Called:
    return called(main, words(*args))


def start(*args: Any, **options: Any) -> subprocess.Popen[str]:
    """Start a sweep in a process of its own, with a Ray of its own."""
    return subprocess.Popen([sys.executable, str(Path(atomic_lora.__file__)), *words(*args)], text=True, **options)


# --------------------------------------------------------------------------------------------------- bad input, no Ray


def refused(capsys: pytest.CaptureFixture[str], *argv: str, main: Any = atomic_lora.main) -> str:
    """Run a command line that must be refused, and return its one sentence."""
    with pytest.raises(SystemExit) as exit_:
        run_main(main, list(argv))
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def test_an_unknown_task_is_refused_with_the_nearest_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "007bbfb7" in refused(capsys, "--tasks", "007bbfb8")


def test_a_base_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(capsys, "--base", str(tmp_path / "none.safetensors"))


def test_a_base_of_another_shape_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "champion.safetensors"
    save_champion(path, Champion(TINY), ChampionConfig(), {})
    assert "its configuration asks for" in refused(capsys, "--base", str(path))


def test_a_layer_that_the_base_does_not_have_is_refused(capsys: pytest.CaptureFixture[str], base: Path) -> None:
    error = refused(capsys, "--base", str(base), "--set", "target_modules=linear3")
    assert "linear3" in error and "linear1" in error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "format"),
        ("[]", "0 examples"),
        ("{]", "format"),
        (json.dumps([{"input": [[1] * 31], "output": [[1]]}] * 9), "30x30"),
        (json.dumps([{"input": [[11]], "output": [[1]]}] * 9), "value 11"),
        (json.dumps([{"input": [[1]]}] * 9), "format"),
    ],
)
def test_a_bad_re_arc_file_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "0a1b2c3d.json").write_text(content)
    error = refused(capsys, "--data", f"re-arc:{tmp_path}")
    assert said in error and "0a1b2c3d.json" in error


def test_an_empty_re_arc_folder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no re-ARC task files" in refused(capsys, "--data", f"re-arc:{tmp_path}")


def test_a_hugging_face_base_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no causal language model" in refused(capsys, "--base", "hf:there/is-none")


def test_a_layer_that_a_hugging_face_base_does_not_have_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = save_qwen2(tmp_path)
    capsys.readouterr()
    error = refused(capsys, "--base", f"hf:{model}", "--set", "target_modules=q_prj")
    assert "'q_prj'" in error and "'q_proj'" in error


def test_a_run_does_not_go_on_with_a_base_whose_last_weight_is_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # The file of weights is several MiB long.
    model = save_qwen2(tmp_path / "model", intermediate_size=4096)
    argv = ["--preset", "smoke", "--base", f"hf:{model}", "--results-dir", str(tmp_path), "--run-id", "a"]
    sweep, _, _ = atomic_lora.prepare("atomic_lora", atomic_lora.SPACE, "", argv)
    sweep.open_store()
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    capsys.readouterr()  # of saving the model
    assert "base_fingerprint" in refused(capsys, *argv)


def test_a_setting_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rank" in refused(capsys, "--set", "ranc=8")


def test_results_that_cannot_be_written_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "results"):
        error = refused(capsys, "--base", str(base), "--preset", "smoke", "--results-dir", str(place))
        assert f"--results-dir: '{place}' is no folder: {tmp_path / 'file'} is a file" in error


def test_a_start_that_is_refused_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path) -> None:
    argv = ["--preset", "smoke", "--base", str(base), "--run-id", "r", "--wandb", "offline", "--tensorboard"]
    results = tmp_path / "some" / "results"
    nobody = ["--address", "127.0.0.1:1"]
    assert "No Ray cluster answers" in refused(capsys, *argv, "--results-dir", str(results), *nobody)
    assert not (tmp_path / "some").exists()
    # what was there before stays, a run of its own included
    atomic_lora.prepare("atomic_lora", atomic_lora.SPACE, "", [*argv, "--results-dir", str(results)])[0].open_store()
    before = (results / "atomic_lora" / "r" / "run.json").read_bytes()
    refused(capsys, *argv, "--results-dir", str(results), *nobody)
    assert (results / "atomic_lora" / "r" / "run.json").read_bytes() == before


def test_a_search_without_anything_to_search_is_refused(capsys: pytest.CaptureFixture[str], base: Path) -> None:
    error = refused(capsys, "--preset", "smoke", "--base", str(base), main=atomic_lora_search.main)
    assert "--sweep" in error


# ----------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def swept(base: Path, cluster: ClusterInfo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    """A complete smoke sweep over four tasks with two configurations each."""
    results = tmp_path_factory.mktemp("results")
    more = ("--tasks", ",".join(SMALLEST), "--num-samples", "2", "--sweep", "rank=2,4", "--wandb", "offline")
    return results, run(base, results, "a", *more)


@pytest.mark.slow
def test_every_task_and_sample_has_its_row(swept: tuple[Path, Called], base: Path) -> None:
    results, process = swept
    assert process.code == 0, process.err
    trials, history = rows(results, "a"), rows(results, "a", "history")
    assert sorted(zip(trials["task_id"], trials["sample"], strict=True)) == [(t, s) for t in SMALLEST for s in (0, 1)]
    assert set(trials["status"]) <= {"success", "stopped"}
    done = trials[trials["status"] == "success"]
    for name in ("base_grid_accuracy", "final_grid_accuracy", "final_cell_accuracy", "copy_cell_accuracy"):
        assert done[name].between(0, 1).all()
    assert (
        done["checkpoint"].notna().all() and (done["epochs"] == 2).all() and (trials["config/rank"].isin([2, 4])).all()
    )
    assert not history.duplicated(["trial_id", "epoch"]).any()
    assert history.groupby("trial_id")["epoch"].max().to_dict() == dict(
        zip(trials["trial_id"], trials["epochs"], strict=True)
    )
    pictures = rows(results, "a", "predictions")
    tasks = load_tasks()
    asked = [
        (trial_id, pair)
        for trial_id, task in zip(done["trial_id"], done["task_id"], strict=True)
        for pair in range(len(tasks[task].test))
    ]
    assert sorted(zip(pictures["trial_id"], pictures["pair"], strict=True)) == sorted(asked)
    expected = pictures.groupby("task_id")["expected"].first()
    assert all([row.tolist() for row in grid] == tasks[task].test[0].output.tolist() for task, grid in expected.items())
    # derived from the base's own learning rate, not typed twice
    assert history["lr"].tolist() == pytest.approx([TINY.lr] * len(history))
    assert (history[["grad_norm/decoder", "grad_norm/encoder", "grad_norm/context_encoder"]] > 0).all(axis=None)
    assert "exact-match accuracy" in process.out and "adapters per hour" in process.err


@pytest.mark.slow
def test_the_adapters_load_in_peft(swept: tuple[Path, Called], base: Path) -> None:
    from peft import PeftModel

    results, _ = swept
    folder = results / "atomic_lora" / "a"
    trials = rows(results, "a")
    place = trials[trials["status"] == "success"]["checkpoint"].iloc[0]
    model = PeftModel.from_pretrained(load_champion(base).model, str(folder / place))
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert not list((folder / "checkpoints").glob("*.safetensors")), "finished adapters need no rung checkpoint"


@pytest.mark.slow
def test_the_same_command_again_does_nothing_and_more_samples_extend_it(swept: tuple[Path, Called], base: Path) -> None:
    results, _ = swept
    before = rows(results, "a").set_index("trial_id")["finished_at"]
    more = ("--tasks", ",".join(SMALLEST), "--sweep", "rank=2,4")
    again = run(base, results, "a", *more, "--num-samples", "2")
    assert again.code == 0, again.err
    assert rows(results, "a").set_index("trial_id")["finished_at"].equals(before)
    extended = run(base, results, "a", *more, "--num-samples", "3")
    assert extended.code == 0, extended.err
    after = rows(results, "a").set_index("trial_id")["finished_at"]
    assert len(after) == 12 and after[before.index].equals(before)


@pytest.mark.slow
def test_a_run_id_with_other_settings_is_refused(
    swept: tuple[Path, Called], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, _ = swept
    more = ("--tasks", ",".join(SMALLEST), "--num-samples", "2", "--sweep", "rank=2,4", "--seed", "1")
    error = refused(capsys, *words(base, results, "a", *more))
    assert "seed" in error and "--run-id" in error


@pytest.mark.slow
def test_wandb_offline_leaves_a_run(swept: tuple[Path, Called]) -> None:
    results, _ = swept
    assert list((results / "atomic_lora" / "a" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_driver_loses_nothing_and_two_runs_share_the_machine(base: Path, tmp_path: Path) -> None:
    more = ("--tasks", ",".join(SMALLEST), "--set", "epochs=40", "--set", "patience=40", "--set", "report_every=2")
    processes = {name: start(base, tmp_path, name, *more) for name in ("killed", "beside")}
    checkpoints = tmp_path / "atomic_lora" / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes["killed"].send_signal(signal.SIGKILL)
    processes["killed"].wait()
    killed_at = rows(tmp_path, "killed", "history")
    assert processes["beside"].wait(240) == 0
    again = run(base, tmp_path, "killed", *more)
    assert again.code == 0, again.err
    for name in ("killed", "beside"):
        trials, history = rows(tmp_path, name), rows(tmp_path, name, "history")
        assert sorted(trials["task_id"]) == SMALLEST
        assert sorted(zip(history["task_id"], history["epoch"], strict=True)) == [
            (t, e) for t in SMALLEST for e in range(1, 41)
        ]
    assert len(killed_at) < 160, "the kill came too late to show anything"
    curves = [
        rows(tmp_path, name, "history").set_index(["task_id", "epoch"])["eval_loss"] for name in ("killed", "beside")
    ]
    assert (curves[0].sort_index() - curves[1].sort_index()).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_adapters_on_a_hugging_face_base_and_those_of_them_that_diverge_are_failed_rows(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    more = ("--tasks", ",".join(SMALLEST), "--num-samples", "2", "--sweep", "lr_multiple=1.0,1e30")
    process = run(f"hf:{model}", tmp_path, "h", *more)
    assert process.code == 1, process.err
    trials = rows(tmp_path, "h")
    assert sorted(zip(trials["task_id"], trials["sample"], strict=True)) == [(t, s) for t in SMALLEST for s in (0, 1)]
    wild = trials["config/lr_multiple"] > 1.0
    assert wild.sum() == 4 and (trials[wild]["status"] == "failed").all()
    assert trials[wild]["error"].str.contains("DivergedError").all()
    assert trials[wild]["traceback"].str.contains("Traceback").all() and (trials[wild]["stop_reason"] == "error").all()
    assert (trials[~wild]["status"] == "success").all() and trials[~wild]["traceback"].isna().all()
    place = trials[~wild]["checkpoint"].iloc[0]
    kept = json.loads((tmp_path / "atomic_lora" / "h" / place / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == str(model)
    record = json.loads((tmp_path / "atomic_lora" / "h" / "run.json").read_text())
    assert record["settings"]["base"] == f"hf:{model}"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_panel_search_compares_configurations_on_the_same_tasks(base: Path, tmp_path: Path) -> None:
    more = ("--num-samples", "3", "--sweep", "rank=2,4", "--sweep", "lr_multiple=loguniform(0.1, 1.0)")
    process = run(base, tmp_path, "p", *more, main=atomic_lora_search.main)
    assert process.code == 0, process.err
    trials = rows(tmp_path, "p", sweep="atomic_lora_search")
    panels = trials.groupby("config_hash")["task_id"].apply(lambda ids: tuple(sorted(ids)))
    assert len(panels) == 3 and len(set(panels)) == 1 and len(panels.iloc[0]) == 4
    again = run(base, tmp_path, "p", *more, main=atomic_lora_search.main)
    assert again.code == 0 and len(rows(tmp_path, "p", sweep="atomic_lora_search")) == 12


def test_the_smallest_tasks_are_what_these_tests_say() -> None:
    tasks = load_tasks()
    assert max(tasks[task_id].tokens for task_id in SMALLEST) <= 30
