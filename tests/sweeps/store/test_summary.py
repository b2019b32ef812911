"""The summary of a run, how it is printed, and the command that prints and exports it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from dashboards.report_data import conclusion, gather
from sweeps.monitoring.trackers import means_of
from sweeps.results import main
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from sweeps.store.summary import over_text, print_summary, summarise
from tests.sweeps.store.test_store import ROOT, answers, epochs, record, trial
from trainables.common.family import Column, Family


def accuracies(base, final):
    columns = ("base_grid_accuracy", "base_cell_accuracy", "final_grid_accuracy", "final_cell_accuracy")
    return dict(zip(columns, (*base, *final), strict=True))


@pytest.fixture
def store(tmp_path):
    return ResultsStore(tmp_path, "sweep", "run")


@pytest.fixture
def full(store):
    store.create(record())
    store.append(
        [
            trial("up", **accuracies((0, 0.5), (1, 0.4)), copy_grid_accuracy=0.0, gpu_seconds=2.0, seconds=3.0),
            trial("tie-up", **accuracies((0, 0.5), (0, 0.6)), copy_grid_accuracy=0.5),
            trial("same", **accuracies((0, 0.5), (0, 0.5))),
            trial("down", **accuracies((1, 0.9), (0, 1.0))),
            trial("unknown", final_loss=float("nan")),
            trial("retried", "failed", error="[loss] is NaN"),
            trial("cut", "stopped", **accuracies((0, 0), (1, 1))),
        ],
        epochs("up", 2),
    )
    store.append([trial("retried", "failed", 2, error="[loss] is NaN again")], epochs("up", 3, attempt=2))
    store.append(predictions=[*answers("up"), *answers("retried"), *answers("retried", 1, 2)])
    return store


def test_the_summary_counts_the_last_attempt_and_breaks_ties_by_cells(full):
    summary = summarise(full)
    assert summary["counts"] == {"failed": 1, "stopped": 1, "success": 5} and summary["trials"] == 7
    assert summary["versus_base"] == {"improved": 2, "same": 1, "worse": 1, "not_compared": 1}
    means = summary["means"]
    assert means["base_grid_accuracy"] == means["final_grid_accuracy"] == means["copy_grid_accuracy"] == 0.25
    assert means["final_cell_accuracy"] == pytest.approx(0.625) and means["change_recall"] is None
    assert [row["task_id"] for row in summary["best"]] == ["up", "tie-up", "same"]
    assert [row["task_id"] for row in summary["worst"]] == ["down", "same", "tie-up"]
    assert summary["failures"] == [
        {"task_id": "retried", "trial_id": "retried", "attempt": 2, "error": "[loss] is NaN again"}
    ]
    assert summary["seconds"]["gpu_seconds"] == 2.0


def test_the_printed_summary_is_plain_outside_a_terminal(full, capsys):
    print_summary(summarise(full))
    text = capsys.readouterr().out
    assert text.isascii() and "\x1b" not in text
    lines = [" ".join(line.replace("|", " ").split()) for line in text.splitlines()]
    assert "improved against the base 2" in lines and "exact-match accuracy 25.0 % 25.0 %" in lines
    assert "failed: retried: [loss] is NaN again" in lines and f"results: {full.folder.root}" in lines
    assert "recall of changed cells" not in text


def test_a_mean_says_how_much_it_is_over(store, capsys):
    ten = {f"t{i}": "f" for i in range(10)}
    store.create({**record(), "fingerprints": ten, "left_out": {"t1": {"held_out": 2}, "t2": {"held_out": 1}}})
    values = accuracies((0, 0.5), (1, 0.75))
    store.append([*(trial(f"t{i}", **values) for i in range(4)), *(trial(f"t{i}", "failed") for i in range(4, 8))])
    summary = summarise(store)
    # two of the tasks have no row yet
    assert summary["tasks"] == 10 and summary["over"]["final_grid_accuracy"] == [4, 4]
    assert over_text(summary, "final_grid_accuracy") == "4 of 10 tasks"
    assert main([store.folder.root]) == 0
    lines = [" ".join(line.replace("|", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert lines.index("mean over 4 of 10 tasks") < lines.index("exact-match accuracy 0.0 % 100.0 %")
    assert "left out of the data: 3 that repeat a held-out one" in lines
    first, second, *_ = conclusion(summary)
    assert first.startswith("4 of 4 adapters are") and first.endswith("6 of 10 adapters were not compared.")
    assert second.endswith("means over 4 of 10 tasks.")
    told = means_of(summary)
    assert told["mean/final_grid_accuracy"] == 1.0 and told["mean_over/final_grid_accuracy"] == "4 of 10 tasks"
    page = gather(store)
    assert page["summary"]["over_text"]["final_grid_accuracy"] == "4 of 10 tasks"
    assert page["summary"]["left_out_text"] == "3 that repeat a held-out one"
    # a second configuration of each task: trials and tasks are no longer the same
    store.append([{**trial(f"u{i}", **values), "task_id": f"t{i}"} for i in range(8)])
    assert over_text(summarise(store), "final_grid_accuracy") == "12 of 16 adapters on 8 of 10 tasks"


def test_of_trials_without_tasks_the_mean_is_over_trials(store):
    store.create(run_record("command", {}, (), "f0", 0, Family("other", (Column("depth", float, "layers", "layers"),))))
    rows = [{"trial_id": f"o{i}", "attempt": 1, "status": "success", "task_id": "other"} for i in range(3)]
    store.append([{**rows[0], "depth": 2.0}, rows[1], {**rows[2], "status": "failed"}])
    summary = summarise(store)
    assert over_text(summary, "depth") == "1 of 3 trials"
    assert conclusion(summary)[-1] == "Layers is 2, a mean over 1 of 3 trials."


def test_an_empty_store_and_rows_of_another_family_have_a_summary(store, capsys):
    store.create(run_record("command", {}, (), "f0", 0, Family("other", (Column("depth", float, "layers", "layers"),))))
    print_summary(summarise(store))
    store.append([{"trial_id": "a", "attempt": 1, "status": "success", "depth": 2.0}])
    summary = summarise(store)
    assert summary["versus_base"]["not_compared"] == 1 and summary["best"] == []
    print_summary(summary)
    printed = capsys.readouterr().out
    assert "exact-match" not in printed and "base" not in printed and re.search(r"layers *\| *\| *2 ", printed)


def test_the_command_line_exports_one_file(full, tmp_path, capsys):
    file = tmp_path / "summary.json"
    assert main([full.folder.root, "--export-json", str(file)]) == 0
    assert "improved against the base" in capsys.readouterr().out
    exported = json.loads(file.read_text())
    assert exported["run"]["data_fingerprint"] == "f0" and exported["summary"]["trials"] == 7
    assert exported["history"]["up"]["attempt"] == [2, 2, 2] and exported["history"]["up"]["epoch"] == [1, 2, 3]
    assert "lr" not in exported["history"]["up"] and len(exported["trials"]) == 7
    pictures = [(row["trial_id"], row["attempt"], row["adapted"]) for row in exported["predictions"]]
    assert pictures == [("up", 1, [[0, 1]]), ("retried", 2, [[0, 1]])]


def test_the_command_line_refuses_in_one_sentence(full, tmp_path):
    for arguments in ([str(tmp_path)], ["/"], [full.folder.root, "--export-json", str(tmp_path / "no" / "file")]):
        command = [sys.executable, "-m", "sweeps.results", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_importing_it_brings_neither_torch_nor_ray():
    code = "import sys, sweeps.store.summary; sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
