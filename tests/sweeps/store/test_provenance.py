"""What is recorded of the code, the libraries and the machine."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from sweeps.store import provenance


def test_libraries_have_their_versions_and_what_is_not_installed_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LIBRARIES", ("torch", "no-such-package"))
    assert provenance.libraries() == {"torch": importlib.metadata.version("torch"), "no-such-package": None}


def test_without_git_there_is_no_code_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.code() is None


def test_the_machine_has_a_processor_and_memory() -> None:
    found = provenance.hardware()
    assert found["cpu"] and found["cores"] == os.cpu_count() and found["memory_bytes"] > 2**28
