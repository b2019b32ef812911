"""Small runs of every kind, written by the real results store: what the tests of the report read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.reasoner_scaling import FILE, SCHEMA
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from trainables.common.family import find_family
from trainables.reasoning_agents.family import CRITERIA

START = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
# what a browser would run, or Plotly read as markup, if any part of the page let it
HOSTILE = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def new_store(folder: Path, run_id: str = "run", sweep: str = "atomic_lora", **settings: Any) -> ResultsStore:
    """Return an empty store with its run.json."""
    store = ResultsStore(folder, sweep, run_id)
    fixed = {"seed": 0, "config": {"rank": 8, "epochs": 4}, "tasks": [f"t{n}" for n in range(20)]}
    command = ["python", f"sweeps/{sweep}.py", "--preset", "demo"]
    store.create(run_record(command, {**fixed, **settings}, [], "f0", 0, find_family(sweep)))
    return store


def trial(name: str, number: int = 0, **columns: Any) -> dict[str, Any]:
    """Return a successful row of the pool that ran for 60 seconds from minute ``number``."""
    started = START + timedelta(minutes=number)
    return {
        "trial_id": name, "attempt": 1, "task_id": name, "category": "same_size", "sample": 0, "status": "success",
        "epochs": 4, "final_loss": 0.5, "best_loss": 0.5, "worker": 0, "slot": number % 2, "seconds": 60.0,
        "started_at": started, "finished_at": started + timedelta(seconds=60), **columns,
    }  # fmt: skip


def scores(base: float, final: float, exact: tuple[float, float] = (0.0, 0.0)) -> dict[str, float]:
    """Return the accuracies of a trial: cells, and whole grids, before and after."""
    return {
        "base_cell_accuracy": base, "final_cell_accuracy": final, "base_grid_accuracy": exact[0],
        "final_grid_accuracy": exact[1], "copy_cell_accuracy": 0.6, "copy_grid_accuracy": 0.0,
    }  # fmt: skip


def curve(row: Mapping[str, Any], epochs: int = 4) -> list[dict[str, Any]]:
    """Return the history of a trial whose evaluation loss falls to 0.5."""
    key = {name: row[name] for name in ("trial_id", "attempt", "task_id")}
    return [
        {**key, "epoch": epoch, "train_loss": 1 / epoch, "eval_loss": 0.5 + (epochs - epoch) / 10}
        for epoch in range(1, epochs + 1)
    ]


def answers(row: Mapping[str, Any], adapted: list[list[int]] | None) -> dict[str, Any]:
    """Return a prediction of a trial: the base answers nothing."""
    key = {name: row[name] for name in ("trial_id", "attempt", "task_id")}
    return {**key, "pair": 0, "input": [[1, 2], [3, 4]], "expected": [[4, 3]], "base": None, "adapted": adapted}


def pool_run(
    folder: Path, count: int = 20, run_id: str = "run", hostile: bool = False, **settings: Any
) -> ResultsStore:
    """Return a run of the adapter pool: better, same and worse adapters, two failures (one mended), one unfinished."""
    store = new_store(folder, run_id, **settings)
    rows = [
        trial(f"t{n}", n, category=("same_size", "growing")[n % 2], **scores(0.5, 0.5 + (n % 3 - 1) * n / 100))
        for n in range(count)
    ]
    if hostile:
        rows[0] |= {"task_id": HOSTILE, "trial_id": HOSTILE, "category": f"<b>{HOSTILE}</b>"}
    broken = trial("broken", count, status="failed", final_loss=None, best_loss=None)
    broken |= {"error": HOSTILE if hostile else "DivergedError: lower the rate", "traceback": f"Traceback\n{HOSTILE}"}
    mended = trial("mended", count, status="failed", error="OSError: once", traceback="Traceback\nOSError: once")
    history = [epoch for row in rows for epoch in curve(row)]
    pictures = [answers(row, [[4, 3]] if n % 2 else [[4, 0]]) for n, row in enumerate(rows)]
    store.append([*rows, broken, mended], history, pictures)
    store.append([trial("mended", count + 1, attempt=2, **scores(0.5, 0.75))])
    store.append([], curve(trial("under-way"), 3))
    return store


def search_run(folder: Path, run_id: str = "search") -> ResultsStore:
    """Return a search over three configurations on four tasks, judged by ASHA at epochs 1 and 3."""
    store = new_store(folder, run_id)
    rows = []
    for task in range(4):
        for sample, (rate, rank) in enumerate([(0.1, 4), (1.0, 8), (10.0, 8)]):
            row = trial(f"t{task}-{sample}", task, task_id=f"t{task}", sample=sample, slot=sample)
            row |= {
                "config/lr": rate,
                "config/rank": rank,
                "rung": 3,
                "asha_cutoff": 0.7,
                "best_loss": 0.5 + sample / 10,
            }
            if sample == 2:
                row |= {"status": "stopped", "stop_reason": "asha", "epochs": 1, "rung": 1, "final_loss": 0.9}
            else:
                row |= scores(0.5, 0.6)
            rows.append(row)
    store.append(rows, [epoch for row in rows for epoch in curve(row, row["epochs"])])
    return store


def plain_run(folder: Path, run_id: str = "plain") -> ResultsStore:
    """Return a sweep of another family: two models, no base, no slots, a metric of its own."""
    store = new_store(folder, run_id, sweep="champion")
    rows = [
        {**trial(f"m{n}", n), "task_id": "champion", "category": None, "slot": None, "worker": None, "depth": 0.25}
        for n in range(2)
    ]
    # a value after training, but none before
    rows = [{**row, "teacher_forced_cell_accuracy": 0.25 * n} for n, row in enumerate(rows)]
    store.append(rows, [epoch for row in rows for epoch in curve(row, 6)])
    return store


def reasoner(
    name: str, exact: float, steps: float, seed: int = 0, dataset: str = "sudoku4", **settings: Any
) -> dict[str, Any]:
    """Return a successful row of a reasoner that was trained with these settings beside the reference's."""
    config = {"ema": 0.99, "halting": "bce", "planner": "none", "eval_every": 1, **settings}
    return {
        **trial(name), "task_id": "recursive_reasoner", "category": None, "slot": None, "worker": None, "seed": seed,
        "config": json.dumps(config), "dataset": dataset, "halting": config["halting"], "planner": config["planner"],
        "exact_accuracy": exact, "mean_steps": steps, "majority_exact_accuracy": 0.0, "data_fingerprint": "f0",
    }  # fmt: skip


