"""What the runner decides before anything is trained."""

from __future__ import annotations

import argparse

import pytest

from search_spaces.recursive_reasoner import SPACE
from sweeps.core.sweep import Inputs, Sweep


@pytest.mark.parametrize(
    ("sweeps", "samples", "judged"),
    [
        ([], 1, False),
        ([], 2, True),
        (["halting=fixed,bce"], 1, False),
        (["halting=grid(fixed, bce)"], 1, True),
        (["halting=ablate(fixed)"], 2, False),
        (["halting=ablate(fixed)", "lr=loguniform(1e-4, 1e-3)"], 2, False),
    ],
)
def test_asha_judges_several_configurations_but_no_ablation(sweeps: list[str], samples: int, judged: bool) -> None:
    config, domains = SPACE.resolve("smoke", sweeps=sweeps, num_samples=samples)
    sweep = Sweep("recursive_reasoner", SPACE, argparse.Namespace(), config, domains, Inputs("f0"))
    drawn = SPACE.sample(config, domains, samples, seed=0)
    jobs = [sweep.job("t", values, seed, sample) for sample, (values, seed) in enumerate(drawn)]
    assert sweep.uses_asha(jobs) == judged
