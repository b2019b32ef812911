"""The recursion against a plain reference, what has a gradient, the planners, and the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.layers import Attention, draw
from trainables.recursive_reasoner.loss import log_stablemax, row_losses, score
from trainables.recursive_reasoner.model import Reasoner, State
from trainables.recursive_reasoner.planner import ContinuousThought, LatentPaths, hint_share, most_thoughts

TINY = ReasonerConfig(width=16, heads=2, layers=2, prefix=2, h_cycles=3, l_cycles=2, max_steps=3)
CELLS, TOKENS, ROWS = 9, 5, 4
torch.set_num_threads(1)


def _model(**changes: object) -> Reasoner:
    torch.manual_seed(0)
    return Reasoner(replace(TINY, **changes), TOKENS, CELLS)  # type: ignore[arg-type]


def _inputs() -> Tensor:
    return torch.randint(TOKENS, (ROWS, CELLS), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixer", ["attention", "mlp"])
def test_a_step_is_the_published_recursion(mixer: str) -> None:
    model, inputs = _model(mixer=mixer), _inputs()
    model.prefix.weight.data.normal_()
    state = State(*torch.randn(2, ROWS, 2 + CELLS, 16))
    output = model(state, inputs)
    x = math.sqrt(16) * torch.cat([model.prefix.weight.view(1, 2, 16).expand(ROWS, -1, -1), model.tokens(inputs)], 1)
    z_h, z_l = state
    for _ in range(3):
        for _ in range(2):
            z_l = model.network(z_l, z_h + x)
        z_h = model.network(z_h, z_l)
    torch.testing.assert_close(output.logits, model.head(z_h[:, 2:]))
    torch.testing.assert_close(output.summary, z_h[:, 0])
    torch.testing.assert_close(output.state.z_l, z_l)
    expanded = model.expand(state, inputs)
    torch.testing.assert_close(expanded.z_h, z_h), "an expansion is as many cycles, without an answer"


def test_only_the_last_cycle_has_a_gradient() -> None:
    model, inputs = _model(), _inputs()
    start = State(*(z.clone().requires_grad_() for z in model.start(ROWS)))
    output = model(start, inputs)
    assert not output.state.z_h.requires_grad and not output.state.z_l.requires_grad
    output.logits.sum().backward()
    assert start.z_h.grad is None, "nothing flows back into the state that came in"
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.network.parameters())


def test_the_one_step_gradient_is_another_gradient_of_the_same_answer() -> None:
    found = []
    for gradient in ("cycle", "one_step"):
        model = _model(gradient=gradient)
        loss = row_losses(log_stablemax(model(model.start(ROWS), _inputs()).logits), _inputs()).mean()
        loss.backward()
        found.append((loss.detach(), model.network.blocks[0].mlp.down.weight.grad))
    assert found[0][0] == found[1][0] and not torch.allclose(found[0][1], found[1][1])


@pytest.mark.parametrize("planner", ["none", "latent_paths", "continuous_thought"])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_component_gets_a_gradient(planner: str, bf16: bool) -> None:
    torch.manual_seed(0)
    model = Reasoner(replace(TINY, planner=planner), TOKENS, CELLS, bf16=bf16)
    output = model(model.start(ROWS), _inputs(), thoughts=2)
    assert output.logits.shape == (ROWS, CELLS, TOKENS) and output.logits.dtype == torch.float32
    row_losses(log_stablemax(output.logits), _inputs()).mean().backward()
    components = model.components()
    assert set(components) == {"embedding", "puzzle_embedding", "network", "head"} | (
        set() if planner == "none" else {"planner"}
    )
    assert sum(map(len, components.values())) == len(list(model.parameters()))
    for name, parameters in components.items():
        assert all(p.grad is not None for p in parameters), name
        assert sum(float(p.grad.abs().sum()) for p in parameters) > 0, name


def test_rotary_attention_depends_on_distances_alone() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2, positions=12)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 12, 8)
    products = attention._rotate(q) @ attention._rotate(k).transpose(-1, -2)
    torch.testing.assert_close(products[..., 3, 5], products[..., 8, 10])
    assert not torch.allclose(products[..., 3, 5], products[..., 3, 6])


def test_initial_weights_have_their_standard_deviation() -> None:
    torch.manual_seed(0)
    weights = draw(torch.empty(200_000), 0.3)
    assert float(weights.std()) == pytest.approx(0.3, rel=0.02)


# ------------------------------------------------------------------------------------------------------------- planners


def test_latent_paths_are_mixed_by_their_scores() -> None:
    torch.manual_seed(0)
    planner = LatentPaths(replace(TINY, paths=3))
    z_h, z_l, x = torch.randn(3, ROWS, 5, 16)

    def network(hidden: Tensor, injection: Tensor) -> Tensor:
        return torch.tanh(hidden + 2 * injection)

    mixed, same = planner(network, z_h, z_l, x, 0)
    assert same is x
    ends = torch.stack([network(z_l + direction, z_h + x) for direction in planner.directions])
    weights = planner.score(ends.mean(2)).softmax(0)
    torch.testing.assert_close(mixed, (weights[..., None] * ends).sum(0))
    # one that is scored far above the others is all that is left
    planner.score.weight.data.mul_(1e4)
    best = planner.score(ends.mean(2)).squeeze(-1).argmax(0)
    torch.testing.assert_close(planner(network, z_h, z_l, x, 0)[0], ends[best, torch.arange(ROWS)])


def test_the_last_hidden_state_is_fed_back_as_the_next_input() -> None:
    planner = ContinuousThought(replace(TINY, planner="continuous_thought", thoughts="linear:0:3"))
    assert planner.slots == 4
    z_h, z_l, x = torch.randn(3, ROWS, 4 + CELLS, 16)
    seen: list[Tensor] = []

    def network(hidden: Tensor, injection: Tensor) -> Tensor:
        seen.append(torch.tanh(hidden + injection))
        return seen[-1]

    after, filled = planner(network, z_h, z_l, x, 2)
    assert len(seen) == 2 and after is seen[-1]
    for slot, hidden in ((1, seen[0]), (2, seen[1])):
        assert torch.equal(filled[:, slot], hidden[:, slot - 1])
    untouched = [0, *range(3, 4 + CELLS)]
    assert torch.equal(filled[:, untouched], x[:, untouched])
    nothing = planner(network, z_h, z_l, x, 0)
    assert nothing[0] is z_l and nothing[1] is x


def test_each_stage_replaces_hints_by_thoughts() -> None:
    config = replace(TINY, planner="continuous_thought", thoughts="linear:0:4:50%", hints=0.6)
    assert most_thoughts(config) == 4
    assert [hint_share(config, thoughts) for thoughts in range(5)] == pytest.approx([0.6, 0.45, 0.3, 0.15, 0.0])
    assert hint_share(replace(config, planner="none"), 0) == 0.0


# ----------------------------------------------------------------------------------------------------------------- loss


def test_stablemax_is_a_distribution_with_the_published_shape() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0], [-50.0, 0.0, 2.0]])
    s = torch.tensor([[1.0, 4.0, 0.5], [1 / 51, 1.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(log_stablemax(logits).exp(), s / s.sum(-1, keepdim=True))
    extreme = torch.tensor([[-1e30, 1e30]], requires_grad=True)
    log_stablemax(extreme).sum().backward()
    assert torch.isfinite(extreme.grad).all()


def test_row_losses_are_means_over_cells() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[1, :, 2] = 5.0
    losses = row_losses(log_stablemax(logits), torch.full((2, 3), 2))
    torch.testing.assert_close(losses, torch.tensor([math.log(4), math.log(9 / 6)]))


def test_scores_count_asked_cells_and_whole_answers() -> None:
    targets = torch.tensor([[1, 2, 3, 4]]).repeat(3, 1)
    answers = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 4], [2, 2, 3, 4]])
    asked = torch.tensor([[False, False, True, True]]).repeat(3, 1)
    cells, exact = score(answers, targets, asked)
    assert cells.tolist() == [1.0, 0.5, 1.0]
    assert exact.tolist() == [True, False, False], "a given cell that was changed is an error, too"