def reasoner_run(folder: Path, run_id: str = "ablation") -> ResultsStore:
    """Return an ablation of a reasoner with two seeds, each of which has solved one 4x4 Sudoku in its second step."""
    store = new_store(folder, run_id, sweep="recursive_reasoner")
    rows = [
        reasoner(f"{name}-{seed}", exact - 0.02 * seed, steps, seed, **changes)
        for seed in (0, 1)
        for name, exact, steps, changes in (
            ("reference", 0.96, 2.5, {}),
            ("fixed", 0.97, 6.0, {"halting": "fixed"}),
            ("raw", 0.9, 2.75, {"ema": 0.0}),
        )
    ]
    rows[0]["direct_exact_accuracy"] = 0.5
    stopped = {**reasoner("stopped", 0.1, 6.0, halting="dqn"), "status": "stopped"}
    store.append([*rows, stopped], [epoch for row in rows for epoch in curve(row)])
    target = [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]
    puzzle, wrong = [0, *target[1:15], 0], [2, *target[1:]]
    for row in rows:
        solved = {"side": 4, "inputs": [puzzle], "targets": [target], "answers": [[wrong, target, target]]}
        solved |= {"steps": [2], "answered": [2]}
        store.folder.write(f"models/{row['trial_id']}/solved.json", json.dumps(solved).encode())
    return store


