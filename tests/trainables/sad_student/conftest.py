"""A tiny teacher, and what a student of one layer learns from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.sad_student.models import save_tiny
from trainables.sad_student.config import SadConfig
from trainables.sad_student.data import Material, Source, load_material

SMALL = SadConfig(
    trajectories=16, validation_problems=4, test_problems=4, batch_size=2, accumulation=2, epochs=2, warmup_steps=2,
    lr=3e-3, top_k=8, rank=0, temperature=1.0, checkpoint_every=1, precision="float32", rollouts=4, rollout_every=2,
    save_student=False,
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model of two layers and random weights, with SmolLM2's tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def source(tiny_teacher: str, tiny_cache: Path) -> dict[str, Any]:
    return dataclasses.asdict(Source(tiny_teacher, "layers:1", cache=str(tiny_cache)))


@pytest.fixture
def material(source: dict[str, Any]) -> Callable[..., Material]:
    """Makes material with a fresh student for some settings."""

    def make(**settings: Any) -> Material:
        return load_material(Source(**source), dataclasses.replace(SMALL, **settings), "cpu")

    return make
