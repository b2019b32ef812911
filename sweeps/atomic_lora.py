"""Train one LoRA adapter per task on one frozen base: ARC's tasks, or text tasks of your own.

python sweeps/atomic_lora.py --preset demo
python sweeps/atomic_lora.py --num-gpus 1
python sweeps/atomic_lora.py --preset demo-lm
python sweeps/atomic_lora.py --base hf:Qwen/Qwen2.5-0.5B --num-gpus 1
python sweeps/atomic_lora.py --base smollm2 --data jsonl:my_tasks
python sweeps/atomic_lora.py --num-samples 9 --sweep rank=4,8,16 --tasks 007bbfb7,00d62c1b
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

if __name__ == "__main__":
    # the folder of this script holds modules of the project, not top-level ones
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search_spaces.atomic_lora import SPACE, TEXT_SPACE
from search_spaces.space import SearchSpace, extremes
from sweeps.core import cli
from sweeps.core.arc_options import choose_tasks, has_texts, read_taxonomy, task_options
from sweeps.core.pooled import Pool, run_pool
from sweeps.core.sweep import Inputs, Sweep
from sweeps.core.text_options import prepare_texts
from sweeps.core.work import listed
from sweeps.monitoring.pace import Cost
from trainables.arc import ARC, Task, fingerprint, shape_category
from trainables.atomic_lora import bases
from trainables.atomic_lora.config import choose_slots
from trainables.atomic_lora.cost import epoch_patches, epoch_tokens, evaluation_patches, evaluation_tokens
from trainables.texts import is_text


class Sized(Protocol):
    """A task of so many tokens."""

    @property
    def tokens(self) -> int: ...


# chooses tasks from categories, sizes, count and seed
Panel = Callable[[Mapping[str, str], Mapping[str, int], int, int], tuple[str, ...]]
# What a worker on a CPU needs beside its base: interpreter, activations, optimizer state. Workers of text tasks held up
# to 10.8 GB over a whole run in bfloat16, before their losses were computed in chunks (docs/log.md).
WORKER_BYTES, TEXT_WORKER_BYTES = 4 << 30, 8 << 30


def main(argv: Sequence[str] | None = None) -> int:
    space = TEXT_SPACE if has_texts(argv) else SPACE
    sweep, pool, tasks = prepare("atomic_lora", space, __doc__ or "", argv)
    # similar sizes train together, and the longest work does not come last
    ordered = sorted(tasks, key=lambda task_id: (-tasks[task_id].tokens, task_id))
    return run_pool(sweep, pool, listed(sweep, ordered))


def prepare(
    name: str,
    space: SearchSpace,
    description: str,
    argv: Sequence[str] | None,
    panel: Panel | None = None,
) -> tuple[Sweep, Pool, Mapping[str, Sized]]:
    """Parse a command line over tasks and check all of it: settings, data, tasks, base.

    Args:
        name: Of the sweep.
        space: Its search space.
        description: For ``--help``.
        argv: The words after the program's name.
        panel: Chooses a panel from categories, sizes, count and seed, in searches.

    Raises:
        InputError: If anything of it is wrong.
    """
    parser = cli.common_parser(space, description)
    task_options(parser)
    args = parser.parse_args(argv)
    preset = space.presets[args.preset]
    args.data = args.data or preset.data or ARC
    if is_text(args.data):
        sweep, checked, texts = prepare_texts(name, space, args, panel)
        return sweep, pool_of(sweep, checked, list(texts)), texts
    base = bases.absolute(args.base or preset.base or str(bases.DEFAULT_BASE))
    config, domains = space.resolve(
        args.preset, args.config, args.sets, args.sweeps, args.num_samples, bases.defaults(base)
    )
    taxonomy = read_taxonomy(args.taxonomy)

    def category(task: Task) -> str:
        return taxonomy.get(task.id) or shape_category(task)

    held = domains.get("validation_pairs")
    kept_out = max(extremes(held)) if held else config.validation_pairs
    choose = _by_category(panel, category, args.seed) if panel else None
    tasks, left_out = choose_tasks(args.data, args.tasks, (args.preset, preset.tasks), choose, kept_out)
    swept = domains.get("target_modules")
    targets = extremes(swept) if swept else [config.target_modules]
    bases.require_tasks(base, tasks, args.data, targets)
    purpose = {"grids": {"data": args.data, "tasks": list(tasks)}}
    checked = bases.check_base(base, targets, purpose)
    inputs = Inputs(
        fingerprint(tasks),
        {"tasks": list(tasks), "base": base, "base_fingerprint": checked.fingerprint},
        # data and base are known by their fingerprints, wherever they lie
        extendable=("tasks", "slots", "taxonomy", "data", "base"),
        places=bases.places(base),
        fingerprints={task_id: fingerprint({task_id: task}) for task_id, task in tasks.items()},
        left_out=left_out,
    )
    of_epoch, of_evaluation = (
        (epoch_patches, evaluation_patches) if bases.is_canvas(base) else (epoch_tokens, evaluation_tokens)
    )
    costs = {
        task_id: Cost(of_epoch(task, config.examples_per_epoch), end=of_evaluation(task))
        for task_id, task in tasks.items()
    }
    categories = {task_id: category(task) for task_id, task in tasks.items()}
    sweep = Sweep(name, space, args, config, domains, inputs, categories, costs)
    return sweep, pool_of(sweep, checked, list(tasks)), tasks


def pool_of(sweep: Sweep, checked: bases.Checked, tasks: Sequence[str]) -> Pool:
    """Return what trains a sweep's jobs, and say what was found of the base."""
    print(checked)
    for note in checked.notes:
        print(f"warning: {note}", file=sys.stderr)
    args, base = sweep.args, sweep.inputs.identity["base"]
    return Pool(
        "trainables.atomic_lora.train:train_adapters",
        {"base": base, "data": args.data, "tasks": list(tasks), "slots": args.slots},
        limits,
        lambda on_gpu: choose_slots(args.slots, "cuda" if on_gpu else "cpu", bases.is_canvas(base)),
        (TEXT_WORKER_BYTES if is_text(args.data) else WORKER_BYTES) + 4 * checked.parameters,
    )


def _by_category(
    panel: Panel, category: Callable[[Task], str], seed: int
) -> Callable[[Mapping[str, Task], int], tuple[str, ...]]:
    def choose(tasks: Mapping[str, Task], count: int) -> tuple[str, ...]:
        categories = {task_id: category(task) for task_id, task in tasks.items()}
        return panel(categories, {task_id: task.tokens for task_id, task in tasks.items()}, count, seed)

    return choose


def limits(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the largest rank and batch and all layers of any configuration: what the pack must have room for."""
    return {
        **{name: max(values[name] for values in configs) for name in ("rank", "batch_size")},
        "target_modules": tuple(dict.fromkeys(name for values in configs for name in values["target_modules"])),
    }


if __name__ == "__main__":
    cli.run_main(main)
