"""What the five phases have in common: which settings a phase depends on, its folder, and how it reports and resumes.

A finished phase lies in a folder of its own, named by a fingerprint of everything it depends on: its settings, the
seed, the interpreter whose documentation is read, and the phases before it. Trials that agree in these share it. Its
file ``result.json`` is written last and acts as the commit marker.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.reasoning_agents.config import AgentsConfig

log = logging.getLogger(__name__)

# written last, it says that a phase is finished, and what its other files must be
RESULT = "result.json"
# ending of the folder of a stage that is under way
PROGRESS = ".progress"
# raise it when a phase computes something else from the same settings
VERSION = 2
ENCODERS = ("rank", "alpha", "dropout", "layers", "pooling", "batch_size", "accumulation", "clip_norm", "lr")
PACKAGE = "trainables.reasoning_agents"
SELF_PLAY = (
    "game", "simulations", "c", "selfplay_games", "buffer", "net_steps", "net_lr", "match_games", "positions",
)  # fmt: skip
CORPUS = ("chunks", "chunk_size", "overlap")
PROBLEMS = ("train_problems", "held_out_problems", "max_refinements", "epochs")


@dataclass(frozen=True)
class Phase:
    """A phase of the pipeline.

    Attributes:
        title: What it is called.
        module: Where its ``run_phase(work)`` is.
        needs: The phases whose folders it reads.
        settings: Settings that it depends on, besides those of what it needs.
    """

    title: str
    module: str
    needs: tuple[int, ...]
    settings: tuple[str, ...]


PHASES = {
    1: Phase(
        "pre-training",
        f"{PACKAGE}.pretraining",
        (),
        (*ENCODERS, *PROBLEMS, *CORPUS, "hrm_steps", "trm_steps"),
    ),
    2: Phase("instruction tuning", f"{PACKAGE}.tuning", (1,), ("tuning_steps", "k")),
    3: Phase("self-play", f"{PACKAGE}.selfplay", (), (*SELF_PLAY, "epochs")),
    4: Phase(
        "meta-controller",
        f"{PACKAGE}.router",
        (1, 2, 3),
        ("router", "router_features", "routed_problems", "cost_weight"),
    ),
    5: Phase("evaluation", f"{PACKAGE}.evaluation", (1, 2, 3, 4), ()),
}


def parse_phases(text: str) -> tuple[int, ...]:
    """Return the phases that ``1-5``, ``3`` or ``1,2,4-5`` names, in order.

    Raises:
        InputError: If it is not of that form, or a phase does not exist.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not found:
            raise InputError(f"--phases {text}: {part!r} is no phase; write 1-5, 3 or 1,2,4-5.")
        chosen |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    unknown = sorted(chosen - PHASES.keys())
    if unknown or not chosen:
        known = ", ".join(f"{number} ({phase.title})" for number, phase in PHASES.items())
        raise InputError(f"--phases {text}: there is no phase {unknown[0] if unknown else text} among {known}.")
    return tuple(sorted(chosen))


def fingerprint(number: int, config: AgentsConfig, seed: int, backbone: str) -> str:
    """Return 16 hex digits that name everything that a phase depends on.

    Args:
        number: Of the phase.
        config: All settings.
        seed: Of the trial.
        backbone: The fingerprint, or else the name, of the encoder.
    """
    phase = PHASES[number]
    text = {
        "version": VERSION,
        "phase": number,
        "seed": seed,
        "python": platform.python_version(),
        "backbone": backbone,
        "settings": {name: getattr(config, name) for name in phase.settings},
        "needs": [fingerprint(need, config, seed, backbone) for need in phase.needs],
    }
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]


def phase_folder(cache: Folder, number: int, config: AgentsConfig, seed: int, backbone: str) -> Folder:
    """Return where a phase of these settings lies or will lie."""
    return cache.sub(f"phase{number}-{fingerprint(number, config, seed, backbone)}")


def index_folder(cache: Folder, config: AgentsConfig, backbone: str) -> Folder:
    """Return where the index over the corpus lies, which no seed and no other setting changes."""
    text = [VERSION, platform.python_version(), backbone, *(getattr(config, name) for name in CORPUS)]
    return cache.sub(f"index-{hashlib.sha256(json.dumps(text).encode()).hexdigest()[:16]}")


