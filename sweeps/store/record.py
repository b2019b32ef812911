"""The record of a run, ``run.json``: what was run, with what, on what."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sweeps.store.provenance import code, hardware, libraries
from sweeps.store.schema import SCHEMA_VERSION
from trainables.common.family import Family


def run_record(
    command: str | Sequence[str],
    settings: Mapping[str, Any],
    extendable: Iterable[str],
    data_fingerprint: str,
    seed: int,
    family: Family,
    fingerprints: Mapping[str, str] | None = None,
    left_out: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """Return the record of a run that starts now: what `sweeps.store.store.ResultsStore.create` writes to run.json.

    Args:
        command: The command line, as one string or as its words.
        settings: The complete resolved settings; values that JSON does not know are written as strings.
        extendable: Names of the settings that a later session of the same run may change.
        data_fingerprint: Fingerprint of the data.
        seed: Seed of the run.
        family: The family that is trained; what it declares of its columns is kept with the run.
        fingerprints: Of each task's data, where sessions of the run may train different tasks.
        left_out: By task, how much of its data is not used, by reason.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command if isinstance(command, str) else shlex.join(command),
        "settings": dict(settings),
        "extendable": sorted(extendable),
        "data_fingerprint": data_fingerprint,
        "fingerprints": dict(fingerprints or {}),
        "left_out": dict(left_out or {}),
        "seed": seed,
        "family": family.declaration(),
        "git": code(),
        "versions": {"python": platform.python_version(), **libraries()},
        "hardware": hardware(),
        "started_at": datetime.now(UTC).isoformat(),
    }
