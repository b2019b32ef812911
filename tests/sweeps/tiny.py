"""What tests of whole sweeps share: a tiny base, the smallest tasks, and a look at the rows."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from trainables.atomic_lora.config import ChampionConfig
from trainables.atomic_lora.model import Champion, save_champion

ROOT = Path(__file__).resolve().parents[2]
TINY = ChampionConfig(
    width=32, heads=2, feedforward=48, decoder_layers=1, context_width=16, context_heads=2, context_feedforward=32
)
SMALLEST = ["0d3d703e", "25ff71a9", "a85d4709", "d037b0a7"]


def save_tiny_champion(folder: Path) -> Path:
    """Write a tiny untrained Champion and return its path."""
    torch.manual_seed(0)
    path = folder / "champion.safetensors"
    model = Champion(TINY)
    # without a preference for ending a row an untrained model writes the largest grids there are
    torch.nn.init.constant_(model.head.bias[10:13], 2.0)
    save_champion(path, model, TINY, {})
    return path


@dataclass(frozen=True)
class Called:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


def called(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> Called:
    """Call a command's ``main`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return Called(code, out.getvalue(), err.getvalue())


def rows(results: Path, run_id: str, kind: str = "trials", sweep: str = "atomic_lora") -> pd.DataFrame:
    folder = results / sweep / run_id / kind
    return pd.read_parquet(folder) if folder.exists() and any(folder.glob("*.parquet")) else pd.DataFrame()
