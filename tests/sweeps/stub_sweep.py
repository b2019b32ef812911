"""Sweeps of a family that trains nothing, through the functions that every sweep goes through.

Its metric is a ``score``, the higher the better, which no other part of the project knows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune

from search_spaces.settings import SettingError
from search_spaces.space import Preset, SearchSpace
from sweeps.core import cli
from sweeps.core.ordinary import run_trials
from sweeps.core.pooled import Pool, run_pool
from sweeps.core.sweep import Inputs, Sweep
from sweeps.core.work import listed, searched
from trainables.common.family import Column, Family


@dataclass(frozen=True)
class StubConfig:
    """Settings: the worse the ``quality`` the better the score; what follows is there for the pool."""

    quality: float = 1.0
    epochs: int = 30
    report_every: int = 5
    says: Literal["score", "text", "no_epoch"] = "score"
    rank: int = 1
    batch_size: int = 1
    epoch_s: float = 0.0


def validate(config: StubConfig) -> None:
    if config.rank > config.batch_size:
        raise SettingError("rank", f"is {config.rank} but the batch size is {config.batch_size}")


SPACE = SearchSpace(
    family=Family("stub", (Column("score", float, "how good it is"),), metric="score", mode="max"),
    config=StubConfig,
    presets={"full": Preset("all there is", sweep={"quality": tune.uniform(0.5, 2.0)})},
    validate=validate,
)


def train_loop(settings: dict[str, Any], run: Any) -> None:
    """An ordinary family's loop, with a checkpoint after every other epoch.

    With ``settings["good_first"]`` a trial of quality 1 trains before the others. A file ``fails-<quality>`` in the
    run's folder has the trials of a quality fail in epoch 8.
    """
    config = settings["config"]
    models = Path(settings["folder"]).parent
    trained, fails = models / "trained", models.parent / f"fails-{config['quality']}"
    while settings.get("good_first") and config["quality"] != 1.0 and not trained.exists():
        time.sleep(0.05)
    models.mkdir(exist_ok=True)
    kept = run.checkpoint()
    first = int((kept / "epoch").read_text()) + 1 if kept else 1
    for epoch in range(first, config["epochs"] + 1):
        time.sleep(config["epoch_s"])
        if epoch == 8 and fails.exists():
            trained.touch()
            raise RuntimeError("told to fail")
        score = "high" if config["says"] == "text" else -config["quality"] * (1 + 1 / epoch)
        metrics = {"epoch": None if config["says"] == "no_epoch" else epoch, "score": score}
        if epoch % 2:
            run.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "epoch").write_text(str(epoch))
            run.report(metrics, Path(folder))
    trained.touch()


def limits(configs: Sequence[Any]) -> dict[str, Any]:
    """The loop needs no room."""
    return {}


def main(kind: str, folder: Path, argv: Sequence[str], **settings: Any) -> int:
    """Run a sweep (``pool``, ``panel`` or ``ordinary``) of the tasks a and b; return the exit code."""
    parser = cli.common_parser(SPACE, "")
    cli.worker_options(parser)
    common = ["--results-dir", str(folder), "--run-id", "r", "--num-gpus", "0", "--workers-per-trial", "0"]
    args = parser.parse_args([*common, *argv])
    config, domains = SPACE.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
    sweep = Sweep("stub", SPACE, args, config, domains, Inputs("f0"))
    if kind == "ordinary":
        return run_trials(sweep, train_loop, settings)
    pool_settings = {"slots": 2, "epoch_s": 0.05, "metric": "score", **settings}
    # as much memory as there is in the end: one worker
    pool = Pool("tests.sweeps.stub_pool:loop", pool_settings, limits, lambda on_gpu: pool_settings["slots"], 1 << 50)
    return run_pool(sweep, pool, (searched if kind == "panel" else listed)(sweep, ["a", "b"]))


if __name__ == "__main__":
    # kind, folder, and the words of the command line
    from tests.sweeps import stub_sweep

    cli.run_main(lambda _: stub_sweep.main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
