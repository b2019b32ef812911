"""The time left as ``progress.log`` shows it, over the recorded reports of a demo."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from sweeps import atomic_lora
from sweeps.core.recorder import Recorder
from sweeps.monitoring.metrics import SweepMetrics
from sweeps.monitoring.progress import Progress
from sweeps.monitoring.trackers import Trackers
from sweeps.store.store import RowWriter
from trainables.common.jobs import Report

# When each report of 80 tasks came, every fifth by size, in seconds of processor time since training began: one worker
# with 8 slots and the demo's settings. Each report is [seconds, index of the task, epoch, whether the adapter ended].
RECORDED = Path(__file__).with_name("demo_reports.json")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_of_a_demo_is_within_30_percent_of_the_truth_at_every_tenth(tmp_path: Path) -> None:
    recorded: dict[str, Any] = json.loads(RECORDED.read_text())
    place = ["--results-dir", str(tmp_path), "--run-id", "demo"]
    argv = ["--set", "epochs=10", "--set", "examples_per_epoch=8", "--tasks", ",".join(recorded["tasks"]), *place]
    sweep, _, _ = atomic_lora.prepare("atomic_lora", atomic_lora.SPACE, "", argv)
    store = sweep.open_store()
    [(values, seed)] = sweep.space.sample(sweep.config, sweep.domains, 1, 0)
    jobs = [sweep.job(task_id, values, seed, 0) for task_id in recorded["tasks"]]
    waiting, clock = list(recorded["reports"]), Clock()
    end = waiting[-1][0]
    log = Path(store.folder.root, "progress.log")
    with Progress(len(jobs), 0, log, io.StringIO(), clock=clock) as progress, Trackers([]) as trackers:
        metrics = SweepMetrics(sweep.name, sweep.space.family, len(jobs))
        recorder = Recorder(sweep, RowWriter(store, interval_s=3600.0), progress, metrics, trackers)
        recorder.expect(jobs)
        # Ray takes a while to start, which says nothing about the pace.
        start = 40.0
        while clock.now < start + end:
            running = 8 if clock.now >= start else 0
            recorder.on_counts({"running": running, "worker_restarts": 0})
            reports = []
            while waiting and waiting[0][0] <= clock.now - start:
                _, task, epoch, ended = waiting.pop(0)
                reports.append(Report(jobs[task].trial_id, "success" if ended else "running", epoch))
            recorder.on_reports(reports)
            clock.now += 1.0
    lines = re.findall(
        r"^\[(\d+):(\d+):(\d+)\] .*, (?:waiting for (.*)|(\d+):(\d+):(\d+) left)$", log.read_text(), re.M
    )
    shown = {_seconds(*line[:3]) - start: line[3] or _seconds(*line[4:]) for line in lines}
    assert {left for at, left in shown.items() if at < 0} == {"the workers to start"}
    for tenth in range(1, 10):
        at = max(at for at in shown if at <= end * tenth / 10)
        left = shown[at]
        if at < 10:
            assert left == "the first report"
            continue
        assert isinstance(left, float) and 0.7 <= left / (end - at) <= 1.3, (tenth, at, left, end - at)


def _seconds(hours: str, minutes: str, seconds: str) -> float:
    return 3600.0 * int(hours) + 60.0 * int(minutes) + int(seconds)
