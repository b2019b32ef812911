"""How accuracy grows with the time that a trained reasoner thinks: no weight changes.

A trajectory is a puzzle's supervision steps one after the other. Ways to spend more of them:

    steps               one trajectory, longer than in training
    halting             the same, but each puzzle ends where its halting rule wants it
    best_score          several trajectories with Gaussian noise on both states before each step, and of them the answer
                        with the best halting score: PTRM ("Probabilistic Tiny Recursive Model", Sghaier et al., 2026)
    first_to_halt       the same trajectories side by side, and the answer of the one that halts first
    symmetry_votes      one trajectory for each of several symmetric views, and the answer of most of them

The halting score is the probability that the rule gives to an answer of being right; a rule without one (``fixed``) is
replaced by the mean probability of the answer's tokens. The first trajectory has no noise and the first view is the
puzzle itself, so that one of them is plain ``steps``. An expansion, which ``dqn`` may want, is not done.

Letters in shape comments: N puzzles, T cells, S steps, K trajectories or views.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from trainables.common.errors import InputError
from trainables.puzzles.kinds import Kind, turn, turn_back
from trainables.puzzles.puzzles import Puzzles
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import Dataset
from trainables.recursive_reasoner.evaluation import flops_per_step, see
from trainables.recursive_reasoner.halting import HALT, HALTING, Halting
from trainables.recursive_reasoner.loss import log_stablemax
from trainables.recursive_reasoner.model import Reasoner, State
from trainables.recursive_reasoner.trainer import schedules_of

# puzzles that are solved at once
BATCH = 256


@dataclass(frozen=True)
class Trained:
    """A trained reasoner, as `Trainer.exported` wrote it.

    Attributes:
        model: With the evaluated weights.
        halting: Its rule.
        config: What it was trained with.
        thoughts: Continuous thoughts that it has at the end of its training.
        training: What its training took: optimizer ``steps``, and ``cpu_minutes`` of all threads; None where a file of
            an older version does not say.
    """

    model: Reasoner
    halting: Halting
    config: ReasonerConfig
    thoughts: int
    training: Mapping[str, float | None]

    @staticmethod
    def read(data: bytes, dataset: Dataset, device: str) -> Trained:
        """Return the reasoner of a file ``reasoner.pt``, to be used in float32; raise InputError, see `config_of`."""
        config, file, kind = config_of(data), _loaded(data), dataset.kind
        model = Reasoner(config, dataset.vocabulary, dataset.cells, dataset.rules, modalities=kind.modalities)
        model.load_state_dict(file["model"])
        halting = HALTING[config.halting](config)
        # what it replayed was not written
        halting.load_state_dict({**halting.state_dict(), **file["halting"]})
        schedule = schedules_of(config).get("thoughts")
        thoughts = int(schedule.value(1, 1)) if schedule else 0
        seconds = file.get("cpu_seconds")
        training = {"steps": file.get("step"), "cpu_minutes": None if seconds is None else seconds / 60}
        return Trained(model.to(device).eval(), halting.to(device).eval(), config, thoughts, training)


@dataclass(frozen=True)
class Traced:
    """The S steps of K trajectories of N puzzles.

    Attributes:
        answers: uint8 [K, S, N, T] after each step.
        scores: float [K, S, N] the halting scores of these.
        halts: bool [K, S, N] whether the rule would end the puzzle there.
        seconds: Wall time of a step of a puzzle, in s.
    """

    answers: np.ndarray
    scores: np.ndarray
    halts: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Chosen:
    """An answer for each puzzle: [N, T], and the steps [N] that it took over all trajectories."""

    answers: np.ndarray
    steps: np.ndarray


def config_of(data: bytes) -> ReasonerConfig:
    """Return what the reasoner of a file ``reasoner.pt`` was trained with.

    Raises:
        InputError: If the file is damaged or another version wrote it.
    """
    config = _loaded(data).get("config", {})
    unknown = sorted(config.keys() - {field.name for field in fields(ReasonerConfig)})
    if unknown or not config:
        known = f"settings that this version does not know: {', '.join(unknown)}" if unknown else "no settings"
        raise InputError(f"it holds {known}; measure it with the version that trained it.")
    return ReasonerConfig(**config)


def _loaded(data: bytes) -> dict[str, Any]:
    try:
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except (RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError("it is damaged; train it again.") from error


@torch.no_grad()
def trace(trained: Trained, kind: Kind, puzzles: Puzzles, device: str, steps: int, noise: float, seed: int) -> Traced:
    """Take ``steps`` steps of one trajectory (K = 1) of puzzles, with Gaussian ``noise`` on both states before each.

    Args:
        trained: The reasoner.
        kind: Of the puzzles.
        puzzles: At least one.
        device: Torch device.
        steps: At least 1; may be more than in training.
        noise: Standard deviation of what is added to the states, whose root mean square is 1.
        seed: Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    started = time.perf_counter()
    for first in range(0, len(puzzles), BATCH):
        some = puzzles.take(np.arange(first, min(first + BATCH, len(puzzles))))
        found = list(_steps(trained, kind, some, device, steps, noise, generator))
        parts.append(tuple(np.stack(arrays) for arrays in zip(*found, strict=True)))  # type: ignore[arg-type]
    seconds = (time.perf_counter() - started) / (steps * len(puzzles))
    answers, scores, halts = (np.concatenate(arrays, axis=1)[None] for arrays in zip(*parts, strict=True))
    return Traced(answers, scores, halts, seconds)


