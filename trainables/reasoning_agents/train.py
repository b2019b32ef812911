"""The pipeline of five phases: ``train_loop(settings, run)``.

A phase that is finished already, with the same settings, seed and predecessors, is not run again: its measurements are
reported as they were. A trial that is killed goes on within the phase, after the last round that was finished.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.common.context import Run
from trainables.common.folder import Folder
from trainables.reasoning_agents.config import AgentsConfig
from trainables.reasoning_agents.phase import (
    PHASES,
    Work,
    alone,
    index_folder,
    phase_folder,
    require_predecessors,
    result_of,
)

# what a phase came to that is no number or text goes into a file of the trial
SHOWN = ("example", "precision_curve", "refinement_example", "selfplay_curve", "routing")


def train_loop(settings: Mapping[str, Any], run: Run) -> None:
    """Run the chosen phases in order; report each measurement, and with it all that is known so far.

    Args:
        settings: ``config`` (`AgentsConfig` fields), ``backbone`` and ``backbone_fingerprint``, ``phases``, ``cache``
            (folder of finished phases, shared by trials), ``seed``, and ``folder``, where ``shown.json`` (examples and
            curves for the report) goes.
        run: Where it runs.

    Raises:
        DeadComponentError: If a component gets no gradient through the first round of its training.
        FloatingPointError: If a loss is no longer finite.
        InputError: If a phase needs another one that was never finished, or the backbone is no encoder.
    """
    config, seed, name = AgentsConfig(**settings["config"]), settings["seed"], settings["backbone_fingerprint"]
    cache = Folder(settings["cache"])
    require_predecessors(settings["phases"], cache, config, seed, name)
    folders = {number: phase_folder(cache, number, config, seed, name) for number in PHASES}
    reports = Reports(run)
    shown: dict[str, Any] = {}

    def work_of(number: int) -> Work:
        return Work(
            number,
            config,
            seed,
            settings["backbone"],
            run.device,
            folders[number],
            index_folder(cache, config, name),
            {need: folders[need] for need in PHASES[number].needs},
            run.map,
            lambda entry: reports.add(entry, number),
        )

    for number in settings["phases"]:
        with alone(folders[number]):
            result = result_of(folders[number])
            if result is None:
                result = importlib.import_module(PHASES[number].module).run_phase(work_of(number))
            else:
                for entry in result["history"]:
                    reports.add({**entry, "seconds": 0.0}, number)
        shown |= {key: value for key, value in result["metrics"].items() if key in SHOWN}
        reports.know({key: value for key, value in result["metrics"].items() if key not in SHOWN})
        reports.know({f"phase_seconds/{number}": result["seconds"]})
        Folder(settings["folder"]).write("shown.json", json.dumps(shown).encode())
    reports.close()


class Reports:
    """Numbers the measurements of all phases and hands them on, but for those of before a restart.

    The latest is held back until the next one, or the end, so that it carries what its phase came to.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._epoch = run, 0
        self._known: dict[str, Any] = {}
        self._waiting: dict[str, Any] = {}
        kept = run.checkpoint()
        self._done = json.loads((kept / "epoch.json").read_text())["epoch"] if kept else 0

    def add(self, entry: Mapping[str, Any], phase: int) -> None:
        """Take a measurement."""
        self._send(last=False)
        self._epoch += 1
        self._waiting = {"epoch": self._epoch, "phase": phase, **entry}

    def know(self, metrics: Mapping[str, Any]) -> None:
        """Take what a phase came to, which all later reports carry."""
        self._known |= metrics

    def close(self) -> None:
        """Report the latest measurement, also where it was reported before the restart."""
        self._send(last=True)

    def _send(self, last: bool) -> None:
        if not self._waiting or (self._epoch <= self._done and not last):
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "epoch.json").write_text(json.dumps({"epoch": self._epoch}))
            self._run.report({**self._known, **self._waiting}, Path(folder))
