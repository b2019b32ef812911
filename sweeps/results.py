"""Print the summary of a run, and export the run as one JSON file.

python -m sweeps.results results/atomic_lora/RUN_ID [--export-json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sweeps.core.ending import run_main
from sweeps.store.store import ResultsStore
from sweeps.store.summary import export, print_summary, summarise
from trainables.common.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Print the summary of a run and, if asked, write it with all rows to one file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.results", description="Print the summary of a run.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of the run, a path or a URI")
    parser.add_argument("--export-json", metavar="FILE", help="write the run, the summary and all rows to one file")
    parser.add_argument("--export-svg", metavar="FILE", help="write the summary as a picture")
    args = parser.parse_args(argv)
    try:
        store = ResultsStore.open(args.run_dir)
        summary = summarise(store)
        if args.export_json:
            _write(args.export_json, json.dumps(export(store, summary), allow_nan=False) + "\n")
        if args.export_svg:
            console = Console(record=True, file=io.StringIO(), force_terminal=True, width=100, highlight=False)
            print_summary(summary, console=console)
            _write(args.export_svg, console.export_svg(title="python -m sweeps.results"))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_summary(summary)
    return 0


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise InputError(f"{path!r} cannot be written ({error}); name another file.") from error


if __name__ == "__main__":
    run_main(main)
