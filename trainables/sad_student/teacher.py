"""What a teacher says of trajectories: its most probable next tokens, and its own episodes, cached in Parquet."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from torch.nn import functional as F

from trainables.common.folder import replace
from trainables.sad_student.models import hidden_states
from trainables.sad_student.tokens import Tokens, batches, padded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """What a teacher says of one trajectory of T tokens.

    Attributes:
        ids: [T, K] int64, its most probable tokens at each position, given those before; nothing is known of the first.
        log_p: [T, K] float16, their log-probabilities.
    """

    ids: np.ndarray
    log_p: np.ndarray


class Teacher(Protocol):
    """Anything that gives the probabilities of next tokens.

    Attributes:
        fingerprint: Names its weights, tokenizer and vocabulary.
        tokens: Tokens that it has judged since it was made.
    """

    fingerprint: str
    tokens: int

    def judge(self, rows: Sequence[Tokens], top_k: int) -> list[Targets]:
        """Return what it says of some trajectories."""


class LocalTeacher:
    """A teacher in this process.

    Args:
        model: A causal LM in evaluation mode, its vocabulary that of the tokens.
        fingerprint: See `Teacher`.
        rows: Trajectories at once.
    """

    def __init__(self, model: Any, fingerprint: str, rows: int = 16) -> None:
        self.model, self.fingerprint, self.rows, self.tokens = model.eval().requires_grad_(False), fingerprint, rows, 0

    @property
    def player(self) -> Any:
        """What `rollout.play` takes."""
        return self.model

    @torch.inference_mode()
    def judge(self, rows: Sequence[Tokens], top_k: int) -> list[Targets]:
        found: dict[int, Targets] = {}
        device = self.model.lm_head.weight.device
        for batch in batches([len(row.ids) for row in rows], self.rows, range(len(rows))):
            ids, mask = (t.to(device) for t in padded([rows[i].ids for i in batch]))
            hidden = hidden_states(self.model, ids, mask)
            for place, i in enumerate(batch):
                length = len(rows[i].ids)
                log_p = F.log_softmax(self.model.lm_head(hidden[place, : length - 1]).float(), dim=-1)
                best, named = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1)
                found[i] = shifted(named.cpu().numpy(), best.cpu().numpy())
                self.tokens += length
        return [found[i] for i in range(len(rows))]


def shifted(ids: np.ndarray, log_p: np.ndarray) -> Targets:
    """Return what is said after each token but the last as what is said of the one that follows."""
    first = np.arange(ids.shape[1])[None]
    # different tokens, so that the row is one that could be
    return Targets(
        np.concatenate([first, ids]).astype(np.int64),
        np.concatenate([np.full_like(log_p[:1], -np.log(ids.shape[1])), log_p]).astype(np.float16),
    )


def judged(teacher: Teacher, rows: Sequence[Tokens], top_k: int, folder: Path) -> list[Targets]:
    """Return what a teacher says of trajectories, from the cache where it has said it before.

    One process asks while others with the same question wait for its answer.

    Args:
        folder: A local folder of the cache; a file in it is named by teacher, data and ``top_k``.
    """
    digest = hashlib.sha256(f"{teacher.fingerprint} {top_k}".encode())
    for row in rows:
        digest.update(row.ids.tobytes())
    return cached(folder, f"targets-{digest.hexdigest()[:24]}", lambda: _table(teacher.judge(rows, top_k)), _targets)


def cached(folder: Path, name: str, make: Any, read: Any) -> Any:
    """Return ``read`` of the Parquet file of a name; where it is missing or damaged it is made of ``make``'s table."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.parquet"
    if not _is_whole(file):
        with FileLock(folder / f"{name}.lock"):
            if not _is_whole(file):
                aside = file.with_suffix(".tmp")
                pq.write_table(make(), aside, compression="zstd")
                replace(aside, file)
    return read(pq.read_table(file))


def _is_whole(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        log.warning("%s is damaged (%s): what it held is made again.", file, error)
        return False
    return True


def _table(targets: Sequence[Targets]) -> pa.Table:
    return pa.table(
        {
            "trajectory": np.repeat(np.arange(len(targets)), [len(t.ids) for t in targets]),
            "ids": pa.FixedSizeListArray.from_arrays(
                np.concatenate([t.ids for t in targets]).astype(np.int32).ravel(), targets[0].ids.shape[1]
            ),
            "log_p": pa.FixedSizeListArray.from_arrays(
                np.concatenate([t.log_p for t in targets]).ravel(), targets[0].ids.shape[1]
            ),
        }
    )


def _targets(table: pa.Table) -> list[Targets]:
    trajectory = table["trajectory"].to_numpy()
    ids, log_p = (
        table[name].combine_chunks().flatten().to_numpy().reshape(len(trajectory), -1) for name in ("ids", "log_p")
    )
    starts = np.flatnonzero(np.diff(trajectory)) + 1
    pairs = zip(np.split(ids.astype(np.int64), starts), np.split(log_p, starts), strict=True)
    return [Targets(some, values) for some, values in pairs]


def numbers(values: Mapping[str, float]) -> pa.Table:
    """Return named numbers as a table, for `cached`."""
    return pa.table({"name": list(values), "value": list(values.values())})


def named(table: pa.Table) -> dict[str, float]:
    """Return what `numbers` was given."""
    return dict(zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True))


def fingerprint(*parts: Any) -> str:
    """Return 16 hex digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