def scaled(store: ResultsStore, trial_id: str) -> None:
    """Write what `sweeps.reasoner_scaling` would of one trial: three ways to think, the points of one out of order."""
    about = {"trial_id": trial_id, "dataset": "sudoku4", "trained_max_steps": 6, "train_steps": 100, "puzzles": 32}
    about |= {"train_cpu_minutes": 3.5, "halting": "fixed", "planner": "none", "seed": 0}
    rows = [
        {**about, "level": level, "method": method, "trajectories": count, "noise": noise, "most_steps": most,
         "steps": float(most * count), "exact_accuracy": exact, "token_accuracy": 0.9, "valid_accuracy": None,
         "flops_per_puzzle": 1e6 * most * count, "seconds_per_puzzle": 1e-3 * most * count}
        for level, method, count, noise, most, exact in (
            ("as trained", "steps", 1, 0.0, 2, 0.75), ("as trained", "steps", 1, 0.0, 1, 0.5),
            ("harder", "steps", 1, 0.0, 1, 0.25), ("as trained", "best_score", 4, 0.2, 2, 0.875),
        )
    ]  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer)
    store.folder.write(FILE, buffer.getvalue())


def agents(name: str, seed: int = 0, hrm: float = 0.8, **settings: Any) -> dict[str, Any]:
    """Return a successful row of reasoning agents that went through all phases and met four criteria."""
    measured = {
        "hrm_accuracy": hrm, "hrm_rule_accuracy": 0.2, "refinements": 1.5, "refinements_without": 4.0,
        "mcts_win_rate": 0.9, "untrained_mcts_win_rate": 0.7, "retrieval_precision": 0.5, "random_precision": 0.02,
        "router_accuracy": 0.8, "single_accuracy": 0.5,
    }  # fmt: skip
    met = {f"{criterion}_met": criterion != "retrieval_precision" for criterion in CRITERIA}
    return {
        **trial(name), "task_id": "reasoning_agents", "category": None, "slot": None, "worker": None, "seed": seed,
        "config": json.dumps({"rank": 8, **settings}), "criteria_met": 4, "hrm_accuracy_half": 0.05, **measured, **met,
    }  # fmt: skip


def agents_run(folder: Path, run_id: str = "agents") -> ResultsStore:
    """Return two seeds of reasoning agents and another setting, with what the first left to show."""
    store = new_store(folder, run_id, sweep="reasoning_agents")
    rows = [agents("a", 0, 0.8), agents("b", 1, 0.6), agents("c", 0, 0.9, rank=4)]
    rows[1]["hrm_accuracy_met"] = False
    store.append(rows, [epoch for row in rows for epoch in curve(row)])
    words = "the red pens are 3 plus 4 .".split()
    step = {"from": 0, "to": 6, "depth": 0}
    point = {"mcts_win_rate": 0.5, "bot_win_rate": 0.4, "optimal_moves": 0.6, "policy_optimal_moves": 0.3}
    shown = {
        "example": {"words": words, "gold": [step], "found": [{**step, "to": 5}], "answer": 7},
        "refinement_example": {
            "words": words, "answer": 7, "candidates": [{"answer": 12, "wrong": [0]}, {"answer": 7, "wrong": []}],
        },
        "precision_curve": {"fused": [0.5] * 5, "dense": [0.4] * 5, "lexical": [0.3] * 5},
        "selfplay_curve": [point, {**point, "optimal_moves": 0.9}],
        "routing": [
            {"name": "hrm", "cost": 1.0, "success": 0.4},
            {"name": "router: mlp", "cost": 2.0, "success": 0.7, "regret": 0.1},
        ],
    }  # fmt: skip
    store.folder.write("models/a/shown.json", json.dumps(shown).encode())
    return store
