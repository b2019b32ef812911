"""The recursive reasoner: one small network that updates an answer state and a latent state in turn.

After "Less is More: Recursive Reasoning with Tiny Networks" (Jolicoeur-Martineau, 2025). A supervision step is
``h_cycles`` cycles, each ``l_cycles`` updates ``z_L = f(z_L, z_H + x)`` and one ``z_H = f(z_H, z_L)``; only the last
cycle has a gradient, and the states go on to the next step detached.

Letters in shape comments: N rows, T cells, S positions (thought slots, prefix, cells), D width, V tokens,
L numbers that show a puzzle: its T cells, but in a mixture see `trainables.puzzles.views`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainables.common.errors import InputError
from trainables.puzzles import views
from trainables.recursive_reasoner.capsules import CapsuleFrontEnd
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.layers import Attention, Linear, SwiGLU, draw, normalise
from trainables.recursive_reasoner.planner import PLANNERS, ContinuousThought, Update


class State(NamedTuple):
    """What a row takes from one supervision step to the next: answer state and latent state, both [N, S, D]."""

    z_h: Tensor
    z_l: Tensor


class Output(NamedTuple):
    """What a supervision step gives.

    Attributes:
        state: Detached states.
        logits: [N, T, V] of the answer, with gradient.
        summary: [N, D], the answer state at the sequence's first position, with gradient: what halting reads.
        children: [N, 48, D] of the capsules, with gradient; None without capsules.
    """

    state: State
    logits: Tensor
    summary: Tensor
    children: Tensor | None


class Block(nn.Module):
    """Mix positions, then features; the sum of each with its input is RMS-normalised afterwards."""

    def __init__(self, config: ReasonerConfig, positions: int) -> None:
        super().__init__()
        self.across = config.mixer == "mlp"
        self.mixer: nn.Module = (
            SwiGLU(positions, config.expansion) if self.across else Attention(config.width, config.heads, positions)
        )
        self.mlp = SwiGLU(config.width, config.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, S, D] -> [N, S, D]."""
        mixed = self.mixer(x.transpose(1, 2)).transpose(1, 2) if self.across else self.mixer(x)
        x = normalise(x + mixed)
        return normalise(x + self.mlp(x))


class Network(nn.Module):
    """f(hidden, injection): the sum of both through all blocks."""

    def __init__(self, config: ReasonerConfig, positions: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, positions) for _ in range(config.layers))

    def forward(self, hidden: Tensor, injection: Tensor) -> Tensor:
        """Hidden and injection [N, S, D] -> [N, S, D]."""
        x = hidden + injection
        for block in self.blocks:
            x = block(x)
        return x


