"""How commands end: signals, closed streams, full disks and second starts, each with one sentence and nothing lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from ray.exceptions import OutOfMemoryError

from sweeps.core.ending import RunEndedError, explained, explaining, run_main
from tests.sweeps.head import Head
from trainables.common.errors import InputError, SurroundingsError

ROOT = Path(__file__).resolve().parents[3]


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


# ------------------------------------------------------------------------------------------------------ in this process


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/r/x"), "A disk is full (OSError: [Errno 28] No space left"),
        (caused(RuntimeError("broke"), OSError(errno.EDQUOT, "Disk quota exceeded")), "A disk is full"),
        (RuntimeError("Traceback\n  x\nOSError: [Errno 28] No space left on device: '/r/x'"), "'/r/x'): make room"),
        (MemoryError(), "There is not enough memory (MemoryError)"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "Memory is nearly used up, so"),
        (PermissionError(errno.EACCES, "Permission denied", "/r"), "A folder cannot be written"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError("When uploading part for key: AWS Error NETWORK_CONNECTION"), "The results cannot be reached"),
        (Exception("The current node timed out during startup. This could happen"), "Ray did not come up within half"),
        (SurroundingsError("No worker has started."), "No worker has started."),
        (ValueError("a defect"), None),
    ],
)  # fmt: skip
def test_an_error_of_the_surroundings_is_a_sentence(error: Exception, said: str | None) -> None:
    sentence = explained(error)
    assert sentence is None if said is None else said in str(sentence)


def test_what_ends_a_run_says_how_to_go_on() -> None:
    with pytest.raises(RunEndedError, match=r"A disk is full .* stored; then give --run-id r\.$") as full:
        with explaining("give --run-id r"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunEndedError, match=r"^Interrupted: give --run-id r\.$") as stopped:
        with explaining("give --run-id r"):
            raise KeyboardInterrupt
    assert (full.value.code, stopped.value.code) == (1, 130)
    for passed in (InputError("bad"), ValueError("a defect")):
        with pytest.raises(type(passed)), explaining("give --run-id r"):
            raise passed


@pytest.fixture
def undisturbed() -> Iterator[None]:
    """The signal handlers of a new process: Ray leaves its own in one that was connected."""
    fresh = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in fresh.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_before_the_sweep_interrupts(
    undisturbed: None, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def main(argv: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) == before


def test_a_defect_keeps_its_traceback() -> None:
    def main(argv: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(main)


# ------------------------------------------------------------------------------------------------------------ processes

# without Ray, as commands that only read are
TALKS = """
import sys, time
from sweeps.core.ending import run_main
def main(argv):
    for number in range(2000):
        print("line", number, "x" * 100)
        print("problem", number, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
run_main(main)
"""


@pytest.mark.parametrize(
    "how", ["{} 2>&1 | head -1", "{} | head -1", "{} >&- 2>&-", "{} > /dev/full 2>&1", "{} > /dev/full"]
)
def test_a_stream_that_cannot_be_written_stops_nobody(tmp_path: Path, how: str) -> None:
    command = how.replace("{}", f"({sys.executable} -c '{TALKS}' {tmp_path}/file; echo $? > {tmp_path}/code)")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (tmp_path / "file").read_text() == "done", done.stderr
    assert (tmp_path / "code").read_text() == "0\n" and "Traceback" not in done.stderr
    if "2>" not in how:
        assert done.stderr.count("stdout cannot be written") == 1 and "is dropped; the work goes on" in done.stderr


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster that many sweeps in processes of their own attach to at once."""
    options = ["--num-cpus=8", "--num-gpus=0", "--include-dashboard=false"]
    node = Head(tmp_path_factory.mktemp("home"), options, {"RAY_AUTH_MODE": "disabled"})
    try:
        node.wait()
        yield node
    finally:
        node.stop()


def start(head: Head, folder: Path, *more: str, kind: str = "ordinary", code: str = "") -> subprocess.Popen[str]:
    """Start a sweep of one trial of many short epochs, as its user would."""
    run = ["-c", code] if code else ["-m", "tests.sweeps.stub_sweep"]
    command = [sys.executable, *run, kind, str(folder), "--address", head.address, "--set", "epoch_s=0.05", *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=head.environment)


def wait_for(condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stored(folder: Path, kind: str = "history") -> pd.DataFrame:
    files = list((folder / "stub" / "r" / kind).glob("*.parquet"))
    return pd.concat(map(pd.read_parquet, files)) if files else pd.DataFrame(columns=["trial_id", "attempt", "epoch"])


@pytest.mark.slow
def test_signals_second_starts_kills_and_a_closed_pipe(head: Head, tmp_path: Path) -> None:
    """All at once on one cluster: each would wait for a start of Python and Ray."""
    signals = {"TERM": signal.SIGTERM, "HUP": signal.SIGHUP, "INT": signal.SIGINT}
    kinds = {"INT": "pool"}
    long, killed = ("--set", "epochs=4000"), ("--set", "epochs=200")
    sweeps = {name: start(head, tmp_path / name, *long, kind=kinds.get(name, "ordinary")) for name in signals}
    sweeps["KILL"] = start(head, tmp_path / "KILL", *killed)
    code = (
        f"{sys.executable} -m tests.sweeps.stub_sweep ordinary {tmp_path}/pipe --address {head.address} --set epochs=3"
    )
    shell = ["bash", "-c", f"{code} 2>&1 | head -1"]
    pipe = subprocess.Popen(shell, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=head.environment)
    try:
        for name in ("KILL", *signals):
            wait_for(lambda name=name: len(stored(tmp_path / name)) > 2)
            if name == "KILL":
                sweeps[name].kill()
        second = start(head, tmp_path / "HUP", *long)
        sweeps["KILL"].communicate()
        reported = stored(tmp_path / "KILL")
        again = start(head, tmp_path / "KILL", *killed)
        out, err = second.communicate(timeout=120)
        assert second.returncode == 2 and err.count("\n") == 1 and "Traceback" not in err
        assert f"error: Process {sweeps['HUP'].pid} on " in err and "choose another --run-id" in err
        for name, number in signals.items():
            began = time.monotonic()
            sweeps[name].send_signal(number)
            out, err = sweeps[name].communicate(timeout=120)
            assert time.monotonic() - began < 15, name
            assert sweeps[name].returncode == 130 and "Traceback" not in err, err
            assert err.endswith("Interrupted: run the same command with --run-id r to finish.\n")
            rows = stored(tmp_path / name)
            # a trial of an ordinary sweep, or both jobs of a pool
            for _, epochs in rows.groupby("trial_id")["epoch"]:
                assert sorted(epochs) == list(range(1, len(epochs) + 1)) and len(epochs) > 2
            assert not (tmp_path / name / "stub" / "r" / "lock.json").exists()
        out, err = again.communicate(timeout=120)
        assert again.returncode == 0, err
        rows = stored(tmp_path / "KILL")
        assert sorted(rows["epoch"]) == list(range(1, 201)) and len(reported) < 200
        pipe.communicate(timeout=120)
        assert list(stored(tmp_path / "pipe", "trials")["status"]) == ["success"]
        assert "stdout cannot be written" in (tmp_path / "pipe" / "stub" / "r" / "progress.log").read_text()
    finally:
        for process in (*sweeps.values(), pipe):
            process.kill()


@pytest.mark.slow
def test_a_disk_that_fills_in_training_ends_with_a_sentence(head: Head, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    # the check before the start wants a gibibyte
    code = (
        "import sys; from pathlib import Path; from sweeps.core import checks, cli; checks.FREE_BYTES = 0\n"
        "from tests.sweeps import stub_sweep\n"
        "cli.run_main(lambda _: stub_sweep.main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))\n"
    )
    try:
        sweep = start(head, disk, "--set", "epochs=100", code=code)
        wait_for(lambda: len(stored(disk)) > 2)
        with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"\0" * 4096)
        began = time.monotonic()
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 1 and time.monotonic() - began < 20
        last = err.splitlines()[-1]
        assert last.startswith("error: A disk is full (") and "--run-id r" in last and "Traceback" not in err
        # what was stored is whole, and nothing of it is lost
        rows = stored(disk)
        assert sorted(rows["epoch"]) == list(range(1, len(rows) + 1)) and stored(disk, "trials").empty
    finally:
        sweep.kill()
        subprocess.run(["umount", "-l", disk], check=True)
