from __future__ import annotations

import io
import re
import threading

import pytest

from sweeps.monitoring.pace import Cost
from sweeps.monitoring.progress import Progress
from trainables.atomic_lora.family import FAMILY
from trainables.common.family import Family


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def _row(base, final, **more):
    return {"base_grid_accuracy": base, "final_grid_accuracy": final, **more}


def test_line_counts_every_state(clock):
    with Progress(10, already_done=3, stream=io.StringIO(), clock=clock, family=FAMILY) as progress:
        assert progress.line().startswith(
            "3/10 done, 0 running, 0 stopped early, 0 failed, no adapters have ended yet, "
        )
        assert "waiting for the workers to start" in progress.line()
        progress.trial_progress("d", 5, {"eval_loss": 0.5})
        progress.trial_progress("e", 15, {"eval_loss": 0.4})
        progress.trial_finished("a", "success", _row(0.5, 0.75))
        progress.trial_finished("b", "stopped", _row(0.5, 0.4))
        progress.trial_finished("c", "failed", {"error": "loss is nan"})
        line = progress.line()
    assert "5/10 done, 2 running (epoch 5 to 15), 1 stopped early, 1 failed" in line
    assert "best a +25.0 exact-match accuracy, +0.0 cell accuracy, worst b -10.0 exact-match accuracy" in line


def test_pace_leaves_out_earlier_sessions_and_the_time_before_training(clock):
    progress = Progress(110, already_done=90, stream=io.StringIO(), clock=clock, family=FAMILY)
    clock.now += 500
    progress.count_running(16)
    clock.now += 60
    for name in "abcdefghij":
        progress.trial_finished(name, "success", {})
    assert "100/110 done" in progress.line()
    assert "600 adapters per hour, 0:01:00 left" in progress.line()


def test_the_line_says_what_is_waited_for(clock):
    progress = Progress(4, stream=io.StringIO(), clock=clock, family=FAMILY)
    assert "no adapters have ended yet, waiting for the workers to start" in progress.line()
    progress.count_running(2)
    assert "no adapters have ended yet, waiting for the first report" in progress.line()
    clock.now += 30
    progress.expect({name: Cost(epochs=10) for name in "abcd"})
    progress.trial_progress("a", 2, {})
    progress.trial_progress("b", 1, {})
    # 3 of 40 epochs took half a minute
    assert "no adapters have ended yet, 0:06:10 left" in progress.line()


def test_the_time_left_weighs_trials_by_their_cost(clock):
    progress = Progress(3, stream=io.StringIO(), clock=clock, family=FAMILY)
    progress.expect({"large": Cost(8.0, 10, end=20.0), "small": Cost(1.0, 10), "tiny": Cost(0.5, 10)})
    progress.count_running(1)
    clock.now += 40
    progress.trial_progress("large", 5, {})
    assert progress.pace()[1] == pytest.approx(115 - 40), "a second for each unit of cost"
    clock.now += 7
    assert progress.pace()[1] == pytest.approx(75 - 7), "time goes by between two reports"
    clock.now += 53
    progress.trial_finished("large", "success", {})
    assert progress.pace() == (pytest.approx(36.0), pytest.approx(15.0))


def test_epochs_of_earlier_sessions_are_neither_done_nor_left(clock):
    progress = Progress(2, stream=io.StringIO(), clock=clock, family=FAMILY)
    progress.expect({"a": Cost(1.0, 10, trained=8), "b": Cost(1.0, 10)})
    progress.count_running(2)
    clock.now += 10
    progress.trial_progress("a", 8, {})
    assert "waiting for the first report" in progress.line(), "its own checkpoint is no news"
    progress.trial_progress("a", 9, {})
    assert progress.pace()[1] == pytest.approx(110.0)


def test_trials_that_a_search_has_not_drawn_yet_cost_as_much_as_the_others(clock):
    progress = Progress(10, stream=io.StringIO(), clock=clock, family=Family("x"))
    progress.expect({"a": Cost(epochs=4), "b": Cost(epochs=8)})
    # a trial whose process nobody counts: its first report says how long it has trained
    clock.now += 100
    progress.trial_progress("a", 2, {"seconds": 20.0})
    assert progress.pace()[1] == pytest.approx(10.0 * (60 - 2))


def test_patience_counts_as_stopped_early(clock):
    progress = Progress(2, stream=io.StringIO(), clock=clock, family=FAMILY)
    progress.trial_finished("a", "success", {"early_stopped": True})
    assert "1/2 done, 0 running, 1 stopped early, 0 failed" in progress.line()


