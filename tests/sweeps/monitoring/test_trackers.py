"""Trackers as views of the rows: what W&B and TensorBoard wrote is read back from their own files."""

from __future__ import annotations

import json
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.report import render
from sweeps.monitoring import trackers as trackers_module
from sweeps.monitoring.trackers import Trackers, sinks_for
from sweeps.store.record import run_record
from sweeps.store.store import ResultsStore
from sweeps.trackers import main
from trainables.atomic_lora.family import FAMILY
from trainables.common.errors import InputError

TRIALS = [
    {"trial_id": f"t{i}", "attempt": 1, "task_id": f"t{i}", "status": "success", "final_loss": 0.5 * i, "seed": 0}
    for i in range(2)
]
HISTORY = [
    {"trial_id": trial["trial_id"], "attempt": 1, "task_id": trial["task_id"], "epoch": epoch, "train_loss": 1 / epoch}
    for trial in TRIALS
    for epoch in (1, 2, 3)
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultsStore:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    store = ResultsStore(tmp_path, "sweep", "run")
    store.create(run_record("command", {"rank": 4}, (), "data", 0, FAMILY))
    store.append(TRIALS, HISTORY)
    return store


def wandb_records(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def logged(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return a run's identity, its history and its summary, once all of it is in the file."""
    deadline = time.monotonic() + 30
    # W&B's own process writes the last of it a moment after the run is finished
    while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(file)):
        assert time.monotonic() < deadline, file
        time.sleep(0.05)
    run, history, summary = {}, [], {}
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = {"id": record.run.run_id, "group": record.run.run_group, "project": record.run.project}
        elif kind == "history":
            history.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
        elif kind == "summary":
            summary |= {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.summary.update}
    return run, history, summary


@pytest.mark.slow
def test_one_wandb_run_for_a_sweep(store: ResultsStore, tmp_path: Path) -> None:
    with Trackers(sinks_for(store, "offline", False, False, render)) as trackers:
        trackers.rows([], HISTORY)
        trackers.rows(TRIALS, [])
    assert trackers.dropped == 0
    [file] = Path(store.folder.root).glob("wandb/offline-run-*/*.wandb")
    run, history, summary = logged(file)
    assert run == {"id": "run", "group": "sweep", "project": "arc-sweeps"}
    assert history[0]["mean/train_loss"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert history[1]["trials"] == 2
    [trials], [epochs] = ([row for row in history if f"{name}_table.nrows" in row] for name in ("trials", "history"))
    assert trials["trials_table.nrows"] == 2 and epochs["history_table.nrows"] == 6
    media = json.loads((file.parent / "files" / epochs["history_table.path"]).read_text())
    assert [row[media["columns"].index("epoch")] for row in media["data"]] == [1, 2, 3, 1, 2, 3]
    [page] = (file.parent / "files").glob("media/html/report_*.html")
    assert "sweep / run" in page.read_text()
    assert summary["trials"] == 2


@pytest.mark.slow
def test_what_wandb_cuts_is_said_and_all_of_its_files_are_in_the_run(
    store: ResultsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    monkeypatch.setattr(wandb.Table, "MAX_ARTIFACT_ROWS", 4)
    home = tmp_path / "home"
    for name, place in (("HOME", home), ("XDG_DATA_HOME", home / "data"), ("XDG_CACHE_HOME", home / "cache")):
        monkeypatch.setenv(name, str(place))
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    with Trackers(sinks_for(store, "offline", False, False, render)) as trackers:
        trackers.rows(TRIALS, HISTORY)
    assert trackers.dropped == 0 and "has the last 4 of 6 rows" in caplog.text
    [file] = Path(store.folder.root).glob("wandb/offline-run-*/*.wandb")
    _, history, summary = logged(file)
    assert (summary["history_rows"], summary["history_table_rows"]) == (6, 4)
    assert summary["trials_rows"] == summary["trials_table_rows"] == 2
    assert next(row["history_table.nrows"] for row in history if "history_table.nrows" in row) == 4
    assert history[0]["mean_over_trials"] == 2
    assert list(Path(store.folder.root, "wandb", "artifacts").rglob("*")), "where artifacts wait"
    assert not [place for place in home.rglob("*") if place.is_file()]


@pytest.mark.slow
def test_one_wandb_run_for_each_trial(store: ResultsStore) -> None:
    assert main([store.folder.location, "--wandb", "offline", "--wandb-per-trial"]) == 0
    runs = [logged(file) for file in Path(store.folder.root).glob("wandb/offline-run-*/*.wandb")]
    assert {run["id"] for run, _, _ in runs} == {"run-t0-1", "run-t1-1"}
    for run, history, summary in runs:
        assert run["group"] == "run" and [row["epoch"] for row in history] == [1, 2, 3]
        assert [row["train_loss"] for row in history] == [1.0, 1 / 2, 1 / 3]
        assert summary["status"] == "success" and summary["final_loss"] == (0.5 if run["id"] == "run-t1-1" else 0.0)


def points(folder: Path) -> list[tuple[int, float]]:
    """Return step and training loss of each event of the one event file in a folder."""
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401 - the writer's package reads no files
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    [file] = folder.glob("events.*")
    data, place, found = file.read_bytes(), 0, []
    while place < len(data):  # length, its checksum, event, its checksum
        (length,) = struct.unpack("<Q", data[place : place + 8])
        assert struct.unpack("<I", data[place + 8 : place + 12])[0] == masked_crc32c(data[place : place + 8])
        content = data[place + 12 : place + 12 + length]
        (checksum,) = struct.unpack("<I", data[place + 12 + length : place + 16 + length])
        assert checksum == masked_crc32c(content)
        event = Event()
        event.ParseFromString(content)
        found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == "train_loss"]
        place += 16 + length
    return found


CURVE = [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_tensorboard_gets_the_epochs(store: ResultsStore) -> None:
    with Trackers(sinks_for(store, "off", False, True, render)) as trackers:
        trackers.rows([], HISTORY[:4])
        trackers.rows(TRIALS, HISTORY[4:])
    assert trackers.dropped == 0
    for trial_id in ("t0", "t1"):
        assert points(Path(store.folder.root, "tensorboard", trial_id)) == CURVE


def test_tensorboard_from_the_files_twice_has_every_point_once_and_attempts_apart(store: ResultsStore) -> None:
    store.append([{**TRIALS[0], "attempt": 2}], [{**row, "attempt": 2, "train_loss": 9.0} for row in HISTORY[:2]])
    folder = Path(store.folder.root, "tensorboard", "t0")
    for _ in range(2):
        assert main([store.folder.location, "--tensorboard"]) == 0
        assert points(folder) == CURVE and points(folder / "attempt-2") == [(1, 9.0), (2, 9.0)]


def test_tensorboard_of_a_run_that_goes_on_has_all_epochs_and_no_file_stays_open(
    store: ResultsStore, request: pytest.FixtureRequest
) -> None:
    curves = [{**row, "trial_id": f"more-{n}"} for n in range(300) for row in HISTORY[:2]]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))
    with Trackers(sinks_for(store, "off", False, True, render)) as trackers:
        # of t0 the store has three epochs of an earlier session
        trackers.rows([], [{**HISTORY[0], "epoch": 4, "train_loss": 0.25}])
        trackers.rows([], curves)
    assert trackers.dropped == 0
    folder = Path(store.folder.root, "tensorboard")
    assert points(folder / "t0") == [*CURVE, (4, 0.25)] and points(folder / "more-299") == CURVE[:2]


@pytest.mark.slow
def test_an_offline_wandb_run_that_goes_on_has_all_of_its_history_once(store: ResultsStore) -> None:
    for more in ([], [{**HISTORY[0], "epoch": 4, "train_loss": 0.25}]):
        with Trackers(sinks_for(store, "offline", False, False, lambda _: "<p></p>")) as trackers:
            trackers.rows([], more)
        assert trackers.dropped == 0
    [file] = Path(store.folder.root).glob("wandb/offline-run-*/*.wandb")
    _, history, _ = logged(file)
    steps = [(row["_step"], row["mean/train_loss"]) for row in history if "mean/train_loss" in row]
    assert steps == [(5, pytest.approx((1 + 1 / 2 + 1 / 3) / 3)), (8, 0.25)]


@pytest.mark.slow
def test_a_trial_with_a_long_or_odd_name_has_a_wandb_run_as_well(store: ResultsStore) -> None:
    names = ["a/b:c#d?e f\\g", "n" * 200, "t0"]
    trials = [{**TRIALS[0], "trial_id": name} for name in names]
    with Trackers(sinks_for(store, "offline", True, False, render)) as trackers:
        trackers.rows(trials, [{**HISTORY[0], "trial_id": name} for name in names])
    assert trackers.dropped == 0
    runs = [logged(file) for file in Path(store.folder.root).glob("wandb/offline-run-*/*.wandb")]
    assert len(runs) == len(names) and all(summary["status"] == "success" for _, _, summary in runs)


def test_a_tracker_loses_one_trial_and_no_other(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written, whole = [], trackers_module._write_events

    def refuses_t0(file: Path, rows: Any) -> None:
        if file.parent.name == "t0":
            raise OSError("no such name")
        whole(file, rows)
        written.append(file.parent.name)

    monkeypatch.setattr(trackers_module, "_write_events", refuses_t0)
    with Trackers(sinks_for(store, "off", False, True, render)) as trackers:
        for row in HISTORY:
            trackers.rows([], [row])
    assert trackers.dropped == 0 and set(written) == {"t1"}
    assert caplog.text.count("TensorBoard lost the trial t0") == 1


def test_a_log_to_nowhere_is_refused(store: ResultsStore) -> None:
    with pytest.raises(InputError, match="nothing to log to"):
        main([store.folder.location])


class Broken:
    def rows(self, trials: Any, history: Any) -> None:
        raise OSError("no route to host")

    def close(self) -> None:
        raise AssertionError("a dropped sink is not called again")


class Kept:
    def __init__(self) -> None:
        self.taken: list[str] = []

    def rows(self, trials: Any, history: Any) -> None:
        self.taken += [row["trial_id"] for row in trials]

    def close(self) -> None:
        self.taken.append("closed")


def test_a_failing_sink_is_dropped_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    with Trackers([Broken, lambda: kept]) as trackers:
        trackers.rows(TRIALS[:1], [])
        trackers.rows(TRIALS[1:], [])
    assert kept.taken == ["t0", "t1", "closed"] and trackers.dropped == 1
    assert "no route to host" in caplog.text


def test_a_sink_that_hangs_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    class Hangs(Kept):
        def rows(self, trials: Any, history: Any) -> None:
            time.sleep(30)

    trackers = Trackers([Hangs], close_s=0.2)
    begun = time.monotonic()
    for _ in range(100):
        trackers.rows(TRIALS, [])
    assert not trackers.close() and time.monotonic() - begun < 5
    assert "did not finish" in caplog.text


@pytest.mark.slow
def test_an_unreachable_server_is_dropped(store: ResultsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    begun = time.monotonic()
    with Trackers(sinks_for(store, "online", False, False, render), close_s=5) as trackers:
        trackers.rows(TRIALS, HISTORY)
        assert time.monotonic() - begun < 1
    assert time.monotonic() - begun < 10
