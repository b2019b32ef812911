"""The capsule front end: every encoder takes part, the capsules carry the puzzle, and they can be read back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.common.errors import InputError
from trainables.puzzles.kinds import Kind
from trainables.puzzles.views import MODALITIES
from trainables.recursive_reasoner.capsules import CapsuleFrontEnd
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.loss import log_stablemax, row_losses
from trainables.recursive_reasoner.model import Reasoner

TINY = ReasonerConfig(width=16, heads=2, layers=1, prefix=1, h_cycles=2, l_cycles=1, max_steps=3)
MIXED = Kind("mixed", 4)
torch.set_num_threads(1)


def _puzzles(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is shown [N, L], targets [N, T] and ids [N]: puzzle i is shown in modality i % 3."""
    puzzles = MIXED.generate(count, np.random.default_rng(0))
    ids = np.arange(count) % 3
    arrays = (MIXED.show(puzzles.inputs, ids), puzzles.targets, ids)
    return tuple(torch.from_numpy(array).long() for array in arrays)  # type: ignore[return-value]


def _model(**changes: object) -> Reasoner:
    torch.manual_seed(0)
    return Reasoner(replace(TINY, **changes), 5, 16, puzzle_ids=3, modalities=MODALITIES)  # type: ignore[arg-type]


def test_every_puzzle_becomes_12_capsules_of_4_children_whatever_stands_beside_it() -> None:
    shown, _, ids = _puzzles(12)
    front_end = _model().front_end
    assert front_end is not None
    children = front_end(shown, ids)
    assert children.shape == (12, 12 * 4, 16)
    order = torch.randperm(12)
    torch.testing.assert_close(front_end(shown[order], ids[order]), children[order])
    torch.testing.assert_close(front_end(shown[4:5], ids[4:5]), children[4:5])
    losses = front_end.losses(children, shown, ids)
    assert losses.shape == (12,)
    torch.testing.assert_close(front_end.losses(children[order], shown[order], ids[order]), losses[order])


@pytest.mark.parametrize("modality", range(3))
def test_each_encoder_changes_the_answers_of_its_modality_and_gets_their_gradient(modality: int) -> None:
    model, (shown, targets, ids) = _model(), _puzzles(9)
    before = model(model.start(9), shown, puzzle_ids=ids).logits
    # of the answer alone, without the reconstruction
    row_losses(log_stablemax(before), targets)[ids == modality].sum().backward()
    components = model.components()
    for name in MODALITIES:
        norms = [float(p.grad.abs().sum()) for p in components[f"{name}_encoder"] if p.grad is not None]
        assert (sum(norms) > 0) == (name == MODALITIES[modality]), name
    with torch.no_grad():
        for parameter in components[f"{MODALITIES[modality]}_encoder"]:
            parameter.add_(torch.randn_like(parameter))
        changed = (model(model.start(9), shown, puzzle_ids=ids).logits - before).abs().amax((1, 2)) > 1e-4
    assert torch.equal(changed, ids == modality)


def test_the_capsules_are_all_that_is_known_of_a_puzzle() -> None:
    model, (shown, _, ids) = _model(), _puzzles(9)
    with torch.no_grad():
        answers = model(model.start(9), shown, puzzle_ids=ids).logits
        assert (answers - answers[:3].repeat(3, 1, 1)).abs().max() > 1e-3, "puzzles of a modality have other answers"
        model.front_end.routing.out.weight.zero_()  # type: ignore[union-attr]
        answers = model(model.start(9), shown, puzzle_ids=ids).logits
        torch.testing.assert_close(answers, answers[:3].repeat(3, 1, 1))


@pytest.mark.parametrize("bf16", [False, True])
def test_every_component_gets_a_gradient_and_no_more_is_built_than_is_shown(bf16: bool) -> None:
    model, (shown, targets, ids) = _model(), _puzzles(9)
    model.bf16 = bf16
    output = model(model.start(9), shown, puzzle_ids=ids)
    read_back = model.reconstruction_losses(output.children, shown, ids).mean()
    (row_losses(log_stablemax(output.logits), targets).mean() + read_back).backward()
    components = model.components()
    own = {f"{name}_{part}" for name in MODALITIES for part in ("encoder", "decoder")}
    assert set(components) == own | {"capsules", "reading", "puzzle_embedding", "network", "head"}
    assert sum(map(len, components.values())) == len(list(model.parameters()))
    for name, parameters in components.items():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters), name
    expanded = model.expand(model.start(9), shown, ids)
    assert torch.equal(expanded.z_h, output.state.z_h), "an expansion is as many cycles, without an answer"
    alone = Reasoner(replace(TINY, front_end="capsules"), 5, 16).components()
    assert {name for name in alone if name.endswith("coder")} == {"grid_encoder", "grid_decoder"}


def test_what_was_shown_is_learned_to_be_read_back() -> None:
    shown, _, ids = _puzzles(48)
    torch.manual_seed(0)
    front_end = CapsuleFrontEnd(replace(TINY, width=32), 4, 5, MODALITIES)
    optimizer = torch.optim.Adam(front_end.parameters(), lr=5e-3)
    history = []
    for _ in range(60):
        losses = front_end.losses(front_end(shown, ids), shown, ids)
        history.append([float(losses.detach()[ids == modality].mean()) for modality in range(3)])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    for name, first, last in zip(MODALITIES, history[0], history[-1], strict=True):
        assert last < 0.6 * first, (name, first, last)
    # a puzzle is not read back from another one's capsules
    with torch.no_grad():
        wrong = front_end.losses(front_end(shown, ids), shown.roll(3, dims=0), ids)
    assert float(wrong.mean()) > 1.5 * sum(history[-1]) / 3


def test_plain_tokens_of_a_mixture_are_refused() -> None:
    with pytest.raises(InputError, match="front_end is tokens, but .* shown as text, image, grid; give capsules"):
        _model(front_end="tokens")
    assert Reasoner(TINY, 5, 16).front_end is None, "grids are left as they are"
