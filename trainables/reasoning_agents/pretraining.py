"""Phase 1: the decomposition agent, the refinement agent, and the index for retrieval.

HRM learns to say what each word of a problem is. TRM learns to improve on a candidate: on corrupted solutions, on what
HRM says of the same problem, and on right ones; its score says whether a candidate is right, which the checker decides.
"""

from __future__ import annotations

import logging
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch.nn import functional

from trainables.common.intervals import half_width
from trainables.common.monitor import ComponentMonitor
from trainables.common.schedules import warm_up
from trainables.reasoning_agents import problems as made
from trainables.reasoning_agents.corpus import Corpus, build_corpus
from trainables.reasoning_agents.phase import Work, alone, load, save
from trainables.reasoning_agents.problems import Labelling, Problem, execute
from trainables.reasoning_agents.retrieval import Embedder, Index, precision_at
from trainables.reasoning_agents.tagger import (
    KINDS,
    Tagger,
    Tokens,
    labels_tensor,
    loss_of,
    read,
    refine_once,
)

log = logging.getLogger(__name__)

# held-out problems that are answered after each round; the whole splits are answered at the end
ROUND_PROBLEMS = 60
# chunks at which the precision is drawn in the report
PRECISION_AT = (1, 2, 3, 5, 10)
# a candidate that scores more is taken for right
ACCEPTED = 0.5


def run_phase(work: Work) -> dict[str, Any]:
    """Build the index, train both agents and measure them on every held-out split."""
    metrics = index_corpus(work)
    data = {split: made.generate(split, work.config.held_out_problems, work.seed) for split in made.HELD_OUT}
    train = made.generate("train", work.config.train_problems, work.seed)
    tokens = Tokens(work.backbone)
    hrm = HrmTrainer(work, tokens, train, data["composition"][:ROUND_PROBLEMS])
    work.rounds("hrm", hrm)
    save(work.folder, "hrm.pt", hrm.model.trained())
    metrics |= measure_hrm(work, hrm.model, tokens, data)
    trm = TrmTrainer(work, tokens, train, data["composition"][:ROUND_PROBLEMS], hrm.model)
    work.rounds("trm", trm)
    save(work.folder, "trm.pt", trm.model.trained())
    metrics |= measure_trm(work, hrm.model, trm.model, tokens, data["composition"])
    return work.finish(metrics)


def index_of(work: Work, embedder: Embedder) -> Index:
    """Return the index that phase 1 built; it is built again where it is gone or damaged."""
    try:
        return Index.load(work.index, embedder)
    except (OSError, pa.ArrowException) as error:
        log.warning("The index is built again (%s).", error)
        return _build(work, build_corpus(work.config.chunks, work.config.chunk_size, work.config.overlap), embedder)


def _build(work: Work, corpus: Corpus, embedder: Embedder) -> Index:
    with alone(work.index):
        return Index.build(corpus, work.index, embedder)


def index_corpus(work: Work) -> dict[str, Any]:
    """Build the index and measure the precision of ten retrieved chunks, beside each half alone and a random order."""
    corpus = build_corpus(work.config.chunks, work.config.chunk_size, work.config.overlap)
    index = _build(work, corpus, Embedder(work.backbone, work.device))
    texts, relevant = [query.text for query in corpus.queries], [query.relevant for query in corpus.queries]
    shares = {by: precision_at(index.rank(texts, 10, by), relevant, 10) for by in ("fused", "dense", "lexical")}
    metrics: dict[str, Any] = {
        "retrieval_precision": statistics.fmean(shares["fused"]),
        "retrieval_precision_half": half_width(shares["fused"]),
        "dense_precision": statistics.fmean(shares["dense"]),
        "lexical_precision": statistics.fmean(shares["lexical"]),
        "random_precision": statistics.fmean(len(wanted) / len(corpus.chunks) for wanted in relevant),
        "queries": len(texts),
        "precision_curve": {
            by: [statistics.fmean(precision_at(index.rank(texts, k, by), relevant, k)) for k in PRECISION_AT]
            for by in ("fused", "dense", "lexical")
        },
        "corpus": corpus.fingerprint,
    }
    work.once("retrieval", metrics["retrieval_precision"], {n: v for n, v in metrics.items() if n != "precision_curve"})
    return metrics


