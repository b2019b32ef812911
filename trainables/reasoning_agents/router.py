"""Phase 4: the meta-controller, which gives each problem to one of the agents before any of them has begun.

It is trained on measured outcomes and costs of all agents, and reads only what is known of a problem beforehand. The
utility of an agent is 1 for a right answer, less the cost. Beside the MLP stand scikit-learn's logistic regression and
nearest neighbours. Comparisons: always the agent that was best in training, the oracle, and the hull of always taking
one agent, or one at random with fixed chances (RouterBench's zero router; Hu et al., 2024).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trainables.common.intervals import half_width
from trainables.reasoning_agents.agents import AGENTS, Agents, Outcome, mixture
from trainables.reasoning_agents.phase import Work, load, save
from trainables.reasoning_agents.pretraining import calibration_error
from trainables.reasoning_agents.problems import MARKS, Problem

KINDS = ("mlp", "logistic", "knn")
# the confidence head learns from problems that the choice has not been fitted to
HELD_BACK = 0.3
STEPS = 400
# one order of outcomes may send the two kinds of problems to the right agents by chance
SHUFFLES = 10


def run_phase(work: Work) -> dict[str, Any]:
    """Measure all agents on problems, train the routers, and measure them on other problems."""
    agents = Agents(work)
    data = []
    for offset in (2, 3):
        problems = mixture(work, work.config.routed_problems, offset)
        outcomes = agents.solve(problems)
        data.append((features(work, agents, problems), outcomes))
    (train, train_outcomes), (test, test_outcomes) = data
    utilities = utility(train_outcomes, work.config.cost_weight)
    test_utilities = utility(test_outcomes, work.config.cost_weight)
    save(work.folder, "router.pt", {"features": torch.from_numpy(train), "utilities": torch.from_numpy(utilities)})
    metrics: dict[str, Any] = {}
    for kind in KINDS:
        chosen, confidence = fit(kind, train, utilities, work.seed).choose(test)
        own = judge(chosen, confidence, test_outcomes, test_utilities)
        metrics |= {f"router_{name}/{kind}": value for name, value in own.items()}
    metrics |= {f"router_{name}": metrics[f"router_{name}/{work.config.router}"] for name in own}
    single = np.full(len(test), best_single(utilities))
    metrics |= {
        f"single_{name}": value
        for name, value in judge(single, np.ones(len(test)), test_outcomes, test_utilities).items()
        if name in ("accuracy", "regret", "success", "cost")
    }
    metrics |= {
        "shuffled_regret": shuffled_regret(work, (train, utilities), (test, test_outcomes, test_utilities)),
        "oracle_success": float(right(test_outcomes)[np.arange(len(test)), test_utilities.argmax(1)].mean()),
        "best_single": AGENTS[best_single(utilities)],
        "routing": points(test_outcomes, metrics),
    }
    work.once("router", 1 - metrics["router_regret"], {n: v for n, v in metrics.items() if n != "routing"})
    return work.finish(metrics)


def shuffled_regret(
    work: Work, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, Sequence[dict[str, Outcome]], np.ndarray]
) -> float:
    """Return the mean regret of routers that are trained on outcomes of other problems.

    They know nothing of a problem, so they should be no better than the best single agent.
    """
    (seen, utilities), (tested, outcomes, test_utilities), regrets = train, test, []
    for number in range(SHUFFLES):
        order = np.random.default_rng([work.seed, number]).permutation(len(utilities))
        chosen, confidence = fit(work.config.router, seen, utilities[order], work.seed).choose(tested)
        regrets.append(judge(chosen, confidence, outcomes, test_utilities)["regret"])
    return statistics.fmean(regrets)


class Router(Protocol):
    """Chooses agents."""

    def choose(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each row of features the index of an agent, and how sure the choice is the best, in [0, 1]."""


def fit(kind: str, seen: np.ndarray, utilities: np.ndarray, seed: int) -> Router:
    """Return a router trained on features ``[n, f]`` and the utilities of all agents, ``[n, agents]``."""
    return MlpRouter(seen, utilities, seed) if kind == "mlp" else SklearnRouter(kind, seen, utilities)


