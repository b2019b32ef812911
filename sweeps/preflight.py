"""Check what a run needs before it costs anything: what is there, what is missing, and how to fix it.

    python -m sweeps.preflight --num-gpus 4 --results-dir s3://BUCKET/results --base hf:NAME --wandb online
    python -m sweeps.preflight --backbone minilm
    ray job submit --working-dir . -- python -m sweeps.preflight --num-gpus 4 --results-dir s3://BUCKET/results

The options are those of the sweeps; the second command checks the cluster as a job sees it. Exit code 0 if nothing is
missing, 1 if something is. What is checked, and what is not, is in `sweeps.core.checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import ray
from rich.console import Console
from rich.table import Table

from search_spaces.atomic_lora import SPACE
from sweeps.backend import cluster
from sweeps.core import checks, cli
from sweeps.core.arc_options import base_option
from sweeps.core.checks import Check
from trainables.atomic_lora import bases
from trainables.common.errors import InputError
from trainables.reasoning_agents import needs


def base(location: str | None) -> Check:
    """Load a base as the atomic LoRA sweep does; None is the Champion that ships."""
    place = bases.absolute(location or str(bases.DEFAULT_BASE))
    config, _ = SPACE.resolve(SPACE.default_preset, None, [], [], 1, bases.defaults(place))
    try:
        found = bases.check_base(place, [config.target_modules])
        return Check(
            "base", f"{place}: {found.parameters / 1e6:.1f} million parameters, fingerprint {found.fingerprint}"
        )
    except InputError as error:
        return Check("base", place, str(error))


def agents(backbone: str) -> list[Check]:
    """Look for what the reasoning agents need: their packages, and an encoder."""
    found = []
    for name, ask in (("packages", needs.require_packages), ("encoder", partial(needs.check_backbone, backbone))):
        try:
            there = ask()
            found.append(Check(name, there if name == "packages" else backbone))
        except InputError as error:
            found.append(Check(name, "not there", str(error)))
    return found


def table(found: Sequence[Check]) -> Table:
    """Return what is there and what is missing as a table for a terminal."""
    shown = Table("", "what", "found", "how to fix it")
    for check in found:
        shown.add_row("[red]missing[/]" if check.missing else "[green]ok[/]", check.name, check.found, check.missing)
    return shown


def options() -> cli.Parser:
    """Return the parser of the command line."""
    parser = cli.Parser(prog="python -m sweeps.preflight", description=__doc__)
    cli.place_options(parser)
    cli.tracker_options(parser)
    base_option(parser)
    parser.add_argument("--teacher", metavar="URL", help="OpenAI-compatible server of a teacher, http://HOST:PORT/v1")
    parser.add_argument(
        "--backbone", metavar="NAME", help="encoder of the reasoning agents, whose packages are looked for"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything that the command line names, print the table and return the exit code."""
    args = options().parse_args(argv)
    found = [checks.results(args.results_dir), checks.wandb(args.wandb, args.wandb_per_trial), base(args.base)]
    found.append(checks.startable(args.address))
    if args.teacher:
        found.append(checks.teacher(args.teacher))
    if args.backbone:
        found += agents(args.backbone)
    try:
        with cluster.connect(args.address, args.num_gpus) as info:
            have = f"{info.nodes} machines, {info.num_cpus} CPUs, {info.num_gpus} GPUs to use"
            found += [Check("Ray", f"{ray.__version__} at {info.address}: {have}"), checks.state_api(info)]
            if not found[0].missing:
                place = bases.absolute(args.base or str(bases.DEFAULT_BASE))
                places = bases.places(place) | (needs.places(args.backbone) if args.backbone else {})
                found += checks.machines(info, args.results_dir, places)
    except InputError as error:
        found.append(Check("Ray", "not connected", str(error)))
    Console().print(table(found))
    return 1 if any(check.missing for check in found) else 0


if __name__ == "__main__":
    cli.run_main(main)
