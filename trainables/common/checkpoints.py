"""Checkpoints of a training loop at any step: the last few and the best are kept.

`Run.report` ties a checkpoint to the report of an epoch. A loop whose epochs are long keeps its checkpoints here
instead, in the folder of its trial, and finds them again whatever carries it out. A checkpoint is ``step-<step>.pt``
and, written after it, ``step-<step>.json``; without the second it does not exist.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.text import json_kind


@dataclass(frozen=True)
class CheckpointMeta:
    """What is known of a checkpoint without reading it.

    Attributes:
        step: Global step.
        metric: How good the model was when it was last measured; more is better. None: not measured.
        identity: What a run must have in common with the checkpoint to go on from it, such as its configuration.
    """

    step: int
    metric: float | None
    identity: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in one folder. One process writes.

    Args:
        folder: Where they lie.
        keep: How many of the last ones are kept, besides the best.
    """

    def __init__(self, folder: Folder, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def save(self, note: CheckpointMeta, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove those that are no longer wanted."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self._folder.write(f"{_name(note.step)}.pt", buffer.getvalue())
        self._folder.write(f"{_name(note.step)}.json", json.dumps(vars(note), sort_keys=True).encode())
        notes = self.notes()
        wanted = {kept.step for kept in notes[-self._keep :]}
        best = best_of(notes)
        wanted |= {best.step} if best else set()
        for old in notes:
            if old.step not in wanted:
                # the note first: a checkpoint without one does not exist
                self._folder.delete(f"{_name(old.step)}.json")
                self._folder.delete(f"{_name(old.step)}.pt")

    def notes(self) -> list[CheckpointMeta]:
        """Return what is known of all checkpoints, by step. Raises InputError where that cannot be read."""
        found = []
        for name in self._folder.names(".json"):
            known = self._folder.read_json(name)
            if not isinstance(known, dict) or known.keys() != {"step", "metric", "identity"}:
                where = self._folder.path(name)
                raise InputError(f"{where} holds {json_kind(known)}, not what is known of a checkpoint; delete it.")
            found.append(CheckpointMeta(**known))
        return sorted(found, key=lambda note: note.step)

    def load(self, note: CheckpointMeta, device: str = "cpu") -> dict[str, Any]:
        """Return the state of a checkpoint."""
        data = self._folder.read(f"{_name(note.step)}.pt")
        if data is None:
            raise FileNotFoundError(self._folder.path(f"{_name(note.step)}.pt"))
        return dict(torch.load(io.BytesIO(data), map_location=device, weights_only=True))


def best_of(notes: list[CheckpointMeta]) -> CheckpointMeta | None:
    """Return the best of the checkpoints that were measured, the latest of equals."""
    measured = [note for note in notes if note.metric is not None]
    return max(measured, key=lambda note: (note.metric, note.step), default=None)


def require_same(note: CheckpointMeta, identity: Mapping[str, Any], where: str) -> None:
    """Raise InputError where a checkpoint belongs to another identity, naming the first difference."""
    now = json.loads(json.dumps(dict(identity)))
    for name in sorted(now.keys() | note.identity.keys()):
        if now.get(name) != note.identity.get(name):
            raise InputError(
                f"The checkpoint in {where} was made with {name} = {json.dumps(note.identity.get(name))}, but this run "
                f"has {json.dumps(now.get(name))}; give the same setting, or start without the checkpoint."
            )


def _name(step: int) -> str:
    return f"step-{step:09d}"