class SklearnRouter:
    """Logistic regression, or 15 nearest neighbours, of the best agent; its confidence is the predicted chance."""

    def __init__(self, kind: str, seen: np.ndarray, utilities: np.ndarray) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        best = best_agents(utilities)
        model = LogisticRegression(max_iter=1000) if kind == "logistic" else KNeighborsClassifier(min(15, len(seen)))
        self._only = int(best[0]) if len(set(best)) == 1 else None
        self._model = make_pipeline(StandardScaler(), model)
        if self._only is None:
            self._model.fit(seen, best)

    def choose(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._only is not None:
            return np.full(len(seen), self._only), np.ones(len(seen))
        chances = self._model.predict_proba(seen)
        return self._model.classes_[chances.argmax(1)], chances.max(1)


class MlpRouter:
    """An MLP of 64 and 32 units with a head that classifies which agent is the best, and one of confidence."""

    def __init__(self, seen: np.ndarray, utilities: np.ndarray, seed: int) -> None:
        torch.manual_seed(seed)
        order = np.random.default_rng(seed).permutation(len(seen))
        back = order[: max(1, int(HELD_BACK * len(seen)))]
        fitted = order[len(back) :] if len(back) < len(seen) else order
        self._mean, self._scale = seen[fitted].mean(0), seen[fitted].std(0) + 1e-6
        self._body = nn.Sequential(nn.Linear(seen.shape[1], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self._choice, self._confidence = nn.Linear(32, utilities.shape[1]), nn.Linear(32, 1)
        inputs, best = self._inputs(seen), torch.from_numpy(best_agents(utilities))
        choosing = [*self._body.parameters(), *self._choice.parameters()]
        guess = lambda: self._choice(self._body(inputs[fitted]))  # noqa: E731
        self._descend(choosing, lambda: functional.cross_entropy(guess(), best[fitted]))
        with torch.no_grad():
            hidden = self._body(inputs[back])
            hit = (self._choice(hidden).argmax(1, keepdim=True) == best[back][:, None]).float()
        sure = lambda: functional.binary_cross_entropy_with_logits(self._confidence(hidden), hit)  # noqa: E731
        self._descend(list(self._confidence.parameters()), sure)

    def choose(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            hidden = self._body(self._inputs(seen))
            return self._choice(hidden).argmax(1).numpy(), self._confidence(hidden).sigmoid()[:, 0].numpy()

    def _inputs(self, seen: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((seen - self._mean) / self._scale).float()

    @staticmethod
    def _descend(parameters: list[nn.Parameter], loss_of: Any) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()


def features(work: Work, agents: Agents, problems: Sequence[Problem]) -> np.ndarray:
    """Return what the router reads of problems, ``[n, features]``, from their text alone."""
    if work.config.router_features == "embedding":
        return agents.embedder.embed([problem.text for problem in problems])
    return np.array([surface(problem.words) for problem in problems], dtype=np.float32)


def surface(words: Sequence[str]) -> list[float]:
    """Return 14 numbers about a text."""
    numbers = [int(word) for word in words if word.isdigit()]
    marks = [i for i, word in enumerate(words) if word in MARKS]
    letters = [word for word in words if word.isalpha()]
    ends = [-1, *marks, len(words)]
    gaps = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    pairs = list(zip(words, words[1:], strict=False))
    return [
        len(words),
        len(numbers),
        max(numbers, default=0),
        statistics.fmean(numbers) if numbers else 0.0,
        len(marks),
        max(gaps),
        statistics.fmean(gaps),
        len(set(words)) / len(words),
        len(letters) / len(words),
        statistics.fmean(map(len, words)),
        words.index("?") / len(words) if "?" in words else 1.0,
        # names that stand in more than one place
        len(pairs) - len(set(pairs)),
        sum(word in ("and", "while") for word in words),
        sum(not word.isalnum() for word in words) / len(words),
    ]


def utility(outcomes: Sequence[dict[str, Outcome]], cost_weight: float) -> np.ndarray:
    """Return what each agent is worth on each problem, ``[n, agents]``."""
    return np.array([[float(o[a].right) - cost_weight * o[a].cost for a in AGENTS] for o in outcomes])


def right(outcomes: Sequence[dict[str, Outcome]]) -> np.ndarray:
    """Return which agents were right, ``[n, agents]``."""
    return np.array([[o[a].right for a in AGENTS] for o in outcomes])


def best_agents(utilities: np.ndarray) -> np.ndarray:
    """Return the agent with the highest utility on each problem; agents come in the order of their cost."""
    return utilities.argmax(1)


def best_single(utilities: np.ndarray) -> int:
    """Return the agent with the highest mean utility."""
    return int(utilities.mean(0).argmax())


def judge(
    chosen: np.ndarray, confidence: np.ndarray, outcomes: Sequence[dict[str, Outcome]], utilities: np.ndarray
) -> dict[str, float]:
    """Return accuracy, regret, success, cost, calibration of choices, and how far they are above the hull."""
    rows = np.arange(len(chosen))
    got, most = utilities[rows, chosen], utilities.max(1)
    hit = got >= most - 1e-9
    cost = np.array([[o[a].cost for a in AGENTS] for o in outcomes])
    success = right(outcomes)
    own = float(success[rows, chosen].mean()), float(cost[rows, chosen].mean())
    singles = list(zip(cost.mean(0).tolist(), success.mean(0).tolist(), strict=True))
    return {
        "accuracy": float(hit.mean()),
        "accuracy_half": half_width(hit.tolist()),
        "regret": float((most - got).mean()),
        "regret_half": half_width((most - got).tolist()),
        "success": own[0],
        "cost": own[1],
        "over_hull": own[0] - hull_at(singles, own[1]),
        "calibration_error": calibration_error(confidence.tolist(), hit.tolist()),
    }


def hull_at(points: Sequence[tuple[float, float]], cost: float) -> float:
    """Return the highest success that mixing single agents, given as (cost, success), reaches at a cost.

    Doing nothing costs nothing and never succeeds; beyond the best agent more cost brings nothing.
    """
    every = [(0.0, 0.0), *points]
    affordable = [success for at, success in every if at <= cost]
    mixed = [
        low[1] + (high[1] - low[1]) * (cost - low[0]) / (high[0] - low[0])
        for low in every
        for high in every
        if low[0] <= cost < high[0]
    ]
    return max(affordable + mixed)


def points(outcomes: Sequence[dict[str, Outcome]], metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return cost and success of each agent and each router, as JSON can hold them."""
    singles = [
        {
            "name": agent,
            "cost": statistics.fmean(o[agent].cost for o in outcomes),
            "success": statistics.fmean(o[agent].right for o in outcomes),
        }
        for agent in AGENTS
    ]
    routers = [
        {"name": f"router: {kind}"} | {n: metrics[f"router_{n}/{kind}"] for n in ("cost", "success", "regret")}
        for kind in KINDS
    ]
    return [*singles, *routers]


def load_router(work: Work) -> tuple[Router, int]:
    """Return the router of phase 4, fitted again to what it was trained on, and the best single agent."""
    kept = load(work.needs[4], "router.pt")
    seen, utilities = kept["features"].numpy(), kept["utilities"].numpy()
    return fit(work.config.router, seen, utilities, work.seed), best_single(utilities)