def test_nothing_left_when_everything_was_done_before(clock):
    assert "5/5 done" in (line := Progress(5, 5, stream=io.StringIO(), clock=clock, family=FAMILY).line())
    assert "0:00:00 left" in line


def test_each_trial_counts_once(clock):
    progress = Progress(2, stream=io.StringIO(), clock=clock, family=FAMILY)
    progress.trial_progress("a", 1, {})
    progress.trial_finished("a", "success", {})
    progress.trial_finished("a", "success", {})
    progress.trial_progress("a", 3, {})
    assert "1/2 done, 0 running" in progress.line()
    assert "best" not in progress.line()


@pytest.mark.parametrize("metrics", [{}, _row(None, 0.5), _row(0.5, float("nan")), {"final_grid_accuracy": 1.0}])
def test_trials_without_accuracies_are_neither_best_nor_worst(clock, metrics):
    progress = Progress(2, stream=io.StringIO(), clock=clock, family=FAMILY)
    progress.trial_finished("a", "success", metrics)
    assert "best" not in progress.line()


def test_plain_lines_every_ten_seconds_and_at_the_end(clock, tmp_path):
    stream, log = io.StringIO(), tmp_path / "progress.log"
    log.write_text("an earlier session\n")
    progress = Progress(4, stream=stream, log_path=log, clock=clock, family=FAMILY)
    for _ in range(25):
        clock.now += 1
        progress.tick()
    progress.trial_finished("a", "failed", {"error": "two\nlines"})
    progress.close()
    progress.close()
    progress.tick()
    lines = stream.getvalue().splitlines()
    assert [line[:9] for line in lines] == ["[0:00:00]", "[0:00:10]", "[0:00:20]", "[0:00:25]", "[0:00:25]"]
    assert re.fullmatch(r"\[0:00:00\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, 4 of 4 adapters to do", lines[0])
    assert lines[3] == "[0:00:25] failed: a: two lines"
    assert log.read_text() == "an earlier session\n" + stream.getvalue()


def test_the_log_can_be_read_while_the_sweep_runs(clock, tmp_path):
    progress = Progress(4, stream=io.StringIO(), log_path=tmp_path / "progress.log", clock=clock)
    clock.now += 10
    progress.tick()
    assert "0/4 done" in (tmp_path / "progress.log").read_text()
    progress.close()


def test_the_last_line_is_written_when_the_sweep_raises(clock):
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress(4, stream=stream, clock=clock):
        raise RuntimeError
    assert "0/4 done" in stream.getvalue().splitlines()[-1]


def test_terminal_gets_a_panel_and_the_log_plain_lines(clock, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream, log = Terminal(), tmp_path / "progress.log"
    with Progress(20, stream=stream, log_path=log, clock=clock, family=FAMILY) as progress:
        for index in range(10):
            progress.trial_progress(f"trial{index}", 0, {})
        progress.trial_progress("trial0", 5, {"eval_loss": 0.1234, "train_loss": None})
        clock.now += 10
        progress.tick()
        progress.trial_finished("trial1", "failed", {"error": "loss is nan"})
    shown = stream.getvalue()
    assert "0/20 done, 10 running (epoch 0 to 5)" in shown
    assert "0.1234" in shown and "and 2 more" in shown and "failed: trial1: loss is nan" in shown
    assert "\x1b" in shown and "\x1b" not in log.read_text()
    assert len(log.read_text().splitlines()) == 4


def test_panel_is_redrawn_only_now_and_then(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(20, stream=stream, clock=clock, family=FAMILY) as progress:
        before = len(stream.getvalue())
        for index in range(100):
            progress.trial_progress("a", index, {})
        assert len(stream.getvalue()) == before
        clock.now += 1
        progress.tick()
        assert len(stream.getvalue()) > before


def test_threads_lose_no_event(clock):
    progress = Progress(400, stream=io.StringIO(), clock=clock, family=FAMILY)

    def work(worker):
        for index in range(100):
            progress.trial_progress(f"{worker}-{index}", index, {})
            progress.trial_finished(f"{worker}-{index}", "success", _row(0.0, index / 100))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "400/400 done, 0 running" in progress.line()


def test_a_log_that_cannot_be_opened_is_not_passed_over(tmp_path):
    with pytest.raises(OSError):
        Progress(1, log_path=tmp_path / "missing" / "progress.log", stream=io.StringIO())