class Reasoner(nn.Module):
    """The model. It is called outside of any autocast: it opens its own, see `forward`.

    Args:
        config: Sizes, cycles, mixer, front end and planner.
        vocabulary: Tokens V of a cell.
        cells: Cells T of a puzzle.
        puzzle_ids: Rules that have a prefix of their own; where there is one, ids mean nothing.
        bf16: Whether to compute in bfloat16 autocast.
        modalities: What puzzles are shown as; where there are several, a puzzle's id is the index of its modality.
    """

    start_h: Tensor
    start_l: Tensor

    def __init__(
        self,
        config: ReasonerConfig,
        vocabulary: int,
        cells: int,
        puzzle_ids: int = 1,
        bf16: bool = False,
        modalities: Sequence[str] = ("grid",),
    ) -> None:
        super().__init__()
        self.config, self.cells, self.bf16, self.modalities = config, cells, bf16, modalities
        self.puzzle_ids = puzzle_ids
        width = config.width
        self.tokens: nn.Embedding | None = None
        self.front_end: CapsuleFrontEnd | None = None
        if uses_capsules(config.front_end, modalities):
            self.front_end = CapsuleFrontEnd(config, math.isqrt(cells), vocabulary, modalities)
        else:
            self.tokens = nn.Embedding(vocabulary, width)
            draw(self.tokens.weight, width**-0.5)
        self.scale = width**0.5
        self.prefix = nn.Embedding(puzzle_ids, config.prefix * width) if config.prefix else None
        if self.prefix is not None:
            nn.init.zeros_(self.prefix.weight)
        self.planner = PLANNERS[config.planner](config)
        # L of the comments
        self.shown = views.shown_length(modalities, math.isqrt(cells))
        self.positions = self.planner.slots + config.prefix + cells
        self.network = Network(config, self.positions)
        self.head = Linear(width, vocabulary)
        for name in ("start_h", "start_l"):
            self.register_buffer(name, draw(torch.empty(width), 1.0))

    def embed(self, inputs: Tensor, puzzle_ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the input x [N, S, D] of what is shown [N, L], and the children of its capsules.

        ``puzzle_ids`` [N] are for puzzles that differ in their prefix or modality.
        """
        rows, children = len(inputs), None
        ids = inputs.new_zeros(rows) if puzzle_ids is None else puzzle_ids
        if self.puzzle_ids == 1:
            # one rule leaves nothing to tell apart, so a wrong or blank id must not cost an answer
            ids = torch.zeros_like(ids)
        parts: list[Tensor] = []
        if self.tokens is not None:
            parts = [self.scale * self.tokens(inputs)]
        if self.front_end is not None:
            children = self.front_end(inputs, self._modality(ids))
            parts = [self.front_end.cells(children)]
        if self.prefix is not None:
            parts.insert(0, self.scale * self.prefix(ids).unflatten(-1, (self.config.prefix, -1)))
        if isinstance(self.planner, ContinuousThought):
            parts.insert(0, self.scale * self.planner.slot_inputs(rows))
        return torch.cat(parts, dim=1), children

    def start(self, rows: int) -> State:
        """Return the states of rows that have not begun."""
        return State(self.start_h.expand(rows, self.positions, -1), self.start_l.expand(rows, self.positions, -1))

    def forward(self, state: State, inputs: Tensor, thoughts: int = 0, puzzle_ids: Tensor | None = None) -> Output:
        """Do one supervision step.

        Args:
            state: From `start` or the step before.
            inputs: [N, L] tokens, or what else is shown of a mixture's puzzles.
            thoughts: Continuous thoughts to have, for the planner of that name.
            puzzle_ids: [N], where puzzles differ in their prefix or modality.
        """
        x, children = self.embed(inputs, puzzle_ids)
        x = self._cast(x)
        # two contexts: autocast keeps the weights it has cast, and those of the first are cast without a gradient
        with torch.no_grad(), self._autocast():
            z_h, z_l = map(self._cast, state)
            for _ in range(self.config.h_cycles - 1):
                z_h, z_l = self._cycle(z_h, z_l, x)
        with self._autocast():
            z_l, x = self.planner(self.network, z_h, z_l, x, thoughts)
            z_h, z_l = self._cycle(z_h, z_l, x, last=True)
            logits = self.head(z_h[:, -self.cells :])
        return Output(State(z_h.detach(), z_l.detach()), logits.float(), z_h[:, 0].float(), children)

    def reconstruction_losses(self, children: Tensor, inputs: Tensor, puzzle_ids: Tensor) -> Tensor:
        """Return the reconstruction loss of each row [N] from a step's children, see `CapsuleFrontEnd.losses`."""
        assert self.front_end is not None
        return self.front_end.losses(children, inputs, self._modality(puzzle_ids))

    @torch.no_grad()
    def expand(self, state: State, inputs: Tensor, puzzle_ids: Tensor | None = None) -> State:
        """Return the states after ``h_cycles`` more cycles without an answer: twice the depth before the next step."""
        x = self._cast(self.embed(inputs, puzzle_ids)[0])
        with self._autocast():
            z_h, z_l = map(self._cast, state)
            for _ in range(self.config.h_cycles):
                # another number of rows each time: not for a compiled network
                z_h, z_l = self._cycle(z_h, z_l, x, network=self.network.forward)
        return State(z_h, z_l)

    def components(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by component, for the component monitor."""
        modules = {
            "embedding": self.tokens,
            "puzzle_embedding": self.prefix,
            "network": self.network,
            "head": self.head,
            "planner": self.planner,
        }
        groups = {name: list(module.parameters()) for name, module in modules.items() if module is not None}
        if self.front_end is not None:
            groups |= self.front_end.components()
        return {name: parameters for name, parameters in groups.items() if parameters}

    def _modality(self, puzzle_ids: Tensor) -> Tensor:
        return puzzle_ids if len(self.modalities) > 1 else torch.zeros_like(puzzle_ids)

    def _cycle(
        self, z_h: Tensor, z_l: Tensor, x: Tensor, last: bool = False, network: Update | None = None
    ) -> tuple[Tensor, Tensor]:
        network = network or self.network
        cut = last and self.config.gradient == "one_step"
        with torch.no_grad() if cut else nullcontext():
            for _ in range(self.config.l_cycles - 1):
                z_l = network(z_l, z_h + x)
        z_l = network(z_l, z_h + x)
        return network(z_h, z_l), z_l

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.head.weight.device.type, torch.bfloat16, enabled=self.bf16)

    def _cast(self, x: Tensor) -> Tensor:
        # the states stay in the format of the products, as published: no conversion at every residual sum
        return x.to(torch.bfloat16) if self.bf16 else x


def uses_capsules(front_end: str, modalities: Sequence[str]) -> bool:
    """Return whether a front end encodes puzzles that are shown as these modalities into capsules.

    Raises:
        InputError: If there are several, and plain tokens are asked for.
    """
    if front_end == "tokens" and len(modalities) > 1:
        raise InputError(
            f"front_end is tokens, but the puzzles of this dataset are shown as {', '.join(modalities)}; give capsules."
        )
    return front_end == "capsules" or len(modalities) > 1
