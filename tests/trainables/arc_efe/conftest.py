"""Fixtures of the tests of the prompted grid agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainables.arc_efe.tiny import save_language_model
from trainables.common import embedded


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the setting ``lm`` takes of a tiny model."""
    return save_language_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which embeddings and rules are kept."""
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "arc_efe"
