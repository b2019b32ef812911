"""The command that checks what a run needs: its table and its exit code."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import ray

from sweeps import preflight
from sweeps.backend.cluster import ClusterInfo
from tests.sweeps.tiny import save_tiny_champion
from trainables.atomic_lora import bases
from trainables.reasoning_agents import needs


def test_the_base_that_ships_loads_and_another_does_not(tmp_path: Path) -> None:
    assert "million parameters" in preflight.base(None).found and not preflight.base(None).missing
    assert "no such checkpoint" in preflight.base(str(tmp_path)).missing
    assert "no causal language model" in preflight.base("hf:there/is-none").missing


def test_the_agents_need_their_packages_and_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    packages, encoder = preflight.agents("minilm")
    assert "open_spiel" in packages.found and not packages.missing and not encoder.missing
    assert "no encoder" in preflight.agents("smollm2")[1].missing
    monkeypatch.setitem(needs.PACKAGES, "nowhere_to_be_found", "nowhere==1.0")
    assert "pip install nowhere==1.0" in preflight.agents("minilm")[0].missing
    assert needs.places("minilm")["open_spiel==2.0.2"] == "package:pyspiel"


def test_a_relative_base_is_looked_for_in_full_on_every_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machines are pretended: what they are asked for is tested."""
    asked: list[Any] = []
    info = ClusterInfo("head:6379", False, 0, 2, 1 << 30, 2, False, True, None)
    monkeypatch.setattr(preflight.cluster, "connect", lambda *options: contextlib.nullcontext(info))
    monkeypatch.setattr(preflight.checks, "machines", lambda *options: asked.append(options) or [])
    save_tiny_champion(tmp_path)
    monkeypatch.chdir(tmp_path)
    for base in ("champion.safetensors", "hf:there/is-none"):
        preflight.main(["--results-dir", str(tmp_path / "results"), "--base", base])
    preflight.main(["--results-dir", str(tmp_path / "results")])
    preflight.main([])
    assert not (tmp_path / "results").exists()
    places = [place for _, _, place in asked]
    assert places == [{"base": str(tmp_path / "champion.safetensors")}, {}, *[{"base": str(bases.DEFAULT_BASE)}] * 2]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_command_prints_a_table_and_its_exit_code_says_whether_all_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--num-gpus", "0", "--results-dir", str(tmp_path)]
    assert preflight.main(words) == 0
    good = capsys.readouterr().out
    assert "missing" not in good and "State API" in good and "fingerprint" in good
    assert f"{ray.__version__} at" in good
    more = [*words, "--results-dir", "s3://", "--num-gpus", "99", "--teacher", "http://127.0.0.1:1/v1"]
    assert preflight.main(more) == 1
    bad = capsys.readouterr().out
    assert bad.count("missing") == 3 and "--num-gpus is 99" in bad and "No teacher answers" in bad
