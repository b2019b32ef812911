"""Phase 5: the whole system on held-out problems, and without each of its parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainables.common.intervals import half_width
from trainables.reasoning_agents.agents import AGENTS, Agents, mixture
from trainables.reasoning_agents.family import CRITERIA, FAMILY
from trainables.reasoning_agents.phase import Work, result_of
from trainables.reasoning_agents.router import features, load_router, right

HRM, TRM, MCTS = range(len(AGENTS))
# few refinements of candidates that stay wrong would say nothing: most of them must become right
MOST = 0.5


def run_phase(work: Work) -> dict[str, Any]:
    """Answer fresh problems with the whole system, and with one part taken away at a time."""
    agents = Agents(work)
    problems = mixture(work, work.config.held_out_problems, 4)
    router, single = load_router(work)
    chosen, _ = router.choose(features(work, agents, problems))
    success, blind = right(agents.solve(problems)), right(agents.solve(problems, retrieval=False))
    rows = np.arange(len(problems))
    plain = np.where(chosen == TRM, HRM, chosen)
    system = success[rows, chosen]
    variants = {
        "without_retrieval": blind[rows, chosen],
        "without_router": success[:, single],
        "without_refinement": success[rows, plain],
        "without_search": success[rows, np.where(chosen == MCTS, TRM, chosen)],
    }
    metrics: dict[str, Any] = {
        "system_accuracy": float(system.mean()),
        "system_accuracy_half": half_width(system.tolist()),
    }
    for name, answered in variants.items():
        metrics[name] = float(answered.mean())
        # the same problems with and without: the interval is that of the difference
        metrics[f"{name}_change_half"] = half_width((answered.astype(float) - system).tolist())
    kinds = np.array(["game" if p.position is not None else "fact" if p.fact else "words" for p in problems])
    metrics |= {f"system_accuracy/{kind}": float(system[kinds == kind].mean()) for kind in sorted(set(kinds))}
    for agent, name in enumerate(AGENTS):
        metrics[f"routed_to_{name}"] = float((chosen == agent).mean())
    metrics |= criteria({name: value for need in work.needs.values() for name, value in _metrics(need).items()})
    work.once("evaluation", metrics["system_accuracy"], metrics)
    return work.finish(metrics)


def criteria(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return of each criterion whether it is met, and how many are."""
    met = {
        f"{name}_met": bool(metrics[name] >= bound if FAMILY[name].better == "max" else metrics[name] <= bound)
        for name, bound in CRITERIA.items()
    }
    met["refinements_met"] &= metrics["corrected_answers"] > MOST
    return {**met, "criteria_met": sum(met.values())}


def _metrics(folder: Any) -> dict[str, Any]:
    result = result_of(folder)
    if result is None:
        raise FileNotFoundError(folder.path("result.json"))
    return dict(result["metrics"])
