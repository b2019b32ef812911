"""The results store: every row once whatever happens, read by others, and repeated runs."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards import report
from sweeps import results, trackers
from sweeps.core.cli import run_main
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore, RowWriter
from sweeps.store.summary import summarise
from trainables.atomic_lora.family import FAMILY
from trainables.common.errors import InputError
from trainables.common.folder import Folder

ROOT = Path(__file__).parents[3]


def trial(name, status="success", attempt=1, **columns):
    return {"trial_id": name, "task_id": name, "attempt": attempt, "status": status, **columns}


def epochs(name, upto, attempt=1, **columns):
    rows = [{"trial_id": name, "task_id": name, "attempt": attempt, "epoch": e} for e in range(1, upto + 1)]
    return [{**row, "train_loss": 1 / row["epoch"], **columns} for row in rows]


def answers(name, pairs=1, attempt=1):
    grids = {"input": [[1, 0]], "expected": [[0, 1]], "base": None, "adapted": [[0, 1]]}
    return [{"trial_id": name, "task_id": name, "attempt": attempt, "pair": pair, **grids} for pair in range(pairs)]


def record(fingerprint="f0", **settings):
    settings = {"preset": "demo", "num_samples": 1, "family": {"rank": 8}} | settings
    return run_record(["python", "sweeps/x.py", "--note", "a b"], settings, ["num_samples"], fingerprint, 0, FAMILY)


def keys(folder, *names):
    """The keys that a plain reader sees, in order."""
    return sorted(map(tuple, pd.read_parquet(folder)[list(names)].to_numpy().tolist()))


@pytest.fixture
def store(tmp_path):
    return ResultsStore(tmp_path, "sweep", "run")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "crash after history", "crash before trials", "crash before writing", "restart"]),
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(1, 4)), max_size=3),
    ),
    max_size=8,
)


@settings(max_examples=15, deadline=None)
@given(ACTIONS)
def test_any_order_of_appends_restarts_and_crashes_leaves_each_row_once_and_no_gap(actions):
    with tempfile.TemporaryDirectory() as folder:
        handed_in = []
        store = ResultsStore(folder, "sweep", "run")
        for action, units in actions:
            rows = [trial(f"t{n}", attempt=a, **{f"metric/{upto}": upto}) for n, a, upto in units]
            curves = [row for n, a, upto in units for row in epochs(f"t{n}", upto, a, **{f"grad_norm/{n}": 1.0})]
            pictures = [row for n, a, upto in units for row in answers(f"t{n}", upto, a)]
            handed_in.append((rows, curves, pictures))
            if action == "append":
                store.append(rows, curves, pictures)
            elif action == "crash after history":
                store.append([], curves)
            elif action == "crash before trials":
                store.append([], curves, pictures)
            if action != "append":
                store = ResultsStore(folder, "sweep", "run")
        # a restarted command does again what is missing, and hands in all of it
        for rows, curves, pictures in handed_in:
            store.append(rows, curves, pictures)
        wanted_trials = {(row["trial_id"], row["attempt"]) for rows, _, _ in handed_in for row in rows}
        wanted_epochs = {(r["trial_id"], r["attempt"], r["epoch"]) for _, curves, _ in handed_in for r in curves}
        wanted_pairs = {(r["trial_id"], r["attempt"], r["pair"]) for _, _, pictures in handed_in for r in pictures}
        if wanted_trials:
            parts = Path(folder, "sweep", "run")
            assert keys(parts / "trials", "trial_id", "attempt") == sorted(wanted_trials)
            assert keys(parts / "history", "trial_id", "attempt", "epoch") == sorted(wanted_epochs)
            assert keys(parts / "predictions", "trial_id", "attempt", "pair") == sorted(wanted_pairs)
        assert store.predictions().num_rows == len(wanted_pairs)
        assert store.trials().num_rows == len(wanted_trials)
        assert store.history().num_rows == len(wanted_epochs)


def test_history_is_on_disk_before_a_failing_write_of_trials_which_can_be_repeated(store, tmp_path):
    store.create(record())
    writer = RowWriter(store, interval_s=60)
    writer.add([trial("a")], epochs("a", 2))
    store.append()  # nothing, but the keys are loaded: what fails below is the write
    blocker = tmp_path / "sweep" / "run" / "trials"
    blocker.write_text("not a folder")
    with pytest.raises(OSError):
        writer.flush()
    assert keys(tmp_path / "sweep/run/history", "epoch") == [(1,), (2,)]
    blocker.unlink()
    writer.flush()
    assert keys(tmp_path / "sweep/run/history", "epoch") == [(1,), (2,)]
    assert store.attempts() == {"a": 1}


class InterruptedFolder(Folder):
    """A folder whose writes succeed and are followed by a Ctrl-C."""

    def write(self, name, data):
        super().write(name, data)
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["trials", "history", "predictions"])
def test_ctrl_c_just_after_a_file_is_complete_does_not_write_its_rows_again(store, kind):
    parts = store._parts[kind]
    store._parts[kind] = InterruptedFolder(parts.location)
    with pytest.raises(KeyboardInterrupt), RowWriter(store, interval_s=0) as writer:
        try:
            writer.add([trial("a")], epochs("a", 2), answers("a"))
        finally:
            store._parts[kind] = parts
    assert store.attempts() == {"a": 1} and store.trials().num_rows == store.predictions().num_rows == 1
    assert store.history().num_rows == 2


def test_readers_see_the_first_row_of_a_key_that_two_writers_wrote(store, tmp_path):
    store.create(record())
    other = ResultsStore(tmp_path, "sweep", "run")
    # each looks what there is before the other writes
    for writer in (store, other):
        writer.append()
        writer._loaded("trials"), writer._loaded("history"), writer._loaded("predictions")
    store.append([trial("a", seed=1)], epochs("a", 3), answers("a", 2))
    other.append([trial("a", seed=2), trial("b")], epochs("a", 4), answers("a", 1))
    reader = ResultsStore(tmp_path, "sweep", "run")
    assert [(row["trial_id"], row["seed"]) for row in reader.trials().to_pylist()] == [("a", 1), ("b", None)]
    assert reader.history()["epoch"].to_pylist() == [1, 2, 3, 4] and len(reader.predictions()) == 2
    assert summarise(reader)["trials"] == 2


def test_grids_come_back_as_they_were_and_their_files_are_not_written_again(store):
    store.append([trial("a")], predictions=answers("a"))
    file = next(Path(store.folder.root, "predictions").iterdir())
    written = file.stat().st_mtime_ns
    again = ResultsStore(*store.folder.root.rsplit("/", 2))
    again.append(predictions=[*answers("a"), *answers("b", 2)])
    assert file.stat().st_mtime_ns == written
    grids = [
        [row[name] for name in ("input", "expected", "base", "adapted")] for row in again.predictions().to_pylist()
    ]
    assert grids == [[[[1, 0]], [[0, 1]], None, [[0, 1]]]] * 3
    polars = pytest.importorskip("polars").read_parquet(f"{store.folder.root}/predictions/*.parquet")
    duckdb = pytest.importorskip("duckdb").sql(f"SELECT adapted[1][2] FROM '{store.folder.root}/predictions/*.parquet'")
    assert polars["input"].to_list() == [[[1, 0]]] * 3 and duckdb.fetchall() == [(1,)] * 3


def test_a_run_from_before_predictions_were_kept_has_none(store):
    store.append([trial("a")], epochs("a", 1))
    shutil.rmtree(f"{store.folder.root}/predictions", ignore_errors=True)
    assert store.predictions().num_rows == 0


@pytest.fixture
def grown(store):
    """A store whose later files brought columns and types that the first did not have."""
    store.append([trial("a", "failed", error="boom", **{"config/lr": 1})], epochs("a", 1))
    store.append([trial("b", **{"config/lr": 0.5, "config/rank": None})], epochs("b", 2, **{"grad_norm/head": 2.0}))
    store.append([trial("a", attempt=2, depth=0.25, **{"config/lr": 2, "config/rank": 8})])
    # what a kill in the middle of a write leaves behind
    (Path(store.folder.root) / "trials" / ".0123.tmp").write_bytes(b"PAR1 half")
    return store


def test_pandas_sees_every_column_and_row_without_our_code(grown):
    frame = pd.read_parquet(f"{grown.folder.root}/trials").set_index(["trial_id", "attempt"])
    assert frame["config/lr"].to_dict() == {("a", 1): 1.0, ("b", 1): 0.5, ("a", 2): 2.0}
    assert frame.loc[("a", 2), "metric/depth"] == 0.25 and frame.loc[("a", 2), "config/rank"] == 8
    history = pd.read_parquet(f"{grown.folder.root}/history")
    assert history["grad_norm/head"].isna().tolist() == [True, False, False]


def test_duckdb_reads_it_without_our_code(grown):
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(
        f"""SELECT trial_id, attempt, "config/rank" FROM '{grown.folder.root}/trials/*.parquet'"""
    ).fetchall()
    assert sorted(rows, key=str) == [("a", 1, None), ("a", 2, 8), ("b", 1, None)]


def test_polars_reads_it_without_our_code(grown):
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(f"{grown.folder.root}/trials/*.parquet").sort("trial_id", "attempt")
    assert frame["config/rank"].to_list() == [None, 8, None]


def test_what_is_finished_and_which_attempt_comes_next(grown):
    grown.append([trial("c", "stopped"), trial("d", "failed")])
    assert set(grown.finished()) == {"a", "b", "c"} and grown.finished()["a"]["attempt"] == 2
    assert grown.attempts() == {"a": 2, "b": 1, "c": 1, "d": 1}
    assert grown.latest_trials().num_rows == 4 and grown.trials().num_rows == 5
    assert set(grown.trials()["run_id"].to_pylist()) == {"run"}


def test_a_store_of_an_older_version_reads_and_grows(store):
    folder = Path(store.folder.root) / "trials"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"trial_id": ["old-1"], "attempt": [1], "status": ["success"]}), folder / "part-0.parquet")
    assert store.finished()["old-1"]["final_loss"] is None
    store.append([trial("old-1"), trial("new-1")])
    assert pd.read_parquet(folder)["sweep"].isna().tolist() == [True, False]
    assert store.attempts() == {"old-1": 1, "new-1": 1}


def test_a_file_that_is_no_parquet_is_named(store):
    store.folder.write("trials/part-0.parquet", b"garbage")
    with pytest.raises(InputError, match=r"trials/part-0.parquet is not a readable Parquet file"):
        store.append([trial("a")])


def test_the_writer_waits_for_its_interval_and_removes_checkpoints_of_finished_trials_only(store):
    for name in ("good", "bad"):
        store.folder.write(f"checkpoints/{name}.safetensors", b"weights")
        store.folder.write(f"checkpoints/{name}/run/checkpoint-1/state.pt", b"of a trial that trains alone")
    with RowWriter(store, interval_s=60) as writer:
        writer.add(history=epochs("good", 2))
        with pytest.raises(TypeError):
            writer.add([trial("odd", final_loss="low")])
        writer.add([trial("good"), trial("bad", "failed")], epochs("bad", 1))
        assert store.trials().num_rows == store.history().num_rows == 0
    assert store.trials().num_rows == 2 and store.history().num_rows == 3
    assert store.folder.sub("checkpoints").names() == ["bad.safetensors"]
    assert store.folder.sub("checkpoints").folders() == ["bad"]
    RowWriter(store, interval_s=0).add([trial("bad", attempt=2)])
    assert store.trials().num_rows == 3 and store.folder.sub("checkpoints").names() == []
    assert store.folder.sub("checkpoints").folders() == []


def test_a_session_with_the_same_settings_continues_the_run(store):
    store.create(record())
    store.append([trial("a")])
    store.folder.write("checkpoints/a.safetensors", b"left by a kill between row and removal")
    store.folder.write("checkpoints/b.safetensors", b"unfinished")
    store.folder.write("trials/.0123.tmp", b"PAR1 half")
    again = ResultsStore.open(store.folder.root)
    again.create(record(num_samples=4))
    assert store.folder.sub("checkpoints").names() == ["b.safetensors"]
    assert not list(Path(again.folder.root).rglob(".*"))
    run = again.run()
    assert [session["settings"]["num_samples"] for session in run["sessions"]] == [1, 4]
    assert run["settings"]["num_samples"] == 4 and run["command"] == "python sweeps/x.py --note 'a b'"
    assert {"ray", "torch", "python"} <= run["versions"].keys() and run["hardware"]["cores"] >= 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (record(preset="full"), 'preset = "demo", but this command has "full"; .* --run-id'),
        (record(family={"rank": 4}), "family.rank = 8, but this command has 4"),
        (record(extra=1), "extra = not set, but this command has 1"),
        (record(fingerprint="f1"), 'data_fingerprint = "f0", but this command has "f1"'),
    ],
)
def test_a_session_with_other_settings_or_data_is_refused(store, other, message):
    store.create(record())
    before = store.folder.read("run.json")
    with pytest.raises(InputError, match=message):
        store.create(other)
    assert store.folder.read("run.json") == before


def test_a_place_that_no_file_system_reaches_is_refused():
    with pytest.raises(InputError, match="No file system can open"):
        ResultsStore("nosuch://bucket", "sweep", "run")


def test_an_fsspec_uri_works():
    pytest.importorskip("fsspec")
    store = ResultsStore(f"memory://{uuid.uuid4().hex}", "sweep", "run")
    store.create(record())
    store.append([trial("a")], epochs("a", 2))
    store.append([trial("a"), trial("b", depth=1.0)])
    again = ResultsStore.open(store.folder.location)
    again.create(record())
    assert again.attempts() == {"a": 1, "b": 1} and again.history().num_rows == 2
    assert len(again.run()["sessions"]) == 2


KILLED = """
import sys
from sweeps.store.store import ResultsStore
store = ResultsStore(sys.argv[1], "sweep", "run")
for n in range(10_000):
    name = f"t{n}"
    curve = [{"trial_id": name, "attempt": 1, "epoch": e, f"grad_norm/{n % 7}": 1.0} for e in (1, 2, 3)]
    store.append([{"trial_id": name, "attempt": 1, "status": "success", f"metric/{n % 5}": 1}], curve)
    print(n, flush=True)
