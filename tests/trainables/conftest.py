"""Fixtures of a small model within a package, found, checked and converted as the real ones are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainables.common.tiny_package import save_package
from trainables.common import embedded


@pytest.fixture
def model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of converted models, not there yet."""
    monkeypatch.setenv(embedded.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> embedded.EmbeddedModel:
    """A causal LM of random weights under the name ``tiny``, its package in ``tmp_path``."""
    model = save_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(embedded.MODELS, "tiny", model)
    return model
