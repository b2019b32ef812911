"""Results on S3: the store and whole sweeps against a real S3 server, through pyarrow's own file system."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from sweeps import atomic_lora, champion, results
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore, RowWriter
from tests.sweeps.tiny import ROOT, SMALLEST, save_tiny_champion
from trainables.atomic_lora.model import load_champion
from trainables.common.errors import InputError
from trainables.common.family import Family


def trial(name: str, status: str = "success", attempt: int = 1, **columns: object) -> dict[str, object]:
    return {"trial_id": name, "task_id": name, "attempt": attempt, "status": status, **columns}


def epochs(name: str, upto: int, **columns: object) -> list[dict[str, object]]:
    return [{"trial_id": name, "task_id": name, "attempt": 1, "epoch": e, **columns} for e in range(1, upto + 1)]


def record(**settings: object) -> dict[str, object]:
    return run_record(["python", "sweeps/x.py"], {"rank": 8, **settings}, ["num_samples"], "f0", 0, Family("x"))


def test_a_run_is_created_grows_widens_and_is_continued(bucket: str) -> None:
    store = ResultsStore(bucket, "sweep", "grown")
    store.create(record())
    store.append([trial("a", **{"config/lr": 1})], epochs("a", 2))
    store.append([trial("b", "failed", **{"config/lr": 0.5})], epochs("b", 1, **{"grad_norm/head": 2.0}))
    again = ResultsStore.open(f"{bucket}/sweep/grown")
    again.create(record())
    # handed in again after a restart
    again.append([trial("a")], epochs("a", 2))
    again.append([trial("b", attempt=2)])
    assert set(again.finished()) == {"a", "b"} and again.attempts() == {"a": 1, "b": 2}
    run = again.run()
    assert run is not None and len(run["sessions"]) == 2
    # by pandas alone, as the README says
    trials, history = (pd.read_parquet(f"{bucket}/sweep/grown/{kind}") for kind in ("trials", "history"))
    assert sorted(zip(trials["trial_id"], trials["attempt"], strict=True)) == [("a", 1), ("b", 1), ("b", 2)]
    assert sorted(zip(history["trial_id"], history["epoch"], strict=True)) == [("a", 1), ("a", 2), ("b", 1)]
    assert history.set_index(["trial_id", "epoch"])["grad_norm/head"].to_dict()[("b", 1)] == 2.0


def test_other_settings_are_refused(bucket: str) -> None:
    store = ResultsStore(bucket, "sweep", "refused")
    store.create(record())
    with pytest.raises(InputError, match="rank = 8, but this command has 4"):
        store.create(record(rank=4))


def test_a_checkpoint_goes_when_its_row_is_written(bucket: str) -> None:
    store = ResultsStore(bucket, "sweep", "checkpoints")
    for name in ("good", "bad"):
        store.folder.write(f"checkpoints/{name}.safetensors", b"weights")
    with RowWriter(store, interval_s=60) as writer:
        writer.add([trial("good"), trial("bad", "failed")], epochs("good", 1))
        assert store.trials().num_rows == 0
    assert store.trials().num_rows == 2 and store.folder.sub("checkpoints").names() == ["bad.safetensors"]


WRITES = """
import sys
from sweeps.store.store import ResultsStore
store = ResultsStore(sys.argv[1], "sweep", "killed")
for n in range(10_000):
    curve = [{"trial_id": f"t{n}", "attempt": 1, "epoch": e, f"grad_norm/{n % 3}": 1.0} for e in (1, 2)]
    store.append([{"trial_id": f"t{n}", "attempt": 1, "status": "success", f"metric/{n % 5}": 1}], curve)
    print(n, flush=True)
"""


def test_kill_9_in_mid_append_leaves_a_store_to_go_on_with(bucket: str) -> None:
    command = [sys.executable, "-c", WRITES, bucket]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    done = int([first, *process.stdout.read().splitlines()][-1])
    process.wait()
    store = ResultsStore(bucket, "sweep", "killed")
    assert {f"t{n}" for n in range(done + 1)} <= set(store.finished())
    names = [f"t{n}" for n in range(done + 3)]
    store.append([trial(name) for name in names], [row for name in names for row in epochs(name, 2)])
    found = pd.read_parquet(f"{bucket}/sweep/killed/history", columns=["trial_id", "epoch"])
    assert sorted(map(tuple, found.to_numpy().tolist())) == sorted((name, epoch) for name in names for epoch in (1, 2))
    assert sorted(pd.read_parquet(f"{bucket}/sweep/killed/trials")["trial_id"]) == sorted(names)


# --------------------------------------------------------------------------------------------------------- whole sweeps


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_champion(tmp_path_factory.mktemp("base"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_sweep_continues_from_what_is_on_s3(
    bucket: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    command = ["--preset", "smoke", "--num-gpus", "0", "--base", str(base)]
    command += ["--tasks", ",".join(SMALLEST), "--results-dir", f"{bucket}/results", "--run-id", "k"]
    command += ["--set", "epochs=40", "--set", "patience=40", "--set", "report_every=2"]
    process = subprocess.Popen([sys.executable, str(Path(atomic_lora.__file__)), *command])
    store = ResultsStore(f"{bucket}/results", "atomic_lora", "k")
    checkpoints, deadline = store.folder.sub("checkpoints"), time.monotonic() + 240
    while len(checkpoints.names()) < len(SMALLEST) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints.names() and not store.finished(), "the kill came too late to show anything"
    assert atomic_lora.main(command) == 0
    history = store.history().to_pandas()
    assert sorted(zip(history["task_id"], history["epoch"], strict=True)) == [
        (task_id, epoch) for task_id in SMALLEST for epoch in range(1, 41)
    ]
    assert sorted(store.trials()["task_id"].to_pylist()) == SMALLEST and not checkpoints.names()
    # what comes back loads in PEFT, and the table prints from there
    adapter = store.folder.sub(store.trials()["checkpoint"][0].as_py())
    for name in adapter.names():
        (tmp_path / name).write_bytes(adapter.read(name) or b"")
    model = PeftModel.from_pretrained(load_champion(base).model, str(tmp_path))
    assert any("lora_A" in name for name, _ in model.named_parameters())
    capsys.readouterr()
    assert results.main([f"{bucket}/results/atomic_lora/k"]) == 0 and "4 (4 success)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_train_run_keeps_its_checkpoints_on_s3(bucket: str) -> None:
    fixed = ["--preset", "smoke", "--num-gpus", "0", "--set", "epochs=2", "--workers-per-trial", "1"]
    assert champion.main([*fixed, "--results-dir", f"{bucket}/results", "--run-id", "c"]) == 0
    store = ResultsStore(f"{bucket}/results", "champion", "c")
    (row,) = store.trials().to_pylist()
    assert row["status"] == "success" and store.history()["epoch"].to_pylist() == [1, 2]
    assert store.folder.sub(f"models/{row['trial_id']}").names() == ["champion.safetensors"]
