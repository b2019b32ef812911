"""Search LoRA settings on a fixed, stratified panel of ARC or text tasks with Optuna and one ASHA over configurations.

python sweeps/atomic_lora_search.py --preset demo --num-samples 12
python sweeps/atomic_lora_search.py --num-samples 60 --sweep rank=4,8,16 --sweep 'lr_multiple=loguniform(0.03, 0.3)'
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.atomic_lora import TEXT_SPACE
from search_spaces.atomic_lora_search import SPACE, stratified_panel
from sweeps.atomic_lora import prepare
from sweeps.core import cli
from sweeps.core.arc_options import has_texts
from sweeps.core.pooled import run_pool
from sweeps.core.work import searched


def main(argv: Sequence[str] | None = None) -> int:
    space = TEXT_SPACE if has_texts(argv) else SPACE
    sweep, pool, tasks = prepare("atomic_lora_search", space, __doc__ or "", argv, stratified_panel)
    return run_pool(sweep, pool, searched(sweep, list(tasks)))


if __name__ == "__main__":
    cli.run_main(main)