def noisy(
    trained: Trained, kind: Kind, puzzles: Puzzles, device: str, steps: int, count: int, noise: float, seed: int
) -> Traced:
    """Return ``count`` trajectories of puzzles, all but the first with noise of their own."""
    return _together(
        trace(trained, kind, puzzles, device, steps, noise if k else 0.0, 1000 * seed + k) for k in range(count)
    )


def symmetric(trained: Trained, kind: Kind, puzzles: Puzzles, device: str, steps: int, count: int, seed: int) -> Traced:
    """Return a trajectory of each of ``count`` views of puzzles, with the answers turned back; the first is no other.

    Raises:
        InputError: If puzzles of the kind have no symmetries.
    """
    parts = [trace(trained, kind, puzzles, device, steps, 0.0, seed)]
    for view in range(1, count):
        symmetry = kind.symmetries(seed, view * len(puzzles) + np.arange(len(puzzles)))
        if symmetry is None:
            raise InputError(f"{kind.name} has no symmetries to vote over; give --symmetries 0.")
        turned = Puzzles(
            turn(puzzles.inputs, *symmetry), turn(puzzles.targets, *symmetry), puzzles.difficulty, puzzles.classes,
            puzzles.ids,
        )  # fmt: skip
        traced = trace(trained, kind, turned, device, steps, 0.0, seed)
        answers = np.stack([turn_back(answers, *symmetry) for answers in traced.answers[0]])
        parts.append(Traced(answers[None], traced.scores, traced.halts, traced.seconds))
    return _together(parts)


# ------------------------------------------------------------------------------------------- which answer is taken


def after(traced: Traced, steps: int) -> Chosen:
    """Return the answers of the first trajectory after so many steps."""
    answers = traced.answers[0, steps - 1]
    return Chosen(answers, np.full(len(answers), steps))


def halted(traced: Traced, steps: int) -> Chosen:
    """Return the answers at which the rule ends the first trajectory, within ``steps`` at most."""
    ends = _ends(traced, steps)[0]
    return Chosen(traced.answers[0, ends, np.arange(len(ends))], ends + 1)


def best_score(traced: Traced, steps: int) -> Chosen:
    """Return of all trajectories' answers after so many steps that with the best score."""
    answers, scores = traced.answers[:, steps - 1], traced.scores[:, steps - 1]
    places = np.arange(answers.shape[1])
    return Chosen(answers[scores.argmax(0), places], np.full(len(places), steps * len(answers)))


def first_to_halt(traced: Traced, steps: int) -> Chosen:
    """Return the answers of the trajectories that the rule ends first; among several, that with the best score.

    Where it ends none within ``steps``, it is the best score after these.
    """
    ends = _ends(traced, steps)
    first, places = ends.min(0), np.arange(ends.shape[1])
    scores = np.where(ends == first, traced.scores[:, first, places], -np.inf)
    chosen = scores.argmax(0)
    return Chosen(traced.answers[chosen, first, places], (first + 1) * len(ends))


def votes(traced: Traced, steps: int) -> Chosen:
    """Return the answers that most trajectories agree on after so many steps; among several, that of the best score."""
    answers, scores = traced.answers[:, steps - 1], traced.scores[:, steps - 1]
    # [K, K, N]: whether two trajectories have the same answer
    agree = (answers[:, None] == answers[None]).all(-1)
    counts = agree.sum(0)
    chosen = np.where(counts == counts.max(0), scores, -np.inf).argmax(0)
    places = np.arange(answers.shape[1])
    return Chosen(answers[chosen, places], np.full(len(places), steps * len(answers)))


