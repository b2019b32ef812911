"""Train reasoning agents in five phases: pre-training, instruction tuning, self-play, meta-controller, evaluation.

    python sweeps/reasoning_agents.py --preset demo
    python sweeps/reasoning_agents.py --preset demo --num-samples 3 --sweep 'router=grid(mlp, logistic, knn)'
    python sweeps/reasoning_agents.py --preset demo --phases 3 --sweep 'simulations=grid(50, 100, 200)'
    python sweeps/reasoning_agents.py --num-gpus 1 --backbone microsoft/deberta-v3-small

A trial is a whole pipeline. What varies belongs to a phase: lr, rank and pooling to phase 1, k to phase 2, simulations,
c and game to phase 3, the router to phase 4. Finished phases are kept in ``--phase-dir``; trials whose settings differ
in later phases alone share them. With several samples ASHA compares the held-out score of the stage that trials are in.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.reasoning_agents import SPACE
from search_spaces.space import extremes
from sweeps.core import cli, ordinary
from sweeps.core.ordinary import Prepared
from sweeps.core.sweep import Inputs
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.reasoning_agents import games, needs
from trainables.reasoning_agents.corpus import build_corpus
from trainables.reasoning_agents.phase import parse_phases, require_predecessors
from trainables.reasoning_agents.train import train_loop


def main(argv: Sequence[str] | None = None) -> int:
    return ordinary.main(SPACE, add_options, prepare, argv, __doc__)


def add_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--phases", default="1-5", metavar="1-5", help="phases to run, as in 1-5, 3 or 1,3 (default: 1-5)"
    )
    parser.add_argument(
        "--backbone",
        default="minilm",
        metavar="NAME",
        help="pre-trained encoder: minilm, a folder, or a name of the Hugging Face hub (default: minilm)",
    )
    parser.add_argument(
        "--phase-dir",
        type=cli.folder,
        metavar="DIR",
        help="folder or URI of finished phases, for all runs (default: reasoning_agents-phases in --results-dir)",
    )


def prepare(args: Namespace, config: Any, domains: Mapping[str, Any]) -> Prepared:
    phases = parse_phases(args.phases)
    if args.workers_per_trial > 1:
        raise InputError(
            f"--workers-per-trial {args.workers_per_trial}: a trial of reasoning agents trains in one worker, and its "
            "games are tasks of their own; give 0 or 1."
        )
    needs.require_packages()
    backbone = needs.check_backbone(args.backbone)
    for game in extremes(domains["game"]) if "game" in domains else [config.game]:
        games.load_game(game)
        if game not in games.SMALL and set(phases) & {3, 4, 5}:
            games.solved_positions(game, config.positions, args.seed)
    cache = args.phase_dir or Folder(args.results_dir).sub(f"{SPACE.family.name}-phases").location
    if not domains:
        require_predecessors(phases, Folder(cache), config, args.seed, backbone)
    corpus = build_corpus(config.chunks, config.chunk_size, config.overlap)
    settings = {
        "phases": phases,
        # workers may run in another folder
        "backbone": str(Path(args.backbone).resolve()) if Path(args.backbone).is_dir() else args.backbone,
        "backbone_fingerprint": backbone,
        "cache": cache,
    }
    # problems are made from seeds and settings, which the run is known by as well; the backbone by its fingerprint
    inputs = Inputs(
        corpus.fingerprint,
        {"backbone_fingerprint": backbone},
        ("phase_dir", "backbone"),
        places=needs.places(args.backbone),
    )
    return Prepared(train_loop, settings, inputs)


if __name__ == "__main__":
    cli.run_main(main)
