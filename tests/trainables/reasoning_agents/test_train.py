"""The pipeline without Ray: which phases are run again, going on after a kill, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.reasoning_agents import SMOKE_VALUES
from tests.sweeps.killed import rows_after_kills
from trainables.common.context import PlainRun
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.reasoning_agents.config import AgentsConfig
from trainables.reasoning_agents.phase import fingerprint, parse_phases, phase_folder, require_predecessors
from trainables.reasoning_agents.train import train_loop

CONFIG = replace(AgentsConfig(**SMOKE_VALUES), epochs=15, selfplay_games=4, match_games=4)


class Killed(Exception):
    pass


class DyingRun(PlainRun):
    """Dies at a report."""

    def __init__(self, folder: Path, last: int) -> None:
        super().__init__(folder=folder)
        self._last = last

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None = None) -> None:
        if len(self.reports) == self._last:
            raise Killed
        super().report(metrics, checkpoint)


def settings(folder: Path, config: AgentsConfig = CONFIG, phases: str = "3") -> dict[str, Any]:
    return {
        "config": asdict(config),
        "seed": 0,
        "folder": str(folder / "trial"),
        "cache": str(folder / "phases"),
        "phases": parse_phases(phases),
        "backbone": "minilm",
        "backbone_fingerprint": "f",
    }


def test_self_play_that_is_killed_goes_on_and_a_finished_phase_is_not_run_again(tmp_path: Path) -> None:
    whole = PlainRun()
    train_loop(settings(tmp_path / "whole"), whole)
    assert [report["epoch"] for report in whole.reports] == [1, 2, 3]
    assert {report["stage"] for report in whole.reports} == {"selfplay"}
    dying = DyingRun(tmp_path / "run", 1)
    with pytest.raises(Killed):
        train_loop(settings(tmp_path), dying)
    resumed = PlainRun(folder=tmp_path / "run")
    train_loop(settings(tmp_path), resumed)
    # the first epoch is not reported twice
    assert [report["epoch"] for report in dying.reports + resumed.reports] == [1, 2, 3]
    for name in ("optimal_moves", "mcts_win_rate", "policy_loss", "value_loss", "update_norm/policy"):
        assert resumed.reports[-1][name] == whole.reports[-1][name], name
    again = PlainRun()
    (cached,) = (tmp_path / "phases").iterdir()
    before = (cached / "result.json").stat().st_mtime_ns
    train_loop(settings(tmp_path, replace(CONFIG, router="knn")), again)
    assert (cached / "result.json").stat().st_mtime_ns == before and len(list((tmp_path / "phases").iterdir())) == 1
    assert [report["optimal_moves"] for report in again.reports] == [r["optimal_moves"] for r in whole.reports]
    assert json.loads((tmp_path / "trial" / "shown.json").read_text())["selfplay_curve"]


def test_a_trial_that_is_killed_when_nothing_is_stored_has_a_row_for_every_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_after_kills(train_loop, settings(tmp_path), tmp_path, monkeypatch)
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_a_damaged_round_costs_that_round_and_a_damaged_phase_is_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dying = DyingRun(tmp_path / "run", 1)
    with pytest.raises(Killed):
        train_loop(settings(tmp_path), dying)
    progress = sorted((tmp_path / "phases").glob("*/selfplay.progress/*.pt"))
    assert len(progress) == 2
    progress[-1].write_bytes(progress[-1].read_bytes()[:100])
    resumed = PlainRun(folder=tmp_path / "run")
    train_loop(settings(tmp_path), resumed)
    assert "is damaged" in caplog.text and resumed.reports[-1]["epoch"] == 3
    nets = next((tmp_path / "phases").glob("*/nets.pt"))
    whole = nets.read_bytes()
    nets.write_bytes(b"")
    again = PlainRun()
    train_loop(settings(tmp_path), again)
    assert nets.read_bytes() and len(nets.read_bytes()) == len(whole)
    assert [report["optimal_moves"] for report in again.reports][-1] == resumed.reports[-1]["optimal_moves"]


def test_a_phase_depends_on_its_settings_the_seed_and_those_before_it() -> None:
    def changed(**values: Any) -> set[int]:
        other = replace(CONFIG, **values)
        return {n for n in range(1, 6) if fingerprint(n, CONFIG, 0, "f") != fingerprint(n, other, 0, "f")}

    assert changed(rank=16) == {1, 2, 4, 5} and changed(k=3) == {2, 4, 5} and changed(simulations=9) == {3, 4, 5}
    assert (
        changed(router="knn") == {4, 5} and changed(epochs=19) == {1, 2, 3, 4, 5} and changed(grace_period=2) == set()
    )
    assert len({fingerprint(n, CONFIG, seed, "f") for n in range(1, 6) for seed in range(2)}) == 10


def test_a_phase_whose_predecessor_was_never_finished_is_refused(tmp_path: Path) -> None:
    cache = Folder(tmp_path)
    with pytest.raises(InputError, match=r"Phase 2 .* needs phase 1 .pre-training., which was never finished"):
        require_predecessors((2,), cache, CONFIG, 0, "f")
    require_predecessors((1, 2, 3), cache, CONFIG, 0, "f")
    phase_folder(cache, 1, CONFIG, 0, "f").write("result.json", b"{}")
    require_predecessors((2,), cache, CONFIG, 0, "f")


@pytest.mark.parametrize(("text", "phases"), [("1-5", (1, 2, 3, 4, 5)), ("3", (3,)), ("1,4-5", (1, 4, 5))])
def test_phases_are_named_as_pages_of_a_book(text: str, phases: tuple[int, ...]) -> None:
    assert parse_phases(text) == phases


@pytest.mark.parametrize("text", ["6", "0-2", "two", "", "1-", "2-1"])
def test_unknown_phases_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--phases"):
        parse_phases(text)
