"""The three agents that a problem can be given to, and what each answer costs.

HRM labels a problem in one pass. TRM refines that labelling. MCTS searches: on a problem in words over the labels that
HRM was least sure of, with TRM's score as the value; on a position of a game over its moves, with the networks of
phase 3. A cost of 1 is one pass of an encoder over the problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainables.reasoning_agents import games
from trainables.reasoning_agents import problems as made
from trainables.reasoning_agents.corpus import units
from trainables.reasoning_agents.phase import Work, load
from trainables.reasoning_agents.pretraining import index_of, is_right, load_agents, refine
from trainables.reasoning_agents.problems import Labelling, Problem
from trainables.reasoning_agents.retrieval import Embedder
from trainables.reasoning_agents.search import Nets, search
from trainables.reasoning_agents.selfplay import PolicyValue
from trainables.reasoning_agents.tagger import Tokens, read, refine_once
from trainables.reasoning_agents.tuning import FACTS, instruction, retrieved

AGENTS = ("hrm", "trm", "mcts")
# decisions of a search over labels, and its simulations
DECISIONS, SIMULATIONS = 6, 8
# share of problems that are positions of the game, and of the others those that are longer than any in training
GAMES, LONG = 0.25, 0.5


@dataclass(frozen=True)
class Outcome:
    """What an agent made of a problem: whether the checker accepts it, and its cost."""

    right: bool
    cost: float


class Agents:
    """The trained agents of phases 2 and 3, and the index of phase 1."""

    def __init__(self, work: Work) -> None:
        self._config, self._device = work.config, work.device
        self.embedder = Embedder(work.backbone, work.device)
        self.index = index_of(work, self.embedder)
        self._tokens = Tokens(work.backbone)
        self._hrm, self._trm = load_agents(work, work.needs[2])
        self._game = games.load_game(work.config.game)
        seen = len(games.observation(self._game.new_initial_state()))
        nets = PolicyValue(seen, self._game.num_distinct_actions())
        nets.load_state_dict(load(work.needs[3], "nets.pt"))
        self._nets = Nets(nets.arrays(), self._game.num_distinct_actions())
        small = sum(p.numel() for p in nets.parameters())
        self._share = small / sum(p.numel() for p in self._hrm.encoder.parameters())

    def solve(self, problems: Sequence[Problem], retrieval: bool = True) -> list[dict[str, Outcome]]:
        """Return what each agent makes of each problem, with or without notes from the corpus."""
        pairs = retrieved(problems, self.index, self._config.k) if retrieval else [(p, ()) for p in problems]
        asked = [instruction(problem, notes) for problem, notes in pairs]
        said = read(self._hrm, self._tokens, asked, self._device)
        first = [labelling for labelling, _ in said]
        most = self._config.max_refinements
        traces = refine(self._trm, self._tokens, asked, first, most, self._device)
        words = [i for i, problem in enumerate(problems) if problem.position is None]
        found = dict(zip(words, self._search_labels([asked[i] for i in words], [said[i] for i in words]), strict=True))
        moves = self._moves(problems)
        outcomes = []
        for i, problem in enumerate(asked):
            if problem.position is None:
                labelling, passes = found[i]
                searched = Outcome(is_right(problem, labelling), passes)
            else:
                cost = self._config.simulations * self._share / len(problem.read)
                searched = Outcome(moves[i] in problem.optimal, cost)
            outcomes.append(
                {
                    "hrm": Outcome(_accepted(problem, first[i]), 1.0),
                    # a pass scores a candidate and proposes the next one
                    "trm": Outcome(_accepted(problem, traces[i][-1]), 1.0 + min(len(traces[i]), most)),
                    "mcts": searched,
                }
            )
        return outcomes

    def _moves(self, problems: Sequence[Problem]) -> dict[int, int]:
        places = [i for i, problem in enumerate(problems) if problem.position is not None]
        if not places:
            return {}
        states = [games.state_at(self._game, problems[i].position or ()) for i in places]
        visits = search(states, self._nets, self._game.num_distinct_actions(), self._config.simulations, self._config.c)
        return {i: int(row.argmax()) for i, row in zip(places, visits, strict=True)}

    def _search_labels(
        self, problems: Sequence[Problem], said: Sequence[tuple[Labelling, dict[str, Any]]]
    ) -> list[tuple[Labelling, float]]:
        """Return for each problem the labelling with the highest score that a search finds, and its passes."""
        if not problems:
            return []
        roots = [LabelState.root(i, labelling, chances) for i, (labelling, chances) in enumerate(said)]
        scores: list[dict[Labelling, float]] = [{} for _ in problems]

        def evaluate(states: Sequence[LabelState]) -> tuple[np.ndarray, np.ndarray]:
            unknown = {(s.place, s.labelling) for s in states if s.labelling not in scores[s.place]}
            asked = sorted(unknown, key=lambda pair: pair[0])
            answers = refine_once(
                self._trm, self._tokens, [problems[i] for i, _ in asked], [c for _, c in asked], self._device
            )
            for (place, labelling), (_, score) in zip(asked, answers, strict=True):
                scores[place][labelling] = score
            priors = np.stack([state.prior for state in states])
            return priors, np.array([2 * scores[state.place][state.labelling] - 1 for state in states])

        search(roots, evaluate, 2, SIMULATIONS, self._config.c)
        best = [max(known, key=lambda labelling: known[labelling]) for known in scores]
        return [(labelling, 1.0 + len(known)) for labelling, known in zip(best, scores, strict=True)]


@dataclass(frozen=True)
class LabelState:
    """A state of the search over labels: some of the least certain labels are decided, one after the other.

    It has the methods of OpenSpiel's states that `search` calls, with one player.

    Attributes:
        place: Of the problem.
        labelling: With the decisions so far.
        open: What is to be decided: kind, word, the likeliest and the second label, and the chance of the likeliest
            among the two.
    """

    place: int
    labelling: Labelling
    open: tuple[tuple[str, int, int, int, float], ...]

    @classmethod
    def root(cls, place: int, labelling: Labelling, chances: dict[str, Any]) -> LabelState:
        """Return the start: HRM's labelling, and its least certain labels."""
        found = []
        for kind in ("tags", "roles", "operations"):
            # no answer depends on depths, which are the least certain
            values = chances[kind]
            order = np.argsort(values, axis=1)[:, ::-1]
            for word in range(len(values)):
                if kind == "operations" and labelling.tags[word] != made.START:
                    continue
                first, second = int(order[word, 0]), int(order[word, 1])
                share = values[word, first] / (values[word, first] + values[word, second])
                found.append((kind, word, first, second, float(share)))
        return cls(place, labelling, tuple(sorted(found, key=lambda choice: choice[-1])[:DECISIONS]))

    @property
    def prior(self) -> np.ndarray:
        return np.array([self.open[0][-1], 1 - self.open[0][-1]] if self.open else [0.0, 0.0])

    def child(self, action: int) -> LabelState:
        kind, word, *labels, _ = self.open[0]
        values = list(getattr(self.labelling, kind))
        values[word] = labels[action]
        return LabelState(self.place, replace(self.labelling, **{kind: tuple(values)}), self.open[1:])

    def is_terminal(self) -> bool:
        return not self.open

    def current_player(self) -> int:
        return 0


def mixture(work: Work, count: int, offset: int) -> list[Problem]:
    """Return problems of all kinds, different ones for each ``offset``: words, long ones, with facts, and positions."""
    config, (_, unseen) = work.config, units()
    playing = int(GAMES * count)
    long = int(LONG * (count - playing))
    words = [
        *made.generate("in_distribution", count - playing - long, work.seed + 100 * offset, unseen, FACTS),
        *made.generate("composition", long, work.seed + 100 * offset, unseen, FACTS),
    ]
    game = games.load_game(config.game)
    positions = [
        made.of_game(config.game, str(games.state_at(game, moves)), moves, optimal)
        for moves, optimal in games.solved_positions(config.game, playing, work.seed + 100 * offset)
    ]
    return [*words, *positions]


def _accepted(problem: Problem, labelling: Labelling) -> bool:
    if problem.position is None:
        return is_right(problem, labelling)
    # what a labelling computes is taken for the number of a move
    return made.execute(problem.read, labelling) in problem.optimal
