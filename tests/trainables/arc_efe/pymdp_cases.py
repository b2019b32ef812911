"""Small discrete cases and what pymdp makes of them; written to ``pymdp_cases.json``, so that tests run without pymdp.

    pip install inferactively-pymdp==1.0.4    # brings jax: into an environment of its own
    python tests/trainables/arc_efe/pymdp_cases.py

A case has beliefs over states before the step, transitions under the action, a likelihood and log preferences. The
``cue`` cases are partly observed: which of two arms holds the reward is hidden, and only the cue's place shows it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("pymdp_cases.json")
# states: (at the cue, at the left arm, at the right arm) x (reward left, reward right)
PLACES, SIDES = 3, 2
# outcomes: cue says left, cue says right, reward, no reward
CUE_LEFT, CUE_RIGHT, REWARD, NOTHING = range(4)


def cases() -> dict[str, dict[str, list]]:
    """Return the cases by name: ``belief`` [S], ``transition`` [S, S], ``likelihood`` [O, S], ``preference`` [O]."""
    rng = np.random.default_rng(0)
    found = {}
    for name, likelihood in (
        ("observed", np.eye(4)),
        ("noisy", _columns(rng, 5, 4)),
        ("blind", np.full((3, 4), 1 / 3)),
    ):
        found[name] = (rng.dirichlet(np.ones(4)), np.eye(4), likelihood, rng.normal(size=len(likelihood)))
    for place, name in enumerate(("cue", "cue left arm", "cue right arm")):
        transition = np.zeros((PLACES * SIDES, PLACES * SIDES))
        for state in range(PLACES * SIDES):
            transition[place * SIDES + state % SIDES, state] = 1
        found[name] = (np.full(6, 1 / 6), transition, _cue(), np.array([0.0, 0.0, 2.0, -2.0]))
    names = ("belief", "transition", "likelihood", "preference")
    return {case: dict(zip(names, (part.tolist() for part in parts), strict=True)) for case, parts in found.items()}


def _columns(rng: np.random.Generator, outcomes: int, states: int) -> np.ndarray:
    return rng.dirichlet(np.ones(outcomes), size=states).T


def _cue() -> np.ndarray:
    likelihood = np.zeros((4, PLACES * SIDES))
    for side in range(SIDES):
        likelihood[[CUE_LEFT, CUE_RIGHT], side] = (0.9, 0.1) if side == 0 else (0.1, 0.9)
        for place in (1, 2):
            wins = place - 1 == side
            likelihood[[REWARD, NOTHING], place * SIDES + side] = (0.95, 0.05) if wins else (0.05, 0.95)
    return likelihood


def by_pymdp(case: dict[str, list]) -> float:
    """Return the negative expected free energy of the one step, by pymdp."""
    import jax.numpy as jnp
    from pymdp.control import compute_neg_efe_policy

    belief, transition, likelihood, preference = (
        jnp.array(case[n]) for n in ("belief", "transition", "likelihood", "preference")
    )
    value = compute_neg_efe_policy(
        [belief], [likelihood], [transition[:, :, None]], [preference], None, None, [[0]], [[0]], jnp.zeros((1, 1), int)
    )
    return float(value)


def main() -> None:
    import jax
    import pymdp

    jax.config.update("jax_enable_x64", True)
    found = {name: {**case, "neg_efe": by_pymdp(case)} for name, case in cases().items()}
    content = {"pymdp": getattr(pymdp, "__version__", "1.0.4"), "jax": jax.__version__, "cases": found}
    FILE.write_text(json.dumps(content, indent=1) + "\n")
    print({name: round(case["neg_efe"], 6) for name, case in found.items()})


if __name__ == "__main__":
    main()
