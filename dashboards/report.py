"""The results of one or more runs as one HTML page that works offline.

    python dashboards/report.py results/atomic_lora/RUN_ID                    # writes RUN_DIR/report.html
    python dashboards/report.py RUN_DIR RUN_DIR --output comparison.html      # several runs, compared
    python dashboards/report.py RUN_DIR --watch                               # serves it, up to date while a sweep runs

A run is a folder or a URI (``s3://...``), finished or under way. The page holds its data, its code and plotly.js; it
loads nothing, and its own security policy forbids it to. What is shown depends on what is there: a family without tasks
or baselines gets the sections that its rows can fill. What is read and counted is in `dashboards.report_data` and
`dashboards.sections`, what is drawn in ``dashboards/page/``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

if __name__ == "__main__":
    # the folder of this script holds modules of the project, not top-level ones
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dashboards.report_data import comparison, gather
from dashboards.report_server import serve
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("base.js", "charts.js", "pictures.js", "trials.js", "page.js")
SECTIONS = Path(__file__).parent / "sections"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or serve the report of the runs that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="dashboards/report.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run_dir", metavar="RUN_DIR", nargs="+", help="folder of a run, a path or a URI")
    parser.add_argument("--output", metavar="FILE", help="default: report.html in the run's folder, or in this one")
    parser.add_argument("--watch", action="store_true", help="serve the report on this machine and keep it up to date")
    parser.add_argument("--port", type=int, metavar="N", help="port of --watch (default: 8300; 0: any that is free)")
    args = parser.parse_args(argv)
    try:
        if args.watch and args.output:
            raise InputError(f"--watch serves the report and writes no file; leave out --output {args.output!r}.")
        if args.port is not None and not args.watch:
            raise InputError(f"--port {args.port} has no meaning without --watch; add --watch or leave it out.")
        stores = [ResultsStore.open(run_dir) for run_dir in args.run_dir]
        if args.watch:
            port = 8300 if args.port is None else args.port
            return serve(stores, lambda: content(stores), lambda data: page(data, watched=True), port)
        output = Path(args.output or _default_output(stores))
        text = page(content(stores))
        _write(output, text)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{output} ({len(text.encode()) / 1e6:.1f} MB)")
    return 0


def content(stores: Sequence[ResultsStore]) -> dict[str, Any]:
    """Return everything that a page about these runs shows, as JSON can hold it."""
    runs = [gather(store, 1 / len(stores)) for store in stores]
    # a family that has a section of its own
    names = [name for name in dict.fromkeys(s.family.name for s in stores) if (SECTIONS / f"{name}.js").exists()]
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "comparison": comparison(runs) if len(runs) > 1 else None,
        "sections": {name: _section(name).gather(stores) for name in names},
    }


def page(data: dict[str, Any], watched: bool = False) -> str:
    """Return the whole page.

    Args:
        data: What `content` returned.
        watched: Whether a server answers at ``data.json`` with newer data.
    """
    title = ", ".join(f"{run['sweep']} / {run['run_id']}" for run in data["runs"])
    sections = [SECTIONS / f"{name}.js" for name in data["sections"]]
    scripts = [*(PARTS / name for name in SCRIPTS[:-1]), *sections, PARTS / SCRIPTS[-1]]
    slots = {
        "TITLE": escape(title),
        "STYLE": (PARTS / "page.css").read_text(),
        "PLOTLY": get_plotlyjs(),
        "DATA": embedded({**data, "watched": watched}),
        "SCRIPT": "\n".join(path.read_text() for path in scripts),
    }
    # split and joined, so that nothing that is filled in is searched for slots again
    text = (PARTS / "page.html").read_text()
    pieces = text.split("@@")
    return "".join(slots[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def render(store: ResultsStore) -> str:
    """Return the whole page of one run."""
    return page(content([store]))


def embedded(data: Any) -> str:
    """Return ``data`` as JSON that can stand inside a script element, whatever its texts say."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _section(family: str) -> Any:
    """Return the module of a family's section: ``gather(stores)`` returns what its script draws."""
    return importlib.import_module(f"dashboards.sections.{family}")


def _default_output(stores: Sequence[ResultsStore]) -> str:
    if len(stores) == 1 and stores[0].folder.is_local:
        return f"{stores[0].folder.root}/report.html"
    return f"report-{stores[0].run_id}.html" if len(stores) == 1 else "report.html"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); name another file with --output.") from error


if __name__ == "__main__":
    sys.exit(main())
