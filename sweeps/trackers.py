"""Weights & Biases as a view of the results: one run per sweep, made from the store when the sweep is over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sweeps.results import ResultsStore

logger = logging.getLogger(__name__)


def log_to_wandb(store: ResultsStore, summary: Mapping[str, Any], mode: str) -> None:
    """Log one W&B run with the trials as a table and the numbers of the summary; W&B never fails a sweep.

    Args:
        store: The run's results.
        summary: What `sweeps.summary.summarise` returned for it.
        mode: ``offline`` (written beside the results, or to the working directory for remote ones) or ``online``.
    """
    try:
        import wandb

        folder = store.folder.root if store.folder.is_local else "."
        record = store.run() or {}
        run = wandb.init(
            project="arc-sweeps", group=store.sweep, name=store.run_id, id=store.run_id, dir=folder, mode=mode,  # type: ignore[arg-type]
            config=record.get("settings"), resume="allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )  # fmt: skip
        trials = store.latest_trials()
        cells = [[str(cell) for cell in row.values()] for row in trials.to_pylist()]
        run.log({"trials": wandb.Table(columns=trials.column_names, data=cells)})
        run.summary.update({name: value for name, value in summary.items() if isinstance(value, int | float)})
        run.finish()
    except Exception as error:
        # a tracker is a view: the rows are safe in the store
        logger.warning(
            "Weights & Biases could not be written (%s: %s); the results are complete.", type(error).__name__, error
        )