@contextmanager
def alone(folder: Folder) -> Iterator[None]:
    """Hold a folder, so that trials at the same time wait for a phase instead of running it twice.

    The lock ends with the process. Folders that are not on a local disk are not held: there the same work may be done
    twice, with the same outcome.
    """
    if not folder.is_local:
        yield
        return
    Path(folder.root).mkdir(parents=True, exist_ok=True)
    with Path(folder.root, ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def result_of(folder: Folder) -> dict[str, Any] | None:
    """Return what a finished phase came to; None where it is not finished, or where a file of it is damaged."""
    try:
        result: dict[str, Any] | None = folder.read_json(RESULT)
    except InputError:
        damaged = [RESULT]
    else:
        files = (result or {}).get("files", {})
        damaged = [name for name, digest in files.items() if _digest(folder, name) != digest]
    if damaged:
        log.warning("%s is damaged: the phase is run again.", folder.path(damaged[0]))
        return None
    return result


def require_predecessors(phases: Sequence[int], cache: Folder, config: AgentsConfig, seed: int, backbone: str) -> None:
    """Raise InputError where a phase needs another one that is neither among ``phases`` nor finished."""
    for number in phases:
        for need in PHASES[number].needs:
            if need not in phases and result_of(phase_folder(cache, need, config, seed, backbone)) is None:
                raise InputError(
                    f"Phase {number} ({PHASES[number].title}) needs phase {need} ({PHASES[need].title}), which was "
                    f"never finished with these settings in {cache.location}; add it to --phases."
                )


@dataclass
class Work:
    """One run of a phase.

    Attributes:
        number: Of the phase.
        config: All settings.
        seed: Of the trial.
        backbone: The encoder.
        device: A torch device string.
        folder: Where its files go.
        index: Where the index for retrieval lies, which trials with the same corpus share.
        needs: Folders of the phases that it needs.
        map: Calls a function for each item, on a cluster where there is one.
        said: Is told of each measurement.
        history: Measurements so far, in order.
    """

    number: int
    config: AgentsConfig
    seed: int
    backbone: str
    device: str
    folder: Folder
    index: Folder
    needs: Mapping[int, Folder]
    map: Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
    said: Callable[[dict[str, Any]], None]
    history: list[dict[str, Any]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def once(self, stage: str, score: float, metrics: Mapping[str, Any]) -> None:
        """Report the one measurement of a stage."""
        self._say({"stage": stage, "phase_metric": score, "seconds": self._lap(), **metrics})

    def rounds(self, stage: str, trainer: Any) -> None:
        """Let a trainer train its rounds, and report each; go on after the last one that was finished.

        Args:
            stage: Name of the stage.
            trainer: With ``train_round(number) -> (score, metrics)``, ``state_dict()`` and ``load_state_dict(state)``.
        """
        from trainables.common.checkpoints import CheckpointMeta, Checkpoints

        checkpoints, done = Checkpoints(self.folder.sub(f"{stage}{PROGRESS}"), keep=2), []
        kept = checkpoints.newest({}, self.device)
        if kept is not None:
            trainer.load_state_dict(kept[1]["state"])
            done = kept[1]["history"]
        for entry in done:
            self._say(entry)
        for number in range(len(done), self.config.rounds):
            score, metrics = trainer.train_round(number)
            entry = {"stage": stage, "phase_metric": score, "seconds": self._lap(), **metrics}
            done.append(entry)
            # one file: weights and history are never of different rounds
            state = {"state": trainer.state_dict(), "history": done}
            checkpoints.save(CheckpointMeta(len(done), None, {}), state)
            self._say(entry)

    def finish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write down what the phase came to; return it. The progress of its stages is no longer needed."""
        seconds = sum(entry["seconds"] for entry in self.history) + self._lap()
        files = {name: _digest(self.folder, name) for name in self.folder.names() if name != RESULT}
        result = {
            "metrics": dict(metrics), "history": self.history, "seconds": seconds, "config": asdict(self.config),
            "files": files,
        }  # fmt: skip
        self.folder.write(RESULT, json.dumps(result).encode())
        for name in self.folder.folders():
            if name.endswith(PROGRESS):
                self.folder.delete_folder(name)
        return result

    def _say(self, entry: dict[str, Any]) -> None:
        self.history.append(entry)
        self.said(entry)

    def _lap(self) -> float:
        now = time.monotonic()
        spent, self._began = now - self._began, now
        return spent


def _digest(folder: Folder, name: str) -> str:
    return hashlib.sha256(folder.read(name) or b"").hexdigest()


def save(folder: Folder, name: str, state: Any) -> None:
    """Write tensors and plain values to a file."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.write(name, buffer.getvalue())


def load(folder: Folder, name: str, device: str = "cpu") -> Any:
    """Return what `save` wrote. Raises FileNotFoundError where there is nothing."""
    import torch

    data = folder.read(name)
    if data is None:
        raise FileNotFoundError(folder.path(name))
    return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