class Trainer:
    """Trains a tagger on problems: what both agents have in common.

    Args:
        work: The phase.
        steps: Optimizer steps in all rounds.
        tokens: The encoder's tokenizer.
        train: Problems to train on.
        held_out: Problems to measure on after each round.
        refines: Whether the model is the refinement agent.
        name: Of the agent; it keys the draws.
    """

    def __init__(
        self,
        work: Work,
        steps: int,
        tokens: Tokens,
        train: Sequence[Problem],
        held_out: Sequence[Problem],
        refines: bool,
        name: str,
    ) -> None:
        self.config, self.device, self.tokens = work.config, work.device, tokens
        self.train, self.held_out, self.name, self.seed = train, held_out, name, work.seed
        torch.manual_seed(work.seed)
        self.model = Tagger(work.backbone, work.config, refines).to(work.device)
        self.monitor = ComponentMonitor(self.model.components())
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, lr=work.config.lr, weight_decay=0.01)
        self.steps, self.step = max(steps, work.config.rounds), 0

    def start_from(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over the weights of an agent that was trained before, of those that it has."""
        self.model.load_state_dict(weights, strict=False)
        self.monitor = ComponentMonitor(self.model.components())

    def train_round(self, number: int) -> tuple[float, dict[str, Any]]:
        """Train a round's share of the steps; return the score on held-out problems, and what else was measured.

        Raises:
            DeadComponentError: If a component gets no gradient in the first round.
            FloatingPointError: If the loss is not finite.
        """
        until, losses = self.steps * (number + 1) // self.config.rounds, []
        while self.step < until:
            losses.append(self._step())
        norms = self.monitor.end_epoch()
        score, metrics = self.measure()
        return score, {"loss": statistics.fmean(losses), "lr": self.lr, **metrics, **norms}

    def measure(self) -> tuple[float, dict[str, Any]]:
        """Return the score on the held-out problems, and what else is to be reported."""
        raise NotImplementedError

    def loss(self, problems: Sequence[Problem], rng: random.Random) -> torch.Tensor:
        """Return the loss on problems."""
        batch = self.tokens.batch(problems, self.device)
        return loss_of(self.model(batch)[0], batch)

    @property
    def lr(self) -> float:
        """The learning rate of the current step: a warm-up over a tenth of the steps, then linear to 0."""
        warm = max(1, self.steps // 10)
        left = (self.steps - self.step) / max(1, self.steps - warm)
        return self.config.lr * min(warm_up(self.step, warm), max(0.0, left))

    def _step(self) -> float:
        self.model.train()
        rng = random.Random(f"{self.name} {self.seed} {self.step}")
        torch.manual_seed(rng.getrandbits(32))
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr
        self._optimizer.zero_grad()
        total = 0.0
        for _ in range(self.config.accumulation):
            some = rng.choices(self.train, k=self.config.batch_size)
            loss = self.loss(some, rng) / self.config.accumulation
            loss.backward()
            total += loss.item()
        if not total < float("inf"):
            raise FloatingPointError(f"The loss of {self.name} is {total} in step {self.step}.")
        self.monitor.after_backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.config.clip_norm)
        self._optimizer.step()
        self.step += 1
        return total

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.trained(),
            "optimizer": self._optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_trained(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])
        self.step = state["step"]


class HrmTrainer(Trainer):
    """Trains the decomposition agent."""

    def __init__(self, work: Work, tokens: Tokens, train: Sequence[Problem], held_out: Sequence[Problem]) -> None:
        super().__init__(work, work.config.hrm_steps, tokens, train, held_out, refines=False, name="hrm")

    def measure(self) -> tuple[float, dict[str, Any]]:
        found = [labelling for labelling, _ in read(self.model, self.tokens, self.held_out, self.device)]
        score = step_accuracy(self.held_out, found)
        return score, {"spans": span_accuracy(self.held_out, found), "answers": answer_accuracy(self.held_out, found)}


class TrmTrainer(Trainer):
    """Trains the refinement agent on candidates that are corrupted, HRM's own, or right."""

    def __init__(
        self, work: Work, tokens: Tokens, train: Sequence[Problem], held_out: Sequence[Problem], hrm: Tagger
    ) -> None:
        super().__init__(work, work.config.trm_steps, tokens, train, held_out, refines=True, name="trm")
        self.hrm = hrm
        # what a word is does not depend on the agent: TRM begins where HRM ended
        self.start_from(hrm.trained())

    def loss(self, problems: Sequence[Problem], rng: random.Random) -> torch.Tensor:
        own = [labelling for labelling, _ in read(self.hrm, self.tokens, problems, self.device)]
        candidates = [
            rng.choices((corrupt(problem.gold, rng), labelling, problem.gold), (0.5, 0.3, 0.2))[0]
            for problem, labelling in zip(problems, own, strict=True)
        ]
        batch = self.tokens.batch(problems, self.device)
        logits, scores = self.model(batch, labels_tensor(candidates, batch.words.shape[1]).to(self.device))
        right = torch.tensor([float(is_right(p, c)) for p, c in zip(problems, candidates, strict=True)])
        return loss_of(logits, batch) + functional.binary_cross_entropy_with_logits(scores, right.to(self.device))

    def measure(self) -> tuple[float, dict[str, Any]]:
        first = [labelling for labelling, _ in read(self.hrm, self.tokens, self.held_out, self.device)]
        refined = refine(self.model, self.tokens, self.held_out, first, self.config.max_refinements, self.device)
        after = answer_accuracy(self.held_out, [trace[-1] for trace in refined])
        return after, {"answers": after, "unrefined_answers": answer_accuracy(self.held_out, first)}


def refine(
    model: Tagger, tokens: Tokens, problems: Sequence[Problem], first: Sequence[Labelling], most: int, device: str
) -> list[list[Labelling]]:
    """Return the candidates of each problem, from the first to the one that is taken for right.

    A problem ends where its candidate's score is above `ACCEPTED`, where a candidate comes again, or after ``most``.
    """
    traces = [[labelling] for labelling in first]
    active = list(range(len(problems)))
    for _ in range(most):
        if not active:
            break
        said = refine_once(model, tokens, [problems[i] for i in active], [traces[i][-1] for i in active], device)
        going = []
        for i, (proposed, score) in zip(active, said, strict=True):
            if score <= ACCEPTED and proposed not in traces[i]:
                traces[i].append(proposed)
                going.append(i)
        active = going
    return traces


def corrupt(gold: Labelling, rng: random.Random) -> Labelling:
    """Return a labelling with errors: in each of some steps a wrong operation, swapped parts, or a wrong end."""
    tags, roles, operations = list(gold.tags), list(gold.roles), list(gold.operations)
    spans = gold.spans()
    wrong = rng.sample(spans, rng.randint(1, len(spans))) if spans else []
    for start, end in wrong:
        kind = rng.randrange(3)
        if kind == 0:
            value = (operations[start] + rng.randint(1, 2)) % 3
            operations[start : end + 1] = [value] * (end - start + 1)
        elif kind == 1:
            swap = {made.FIRST: made.SECOND, made.SECOND: made.NAME, made.NAME: made.FIRST}
            roles[start : end + 1] = [swap.get(role, role) for role in roles[start : end + 1]]
        else:
            tags[end], tags[max(start + 1, end - rng.randint(1, 3))] = made.OUTSIDE, made.END
    return Labelling(tuple(tags), tuple(roles), tuple(operations), gold.depths)


def is_right(problem: Problem, candidate: Labelling) -> bool:
    """Whether the checker accepts a candidate: its program gives the right answer."""
    return problem.answer is not None and execute(problem.read, candidate) == problem.answer


def answer_accuracy(problems: Sequence[Problem], found: Sequence[Labelling]) -> float:
    """Return the share of problems whose labelling computes the right answer."""
    return statistics.fmean(is_right(problem, labelling) for problem, labelling in zip(problems, found, strict=True))


def span_accuracy(problems: Sequence[Problem], found: Sequence[Labelling]) -> float:
    """Return the share of gold steps of which both ends are found exactly."""
    return statistics.fmean(hit for p, f in zip(problems, found, strict=True) for hit in span_hits(p, f))


def span_hits(problem: Problem, found: Labelling) -> list[bool]:
    """Return for each gold step whether both ends are found exactly."""
    spans = set(found.spans())
    return [span in spans for span in problem.gold.spans()]


def step_accuracy(problems: Sequence[Problem], found: Sequence[Labelling]) -> float:
    """Return the share of gold steps that are found: both ends exactly, and the depth."""
    return statistics.fmean(hit for p, f in zip(problems, found, strict=True) for hit in step_hits(p, f))


def step_hits(problem: Problem, found: Labelling) -> list[bool]:
    """Return for each gold step whether it is found: both ends exactly, and the depth."""
    spans = set(found.spans())
    return [s in spans and found.depths[s[0]] == problem.gold.depths[s[0]] for s in problem.gold.spans()]


def measure_hrm(work: Work, model: Tagger, tokens: Tokens, data: dict[Any, list[Problem]]) -> dict[str, Any]:
    """Return the decomposition agent's accuracy on every held-out split, beside what a rule about punctuation finds.

    The criterion is asked of the split with the lowest accuracy among deeper problems and unseen wordings.
    """
    metrics: dict[str, Any] = {}
    accuracies: dict[str, tuple[float, float, float]] = {}
    for split, problems in data.items():
        found = [labelling for labelling, _ in read(model, tokens, problems, work.device)]
        rule = [made.punctuation_baseline(problem) for problem in problems]
        metrics[f"hrm_accuracy/{split}"] = span_accuracy(problems, found)
        metrics[f"hrm_depth_accuracy/{split}"] = step_accuracy(problems, found)
        metrics[f"hrm_answers/{split}"] = answer_accuracy(problems, found)
        # problems, not their steps, are independent
        per_problem = [statistics.fmean(span_hits(p, f)) for p, f in zip(problems, found, strict=True)]
        accuracies[split] = (span_accuracy(problems, found), half_width(per_problem), span_accuracy(problems, rule))
        if split == "composition":
            metrics["hrm_depth_accuracy"] = metrics[f"hrm_depth_accuracy/{split}"]
            metrics["hrm_depth_rule_accuracy"] = step_accuracy(problems, rule)
            metrics["example"] = example(problems[0], found[0])
    metrics["hrm_accuracy"], metrics["hrm_accuracy_half"], metrics["hrm_rule_accuracy"] = min(
        accuracies["composition"], accuracies["wording"]
    )
    return metrics


def measure_trm(work: Work, hrm: Tagger, trm: Tagger, tokens: Tokens, problems: Sequence[Problem]) -> dict[str, Any]:
    """Return how many refinements a wrong candidate needs until it is right, and how well the score is calibrated.

    Candidates are corrupted solutions and what HRM says. One that is not right after the most refinements counts as
    having needed that many.
    """
    rng, most = random.Random(f"corrupt {work.seed}"), work.config.max_refinements
    wrong = [corrupt(problem.gold, rng) for problem in problems]
    first = [labelling for labelling, _ in read(hrm, tokens, problems, work.device)]
    traces = refine(trm, tokens, problems, wrong, most, work.device)
    needed = [
        next((n for n, candidate in enumerate(trace) if is_right(problem, candidate)), None)
        for problem, trace in zip(problems, traces, strict=True)
    ]
    # a few corrupted solutions are right all the same
    needed = [count for count in needed if count != 0]
    refined = refine(trm, tokens, problems, first, most, work.device)
    scored = refine_once(trm, tokens, [*problems, *problems], [*wrong, *first], work.device)
    right = [is_right(p, c) for p, c in zip([*problems, *problems], [*wrong, *first], strict=True)]
    chances = [score for _, score in scored]
    rate = statistics.fmean(right)
    iterations = [float(most if count is None else count) for count in needed]
    return {
        "refinements": statistics.fmean(iterations),
        "refinements_half": half_width(iterations),
        "refinements_without": float(most),
        "corrected_answers": statistics.fmean(count is not None for count in needed),
        "refined_answers": answer_accuracy(problems, [trace[-1] for trace in refined]),
        "unrefined_answers": answer_accuracy(problems, first),
        "score_brier": statistics.fmean((c - r) ** 2 for c, r in zip(chances, right, strict=True)),
        "score_brier_constant": rate * (1 - rate),
        "score_calibration_error": calibration_error(chances, right),
        "refinement_example": refinement_example(problems, traces),
    }


def calibration_error(chances: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Return the expected calibration error: the mean distance of chance and frequency over bins of equal width."""
    total = 0.0
    for b in range(bins):
        some = [(c, r) for c, r in zip(chances, right, strict=True) if min(int(c * bins), bins - 1) == b]
        if some:
            total += abs(sum(c for c, _ in some) - sum(r for _, r in some))
    return total / len(chances)


def example(problem: Problem, found: Labelling) -> dict[str, Any]:
    """Return a problem with its gold steps and those that were found, as JSON can hold it."""

    def steps(labelling: Labelling) -> list[dict[str, int]]:
        return [{"from": a, "to": b, "depth": labelling.depths[a]} for a, b in labelling.spans()]

    return {"words": list(problem.read), "gold": steps(problem.gold), "found": steps(found), "answer": problem.answer}


def refinement_example(problems: Sequence[Problem], traces: Sequence[Sequence[Labelling]]) -> dict[str, Any]:
    """Return the problem with the most candidates: what each is and computes."""
    place = max(range(len(traces)), key=lambda i: (is_right(problems[i], traces[i][-1]), len(traces[i])))
    problem = problems[place]
    return {
        "words": list(problem.read),
        "answer": problem.answer,
        "candidates": [
            {
                "answer": execute(problem.read, c),
                "wrong": [
                    i
                    for i in range(len(problem.read))
                    if any(getattr(c, kind)[i] != getattr(problem.gold, kind)[i] for kind in list(KINDS)[:2])
                    or (problem.gold.tags[i] == made.START and c.operations[i] != problem.gold.operations[i])
                ],
            }
            for c in traces[place]
        ],
    }


def load_agents(work: Work, folder: Any) -> tuple[Tagger, Tagger]:
    """Return both trained agents of a phase's folder."""
    found = []
    for name, refines in (("hrm", False), ("trm", True)):
        model = Tagger(work.backbone, work.config, refines).to(work.device)
        model.load_trained(load(folder, f"{name}.pt", work.device))
        found.append(model.eval())
    return found[0], found[1]
