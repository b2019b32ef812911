"""Held-out metrics: how many puzzles are solved, after how many steps, and what the halting rule knew of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainables.puzzles.kinds import Kind
from trainables.puzzles.puzzles import Puzzles
from trainables.recursive_reasoner.halting import EXPAND, HALT, Halting, Seen
from trainables.recursive_reasoner.loss import log_stablemax, row_losses, score
from trainables.recursive_reasoner.model import Reasoner, State

CALIBRATION_BINS = 10


@dataclass
class Solved:
    """What became of N held-out puzzles.

    Attributes:
        steps: [N] steps at which the rule halted, expansions counted as steps.
        answered: [N] how many answers there were then: an expansion is a step without an answer of its own.
        cells: [N] share of asked cells that were right then.
        exact: [N] whether the answer was right then.
        loss: [N] cross-entropy then.
        claimed: [N] probability of being right that the rule gave to the answer then; None of a rule without one.
        exact_at: [max_steps] share of puzzles that are right after each step, had nobody halted.
        answers: [max_steps, N, T] the answers of all steps.
    """

    steps: Tensor
    answered: Tensor
    cells: Tensor
    exact: Tensor
    loss: Tensor
    claimed: Tensor | None
    exact_at: Tensor
    answers: Tensor


@torch.no_grad()
def solve(
    model: Reasoner,
    halting: Halting,
    kind: Kind,
    puzzles: Puzzles,
    device: str,
    thoughts: int = 0,
    batch: int = 1024,
) -> Solved:
    """Solve puzzles of a kind, at least one, with as many steps as the halting rule wants, without exploration."""
    model.eval()
    batches = (puzzles.take(np.arange(i, min(i + batch, len(puzzles)))) for i in range(0, len(puzzles), batch))
    parts = [_solve_batch(model, halting, some, kind, device, thoughts) for some in batches]
    model.train()
    names = ("steps", "answered", "cells", "exact", "loss")
    joined = {name: torch.cat([part[name] for part in parts], dim=-1) for name in names}
    claimed = None if parts[0]["claimed"] is None else torch.cat([part["claimed"] for part in parts])
    answers = torch.cat([part["answers"] for part in parts], dim=1)
    exact_at = torch.cat([part["exact_at"] for part in parts], dim=1).float().mean(1)
    return Solved(**joined, claimed=claimed, exact_at=exact_at, answers=answers)


def metrics(solved: Solved) -> dict[str, float]:
    """Return the row of metrics; names with a slash belong to the history alone."""
    row = {
        "eval_loss": float(solved.loss.mean()),
        "token_accuracy": float(solved.cells.mean()),
        "exact_accuracy": float(solved.exact.float().mean()),
        "mean_steps": float(solved.steps.float().mean()),
    }
    for step, exact in enumerate(solved.exact_at.tolist(), start=1):
        row[f"exact_at_step/{step}"] = exact
        row[f"halted_at_step/{step}"] = float((solved.steps == step).float().mean())
    if solved.claimed is not None:
        row["q_calibration_error"] = calibration_error(solved.claimed, solved.exact)
    return row


def valid_metrics(solved: Solved, kind: Kind, puzzles: Puzzles) -> dict[str, float]:
    """Return the share of answers that are valid, see `Kind.valid`; nothing where only one answer is."""
    places = (solved.answered - 1)[None, :, None].expand(1, -1, solved.answers.shape[2])
    valid = kind.valid(puzzles.inputs, solved.answers.gather(0, places)[0].cpu().numpy())
    return {} if valid is None else {"valid_accuracy": float(valid.mean())}


def metrics_by_level(solved: Solved, levels: np.ndarray) -> dict[str, float]:
    """Return the exact accuracy on the puzzles of each of their levels [N], see `Kind.level`."""
    exact = solved.exact.cpu().numpy()
    return {f"exact_at_level/{level}": float(exact[levels == level].mean()) for level in np.unique(levels)}


def metrics_by_modality(solved: Solved, puzzles: Puzzles, modalities: Sequence[str]) -> dict[str, float]:
    """Return the accuracies on the puzzles of each modality; of a dataset with one, nothing."""
    row: dict[str, float] = {}
    for index, name in enumerate(modalities if len(modalities) > 1 else ()):
        rows = torch.from_numpy(puzzles.ids == index).to(solved.exact.device)
        if rows.any():
            row[f"token_accuracy/{name}"] = float(solved.cells[rows].mean())
            row[f"exact_accuracy/{name}"] = float(solved.exact[rows].float().mean())
    return row


def calibration_error(claimed: Tensor, right: Tensor) -> float:
    """Return the expected calibration error of probabilities [N] over 10 bins of equal width (Naeini et al., 2015)."""
    bins = (claimed * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
    gaps.index_add_(0, bins.cpu(), (claimed - right.float()).double().cpu())
    return float(gaps.abs().sum() / len(claimed))


def flops_per_step(model: Reasoner, device: str, thoughts: int = 0) -> float:
    """Return the floating-point operations of matrix products that one supervision step of one puzzle takes.

    Where puzzles are shown in several modalities, it is the mean over these.
    """
    rows = len(model.modalities)
    inputs = torch.zeros(rows, model.shown, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(model.start(rows), inputs, thoughts, torch.arange(rows, device=device))
    return counter.get_total_flops() / rows


def see(summary: Tensor, logits: Tensor, log_p: Tensor, before: Tensor, steps: Tensor) -> tuple[Seen, Tensor]:
    """Return what a halting rule sees after a step, and the answers [N, T].

    Args:
        summary: See `model.Output`.
        logits: [N, T, V].
        log_p: Their `log_stablemax`.
        before: [N, T] the answers of the step before.
        steps: [N] steps so far.
    """
    answers = logits.argmax(dim=-1)
    with torch.no_grad():
        sure = log_p.gather(-1, answers[..., None]).squeeze(-1).exp().float()
        confidence = torch.stack([sure.mean(1), sure.min(1).values], dim=1)
        changed = (answers != before).float().mean(dim=1)
    return Seen(summary, confidence, changed, steps), answers


def _solve_batch(
    model: Reasoner, halting: Halting, puzzles: Puzzles, kind: Kind, device: str, thoughts: int
) -> dict[str, Any]:
    shown = kind.show(puzzles.inputs, puzzles.ids)
    inputs, given, targets = (torch.from_numpy(a).long().to(device) for a in (shown, puzzles.inputs, puzzles.targets))
    ids = torch.from_numpy(puzzles.ids).long().to(device)
    asked = torch.from_numpy(kind.asked(puzzles.inputs)).to(device)
    rows, most = len(inputs), model.config.max_steps
    state = model.start(rows)
    steps = torch.zeros(rows, dtype=torch.long, device=device)
    halted = torch.zeros(rows, dtype=torch.bool, device=device)
    answers = given
    every: list[Tensor] = []
    exact_at: list[Tensor] = []
    found: dict[str, Tensor] = {}
    while len(every) < most:
        output = model(state, inputs, thoughts, ids)
        steps = steps + ~halted
        state = output.state
        log_p = log_stablemax(output.logits)
        seen, answers = see(output.summary, output.logits, log_p, answers, steps)
        values = halting.values(seen)
        cells, exact = score(answers, targets, asked)
        claimed = halting.solved(values)
        now = {"cells": cells, "exact": exact, "loss": row_losses(log_p, targets)}
        now["answered"] = torch.full_like(steps, len(every) + 1)
        now |= {"claimed": claimed} if claimed is not None else {}
        found = {n: torch.where(halted, found.get(n, value), value) for n, value in now.items()}
        every.append(answers)
        exact_at.append(exact)
        action = halting.decide(values)
        # rows that have halted go on to the last step for `exact_at`, but what they do is no longer counted
        halted = halted | (action == HALT) | (steps >= most)
        expand = (action == EXPAND) & ~halted & (steps + 1 < most)
        if expand.any():
            deeper = model.expand(State(*(z[expand] for z in state)), inputs[expand], ids[expand])
            state = State(*(z.index_put((expand,), new.to(z.dtype)) for z, new in zip(state, deeper, strict=True)))
            steps = steps + expand
    return {
        **found,
        "claimed": found.get("claimed"),
        "steps": steps,
        "answers": torch.stack(every),
        "exact_at": torch.stack(exact_at),
    }
