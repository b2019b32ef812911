"""Log a run's results to Weights & Biases or TensorBoard, from its Parquet files.

python -m sweeps.trackers RUN_DIR --wandb online [--wandb-per-trial]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dashboards import report
from sweeps.core import cli
from sweeps.monitoring.trackers import Trackers, sinks_for
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Log a run's results to Weights & Biases, from its Parquet files.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="<results-dir>/<sweep>/<run id>")
    cli.tracker_options(parser)
    args = parser.parse_args(argv)
    store = ResultsStore.open(args.run_dir)
    sinks = sinks_for(store, args.wandb, args.wandb_per_trial, args.tensorboard, report.render)
    if not sinks:
        raise InputError("There is nothing to log to; give --wandb offline, --wandb online or --tensorboard.")
    trackers = Trackers(sinks, close_s=3600)
    trackers.rows(store.latest_trials().to_pylist(), store.history().to_pylist())
    return 0 if trackers.close() and not trackers.dropped else 1


if __name__ == "__main__":
    cli.run_main(main)