"""


def test_kill_9_in_mid_append_leaves_a_store_to_go_on_with(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    done = int([first, *process.stdout.read().splitlines()][-1])
    process.wait()
    store = ResultsStore(tmp_path, "sweep", "run")
    finished = store.finished()
    assert {f"t{n}" for n in range(done + 1)} <= set(finished)
    again = range(done + 3)
    store.append([trial(f"t{n}") for n in again], [row for n in again for row in epochs(f"t{n}", 3)])
    names = [f"t{n}" for n in again]
    assert keys(f"{store.folder.root}/trials", "trial_id", "attempt") == sorted((name, 1) for name in names)
    found = keys(f"{store.folder.root}/history", "trial_id", "epoch")
    assert found == sorted((name, e) for name in names for e in (1, 2, 3))


def test_importing_it_brings_neither_torch_nor_ray():
    code = "import sys, sweeps.results, sweeps.store.store; sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_run_from_before_families_were_declared_reads_and_goes_on(tmp_path):
    old = ResultsStore(tmp_path, "recursive_reasoner", "old")
    run = {"settings": {}, "extendable": [], "data_fingerprint": "f0"}
    old.folder.write("run.json", json.dumps(run).encode())
    # columns of all families in the middle, and a metric that has been declared since
    row = {
        "run_id": ["old"], "family": ["recursive_reasoner"], "trial_id": ["a"], "attempt": [1], "status": ["success"],
        "base_grid_accuracy": pa.nulls(1, pa.float64()), "halting": ["bce"], "exact_accuracy": [0.75], "seconds": [1.0],
        "metric/direct_exact_accuracy": [0.5],
    }  # fmt: skip
    schema = {b"schema_version": b"1", b"table": b"trials"}
    (folder := Path(old.folder.root, "trials")).mkdir()
    pq.write_table(pa.table(row).replace_schema_metadata(schema), folder / "part-0.parquet")
    found = ResultsStore.open(old.folder.root)
    assert found.family.name == "recursive_reasoner" and found.finished()["a"]["exact_accuracy"] == 0.75
    assert summarise(found)["means"]["direct_exact_accuracy"] == 0.5
    found.create(run_record("again", {}, [], "f0", 0, found.family))
    found.append([trial("b", exact_accuracy=0.25, direct_exact_accuracy=0.125)])
    frame = pd.read_parquet(folder).set_index("trial_id")
    assert frame["direct_exact_accuracy"].to_dict() == {"a": 0.5, "b": 0.125}
    assert frame["exact_accuracy"].tolist() == [0.75, 0.25] and "metric/direct_exact_accuracy" not in frame


# ------------------------------------------------------------------------------------------------- what is not a run


def written(run_dir, **files):
    for name, content in files.items():
        place = run_dir / name.replace("__", "/").replace("_json", ".json").replace("_parquet", ".parquet")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir() if content is None else place.write_bytes(content)


def parquet(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


SETTINGS = {"preset": "demo", "num_samples": 1, "family": {"rank": 8}}
RUN = json.dumps({"settings": SETTINGS, "data_fingerprint": "f0"}).encode()
FOREIGN = "trials__x_parquet"
NO_RUNS = {
    "null": ({"run_json": b"null"}, "it is null"),
    "list": ({"run_json": b"[]"}, "it is a list"),
    "text": ({"run_json": b'"run"'}, "it is a text"),
    "empty object": ({"run_json": b"{}"}, "it has no 'settings'"),
    "settings": ({"run_json": b'{"settings": []}'}, "'settings' is a list"),
    "sessions": ({"run_json": b'{"settings": {}, "sessions": 3}'}, "'sessions' is a number"),
    "family": ({"run_json": b'{"settings": {}, "family": {"name": "x"}}'}, "its family is not declared as one"),
    "empty": ({"run_json": b""}, "it is not valid JSON"),
    "brackets": ({"run_json": b"[" * 100_000}, "nested too deeply"),
    "digits": ({"run_json": b"[" + b"1" * 5_000 + b"]"}, "thousands of digits"),
    "binary": ({"run_json": b"\xff\xfe\x00"}, "it is not valid JSON"),
    "a folder": ({"run_json": None}, "run.json is a folder where a file of a run belongs"),
    "trials": ({"run_json": RUN, "trials": b""}, "trials is a file where a folder of a run belongs"),
    "history": ({"run_json": RUN, "history": b""}, "history is a file where a folder of a run belongs"),
    "predictions": ({"run_json": RUN, "predictions": b""}, "predictions is a file where a folder of a run belongs"),
    "foreign": ({"run_json": RUN, FOREIGN: parquet(a=[1])}, "it has no column 'trial_id'"),
    "numbers": ({"run_json": RUN, FOREIGN: parquet(trial_id=[1], attempt=[1])}, "'trial_id' of type string"),
    "half": ({"run_json": RUN, FOREIGN: parquet(trial_id=["a"], attempt=[1])}, "it has no column 'status'"),
    "types": (
        {"run_json": RUN, FOREIGN: parquet(trial_id=["a"], attempt=[1], status=["success"], epochs=["many"])},
        "the column 'epochs' as string where int64 belongs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_RUNS)
def test_what_is_no_run_is_refused_by_every_command_in_one_sentence(tmp_path, kind, capsys):
    files, said = NO_RUNS[kind]
    run_dir = tmp_path / "sweep" / "run"
    written(run_dir, **files)
    before = sorted(run_dir.rglob("*"))
    for main, words in ((results.main, ()), (report.main, ()), (trackers.main, ("--tensorboard",))):
        with pytest.raises(SystemExit) as exit_:
            run_main(main, [str(run_dir), *words])
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error
    with pytest.raises(InputError, match=re.escape(said)):
        ResultsStore(tmp_path, "sweep", "run").create(record())
    assert sorted(run_dir.rglob("*")) == before


def test_a_file_in_the_place_of_the_run_or_the_sweep_is_refused(tmp_path):
    (tmp_path / "sweep").write_text("")
    with pytest.raises(InputError, match="sweep is a file where a folder of a run belongs"):
        ResultsStore(tmp_path, "sweep", "run").create(record())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run").write_text("")
    with pytest.raises(InputError, match="other/run is a file where a folder of a run belongs"):
        ResultsStore(tmp_path, "other", "run").create(record())


def test_a_start_is_taken_back_only_where_nothing_was_written_since(tmp_path):
    store = ResultsStore(tmp_path / "new", "sweep", "run")
    store.create(record())
    store.withdraw()
    assert not (tmp_path / "new").exists()
    store.create(record())
    store.append([trial("a")])
    store.withdraw()
    assert store.run() is not None and store.trials().num_rows == 1
    # files that somebody else put there stay
    kept = ResultsStore(tmp_path, "sweep", "mine")
    written(tmp_path / "sweep" / "mine", notes=b"of a reader")
    kept.create(record())
    kept.withdraw()
    assert [file.name for file in (tmp_path / "sweep" / "mine").iterdir()] == ["notes"]
