"""Phase 2: instruction tuning. A problem becomes an instruction with retrieved notes before it.

Some problems are decided by a fact that is in the corpus alone: how many pieces a unit holds. The units of held-out
problems are others than those of training, so the size must be read from the notes.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainables.common.intervals import half_width
from trainables.reasoning_agents import problems as made
from trainables.reasoning_agents.corpus import units
from trainables.reasoning_agents.phase import Work, save
from trainables.reasoning_agents.pretraining import (
    ROUND_PROBLEMS,
    HrmTrainer,
    TrmTrainer,
    index_of,
    is_right,
    load_agents,
    refine,
)
from trainables.reasoning_agents.problems import Labelling, Problem, Split, with_context
from trainables.reasoning_agents.retrieval import Embedder, Index
from trainables.reasoning_agents.tagger import Tagger, Tokens, read

INSTRUCTION = "read the notes and answer the question . notes :".split()
QUESTION = ". question :".split()
# words of a chunk that an agent reads
CHUNK_WORDS = 40
# share of problems that a fact decides, and of instructions without notes
FACTS, WITHOUT_NOTES = 0.5, 0.2
# retrieval for more problems takes longer than training on them
MOST_INSTRUCTIONS = 2000


def run_phase(work: Work) -> dict[str, Any]:
    """Train both agents on instructions and measure them with and without retrieval."""
    index = index_of(work, Embedder(work.backbone, work.device))
    known, unseen = units()
    rng = random.Random(f"instructions {work.seed}")
    count = min(work.config.train_problems, MOST_INSTRUCTIONS)
    train = [
        instruction(problem, notes if rng.random() >= WITHOUT_NOTES else ())
        for problem, notes in retrieved(
            made.generate("train", count, work.seed + 1, known, FACTS), index, work.config.k
        )
    ]
    splits: tuple[Split, ...] = ("in_distribution", "composition")
    held_out = {
        split: retrieved(
            made.generate(split, work.config.held_out_problems, work.seed + 1, unseen, FACTS), index, work.config.k
        )
        for split in splits
    }
    tokens = Tokens(work.backbone)
    few = [instruction(problem, notes) for problem, notes in held_out["composition"][:ROUND_PROBLEMS]]
    before = load_agents(work, work.needs[1])
    trainer = TuningTrainer(work, tokens, train, few)
    work.rounds("tuning", trainer)
    hrm, trm = trainer.hrm.model, trainer.trm.model
    save(work.folder, "hrm.pt", hrm.trained())
    save(work.folder, "trm.pt", trm.trained())
    metrics: dict[str, Any] = {}
    for split, pairs in held_out.items():
        with_notes = [instruction(problem, notes) for problem, notes in pairs]
        without = [instruction(problem, ()) for problem, _ in pairs]
        decided = [problem.fact is not None for problem, _ in pairs]
        right = answers(work, (hrm, trm), tokens, with_notes)
        blind = answers(work, (hrm, trm), tokens, without)
        metrics |= {
            f"tuned_answers/{split}": statistics.fmean(right),
            f"tuned_answers_without_retrieval/{split}": statistics.fmean(blind),
            f"fact_answers/{split}": statistics.fmean(r for r, d in zip(right, decided, strict=True) if d),
            f"fact_answers_without_retrieval/{split}": statistics.fmean(
                b for b, d in zip(blind, decided, strict=True) if d
            ),
            f"untuned_answers/{split}": statistics.fmean(answers(work, before, tokens, with_notes)),
            f"fact_retrieved/{split}": statistics.fmean(
                made.FACT in problem.gold.roles for problem, d in zip(with_notes, decided, strict=True) if d
            ),
            f"tuned_answers_half/{split}": half_width(right),
        }
    for name in ("tuned_answers", "tuned_answers_half", "tuned_answers_without_retrieval", "untuned_answers"):
        metrics[name] = metrics[f"{name}/composition"]
    return work.finish(metrics)


class TuningTrainer:
    """Trains both agents on instructions, a round of one after a round of the other, from where phase 1 left them."""

    def __init__(self, work: Work, tokens: Tokens, train: Sequence[Problem], held_out: Sequence[Problem]) -> None:
        hrm, trm = load_agents(work, work.needs[1])
        shorter = replace(work, config=replace(work.config, hrm_steps=work.config.tuning_steps,
                                               trm_steps=work.config.tuning_steps))  # fmt: skip
        self.hrm = HrmTrainer(shorter, tokens, train, held_out)
        self.hrm.start_from(hrm.trained())
        self.trm = TrmTrainer(shorter, tokens, train, held_out, self.hrm.model)
        self.trm.start_from(trm.trained())

    def train_round(self, number: int) -> tuple[float, dict[str, Any]]:
        _, first = self.hrm.train_round(number)
        score, second = self.trm.train_round(number)
        return score, {**{f"{n}_hrm" if n == "loss" else n: v for n, v in first.items() if "/" not in n}, **second}

    def state_dict(self) -> dict[str, Any]:
        return {"hrm": self.hrm.state_dict(), "trm": self.trm.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hrm.load_state_dict(state["hrm"])
        self.trm.load_state_dict(state["trm"])


def retrieved(problems: Sequence[Problem], index: Index, k: int) -> list[tuple[Problem, tuple[str, ...]]]:
    """Return each problem with the ``k`` chunks that are retrieved for its text."""
    found = index.rank([problem.text for problem in problems], k)
    return [(problem, tuple(index.chunks[i] for i in row)) for problem, row in zip(problems, found, strict=True)]


def instruction(problem: Problem, notes: Sequence[str]) -> Problem:
    """Return a problem as an instruction, with notes before it."""
    words = [word for note in notes for word in (*note.lower().split()[:CHUNK_WORDS], ";")]
    return with_context(problem, [*INSTRUCTION, *words, *QUESTION])


def answers(work: Work, agents: tuple[Tagger, Tagger], tokens: Tokens, problems: Sequence[Problem]) -> list[bool]:
    """Return which problems decomposition and refinement answer correctly together."""
    hrm, trm = agents
    first: list[Labelling] = [labelling for labelling, _ in read(hrm, tokens, problems, work.device)]
    traces = refine(trm, tokens, problems, first, work.config.max_refinements, work.device)
    return [is_right(problem, trace[-1]) for problem, trace in zip(problems, traces, strict=True)]