# ------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        steps: The step counts of a trajectory, increasing.
        trajectories: The numbers of noisy trajectories, each at least 2, increasing.
        noises: Their noise, each above 0.
        symmetries: The numbers of symmetric views, each at least 2, increasing.
        seed: Of noise and symmetries.
    """

    steps: Sequence[int]
    trajectories: Sequence[int]
    noises: Sequence[float]
    symmetries: Sequence[int]
    seed: int = 0


def measure(trained: Trained, kind: Kind, puzzles: Puzzles, device: str, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each way to think, number of trajectories, noise and number of steps.

    Each has ``method``, ``most_steps`` of a trajectory, ``trajectories``, ``noise``, ``puzzles``, ``exact_accuracy``,
    ``token_accuracy``, ``valid_accuracy`` (None but for mazes), and of a puzzle the means of ``steps`` (over all
    trajectories), ``flops_per_puzzle`` and ``seconds_per_puzzle`` (the measured time of a step, times the steps).
    """
    steps, flops = plan.steps[-1], flops_per_step(trained.model, device, trained.thoughts)
    asked = kind.asked(puzzles.inputs)
    rows: list[dict[str, Any]] = []

    def note(method: str, most: int, traced: Traced, chosen: Chosen, noise: float = 0.0) -> None:
        right, taken = chosen.answers == puzzles.targets, float(chosen.steps.mean())
        valid = kind.valid(puzzles.inputs, chosen.answers)
        rows.append(
            {
                "method": method,
                "most_steps": most,
                "trajectories": len(traced.answers),
                "noise": noise,
                "puzzles": len(puzzles),
                "exact_accuracy": float(right.all(1).mean()),
                "token_accuracy": float(((right & asked).sum(1) / np.maximum(asked.sum(1), 1)).mean()),
                "valid_accuracy": None if valid is None else float(valid.mean()),
                "steps": taken,
                "flops_per_puzzle": taken * flops,
                "seconds_per_puzzle": taken * traced.seconds,
            }
        )

    plain = trace(trained, kind, puzzles, device, steps, 0.0, plan.seed)
    for most in plan.steps:
        note("steps", most, plain, after(plain, most))
        if trained.config.halting != "fixed":
            note("halting", most, plain, halted(plain, most))
    for noise in plan.noises if plan.trajectories else ():
        every = noisy(trained, kind, puzzles, device, steps, plan.trajectories[-1], noise, plan.seed)
        for count in plan.trajectories:
            some = _first(every, count)
            for most in plan.steps:
                note("best_score", most, some, best_score(some, most), noise)
                if trained.config.halting != "fixed":
                    note("first_to_halt", most, some, first_to_halt(some, most), noise)
    if plan.symmetries:
        every = symmetric(trained, kind, puzzles, device, steps, plan.symmetries[-1], plan.seed)
        for count in plan.symmetries:
            some = _first(every, count)
            for most in plan.steps:
                note("symmetry_votes", most, some, votes(some, most))
    return rows


def _steps(
    trained: Trained,
    kind: Kind,
    puzzles: Puzzles,
    device: str,
    steps: int,
    noise: float,
    generator: torch.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield answers [N, T], scores [N] and halts [N] after each step."""
    inputs = torch.from_numpy(kind.show(puzzles.inputs, puzzles.ids)).long().to(device)
    ids = torch.from_numpy(puzzles.ids).long().to(device)
    answers = torch.from_numpy(puzzles.inputs).long().to(device)
    state = trained.model.start(len(inputs))
    for step in range(1, steps + 1):
        if noise:
            state = State(*(z + noise * torch.randn(z.shape, generator=generator).to(z) for z in state))
        output = trained.model(state, inputs, trained.thoughts, ids)
        state, taken = output.state, torch.full((len(inputs),), step, device=device)
        seen, answers = see(output.summary, output.logits, log_stablemax(output.logits), answers, taken)
        values = trained.halting.values(seen)
        claimed = trained.halting.solved(values)
        score = seen.confidence[:, 0] if claimed is None else claimed
        halts = trained.halting.decide(values) == HALT
        yield answers.to(torch.uint8).cpu().numpy(), score.cpu().numpy(), halts.cpu().numpy()


def _together(parts: Sequence[Traced] | Iterator[Traced]) -> Traced:
    every = list(parts)
    answers, scores, halts = (np.concatenate([getattr(t, n) for t in every]) for n in ("answers", "scores", "halts"))
    return Traced(answers, scores, halts, sum(t.seconds for t in every) / len(every))


def _first(traced: Traced, count: int) -> Traced:
    return Traced(traced.answers[:count], traced.scores[:count], traced.halts[:count], traced.seconds)


def _ends(traced: Traced, steps: int) -> np.ndarray:
    """Return the index of the step [K, N] at which each trajectory ends, the last of ``steps`` at the latest."""
    halts = traced.halts[:, :steps].copy()
    halts[:, -1] = True
    return halts.argmax(1)
