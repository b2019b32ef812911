"""Checkpoints of a training loop at any step: the last few and the best are kept.

`Run.report` ties a checkpoint to the report of an epoch. A loop whose epochs are long keeps its checkpoints here
instead, in the folder of its trial, and finds them again whatever carries it out. A checkpoint is ``step-<step>.pt``
and, written after it, ``step-<step>.json``; without the second it does not exist. Where the newest one is damaged, a
run goes on from the one before.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.text import json_kind

log = logging.getLogger(__name__)

# kept at least, the best included, so that a damaged file costs some steps and not the run
LEAST_KEPT = 2


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
        keep: How many of the last ones are kept, besides the best; two in all at least.
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
        if len(wanted) < LEAST_KEPT:
            wanted |= {note.step for note in notes[-LEAST_KEPT:]}
        for old in notes:
            if old.step not in wanted:
                # the note first: a checkpoint without one does not exist
                self._folder.delete(f"{_name(old.step)}.json")
                self._folder.delete(f"{_name(old.step)}.pt")

    def notes(self) -> list[CheckpointMeta]:
        """Return what is known of all checkpoints, by step; one whose note cannot be read is passed over, and said."""
        found = []
        for name in self._folder.names(".json"):
            try:
                known = self._folder.read_json(name)
                if not isinstance(known, dict) or known.keys() != {"step", "metric", "identity"}:
                    raise InputError(f"it holds {json_kind(known)}, not what is known of a checkpoint")
            except InputError as error:
                self._warn(name, error)
            else:
                found.append(CheckpointMeta(**known))
        return sorted(found, key=lambda note: note.step)

    def newest(self, identity: Mapping[str, Any], device: str = "cpu") -> tuple[CheckpointMeta, dict[str, Any]] | None:
        """Return the newest checkpoint that can be read and its state, None where there is none.

        A damaged one is passed over, with a warning.

        Args:
            identity: What the run has in common with its checkpoints.
            device: Where its tensors go.

        Raises:
            InputError: If it belongs to another identity.
        """
        for note in reversed(self.notes()):
            require_same(note, identity, self._folder.location)
            try:
                return note, self.load(note, device)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # torch, zip and pickle have many errors for bytes that are no checkpoint
                self._warn(f"{_name(note.step)}.pt", error)
        return None

    def load(self, note: CheckpointMeta, device: str = "cpu") -> dict[str, Any]:
        """Return the state of a checkpoint."""
        data = self._folder.read(f"{_name(note.step)}.pt")
        if data is None:
            raise FileNotFoundError(self._folder.path(f"{_name(note.step)}.pt"))
        return dict(torch.load(io.BytesIO(data), map_location=device, weights_only=True))

    def _warn(self, name: str, error: Exception) -> None:
        where = self._folder.path(name)
        log.warning("%s is damaged (%s: %s): going on from the checkpoint before.", where, type(error).__name__, error)


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
