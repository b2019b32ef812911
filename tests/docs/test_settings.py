"""docs/settings.md says what the settings are now."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.settings import COMMAND, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    if capsys.readouterr().out != PAGE.read_text():
        pytest.fail(f"docs/settings.md is out of date; run: {COMMAND}", pytrace=False)
