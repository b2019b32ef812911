"""Sweeps over text tasks of one's own: which tasks, their own settings, and the base that they are checked with."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.settings import SettingError, config_hash, typed
from search_spaces.space import SearchSpace, extremes
from sweeps.core.arc_options import parse_tasks, read_taxonomy
from sweeps.core.sweep import Inputs, Sweep
from sweeps.monitoring.pace import Cost
from trainables.atomic_lora import bases
from trainables.atomic_lora.cost import DECODED_TOKENS, EXAMPLE_TOKENS
from trainables.common.errors import InputError
from trainables.texts import PREFIX, SETTINGS, TaskFiles, find_tasks

# the base of text tasks where none is named
TEXT_BASE = "smollm2"


@dataclass(frozen=True)
class TextSize:
    """How large a task is.

    Attributes:
        tokens: Of an epoch.
    """

    tokens: int


def prepare_texts(
    name: str,
    space: SearchSpace,
    args: argparse.Namespace,
    panel: Callable[[Mapping[str, str], Mapping[str, int], int, int], tuple[str, ...]] | None,
) -> tuple[Sweep, bases.Checked, dict[str, TextSize]]:
    """Check all of a sweep over text tasks: settings, files, tasks and base.

    Args:
        name: Of the sweep.
        space: Its search space.
        args: The parsed command line.
        panel: Chooses a panel from categories, sizes, count and seed, in searches.

    Raises:
        InputError: If anything of it is wrong.
    """
    base = bases.absolute(args.base or TEXT_BASE)
    if not bases.is_causal_lm(base):
        raise InputError(f"--base {args.base} reads no text; give smollm2 or hf:NAME_OR_PATH for --data {args.data}.")
    config, domains = space.resolve(args.preset, args.config, args.sets, args.sweeps, args.num_samples)
    files = find_tasks(args.data)
    taxonomy = read_taxonomy(args.taxonomy)
    categories = {task_id: taxonomy.get(task_id) or one.category for task_id, one in files.items()}
    sizes = {task_id: one.size for task_id, one in files.items()}
    chosen = parse_tasks(
        args.tasks or space.presets[args.preset].tasks,
        list(files),
        sizes,
        (lambda count: panel(categories, sizes, count, args.seed)) if panel else None,
    )
    own = {task_id: own_settings(space, config, domains, task_id, files[task_id]) for task_id in chosen}
    swept = domains.get("target_modules")
    targets = [*(extremes(swept) if swept else [config.target_modules])]
    targets += [values["target_modules"] for values in own.values() if "target_modules" in values]
    configs = {task_id: {**vars(config), **values} for task_id, values in own.items()}
    purpose = {"texts": {"data": args.data, "configs": configs}}
    checked = bases.check_base(base, dict.fromkeys(targets), purpose)
    costs = {
        task_id: Cost(
            found["epoch_tokens"] + EXAMPLE_TOKENS * found["rows"],
            end=found["test_tokens"] + DECODED_TOKENS * found["answer_tokens"],
        )
        for task_id, found in checked.tasks.items()
    }
    left_out = {
        task_id: {"too_long": found["left_out"], "held_out": found["repeats"]}
        for task_id, found in checked.tasks.items()
    }
    fingerprints = {task_id: found["fingerprint"] for task_id, found in checked.tasks.items()}
    inputs = Inputs(
        config_hash(fingerprints, 0),
        {"tasks": list(chosen), "base": base, "base_fingerprint": checked.fingerprint},
        extendable=("tasks", "slots", "taxonomy", "data", "base"),
        places=bases.places(base) | {"data": args.data.removeprefix(PREFIX)},
        fingerprints=fingerprints,
        left_out={task_id: {why: n for why, n in counts.items() if n} for task_id, counts in left_out.items()},
    )
    sweep = Sweep(name, space, args, config, domains, inputs, categories, costs, {k: v for k, v in own.items() if v})
    return sweep, checked, {task_id: TextSize(found["epoch_tokens"]) for task_id, found in checked.tasks.items()}


def own_settings(
    space: SearchSpace, config: Any, domains: Mapping[str, Any], task_id: str, files: TaskFiles
) -> dict[str, Any]:
    """Return the settings that ``tasks.yaml`` gives a task, checked.

    Raises:
        InputError: If one is unknown, of the wrong type or out of range, is swept, or says when trials are compared.
    """
    source = f"{SETTINGS}, {task_id}"
    values = typed(files.settings, space.config, source)
    for setting in values:
        if setting in domains:
            raise InputError(f"{source} sets {setting}, which this sweep varies; leave one of the two out.")
        if setting == space.rung_setting:
            raise InputError(f"{source} sets {setting}, which all tasks of a sweep share; use --set {setting}=N.")
    try:
        space.check(replace(config, **values))
    except SettingError as error:
        raise InputError(f"{source}: {error}") from None
    return values
