"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainables.common.setting_types import ShareBelow1


def require_whole_rounds(epochs: int) -> int:
    if (epochs - 3) % 4:
        raise ValueError(f"is {epochs} but must be 3 and a multiple of 4, such as {3 + 4 * round((epochs - 3) / 4)}")
    return epochs


@dataclass(frozen=True)
class AgentsConfig:
    """The agents and their training. Defaults: the settings of the published system."""

    rank: PositiveInt = 8
    """Rank of LoRA on the encoder's query, key and value projections."""
    alpha: PositiveInt = 16
    """Alpha of LoRA."""
    dropout: ShareBelow1 = 0.1
    """Dropout of LoRA."""
    layers: NonNegativeInt = 0
    """First layers of the encoder that are used; 0 uses all of them."""
    pooling: Literal["token", "cls"] = "token"
    """What the heads read for a word: its own hidden state, or (an ablation) the first token's hidden state added to
    the word's input embedding."""
    lr: PositiveFloat = 3e-5
    """Highest learning rate of encoders and heads, after a warm-up over a tenth of the steps; it falls to 0."""
    batch_size: PositiveInt = 8
    """Problems in a forward pass."""
    accumulation: PositiveInt = 2
    """Forward passes in an optimizer step."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    hrm_steps: PositiveInt = 4000
    """Optimizer steps of the decomposition agent."""
    trm_steps: PositiveInt = 4000
    """Optimizer steps of the refinement agent."""
    tuning_steps: PositiveInt = 2000
    """Optimizer steps of each of the two in instruction tuning (phase 2)."""
    train_problems: PositiveInt = 20000
    """Problems to train on."""
    held_out_problems: Annotated[int, Field(ge=16)] = 500
    """Problems of each held-out split."""
    max_refinements: PositiveInt = 8
    """Most refinements of a candidate."""

    chunks: Annotated[int, Field(ge=60)] = 500
    """Chunks of the standard library's documentation in the index."""
    chunk_size: Annotated[int, Field(ge=64)] = 256
    """Characters of a chunk."""
    overlap: NonNegativeInt = 32
    """Characters that a chunk shares with the next one."""
    k: PositiveInt = 5
    """Retrieved chunks that an agent reads."""

    game: str = "connect_four(rows=4,columns=5,x_in_row=4)"
    """OpenSpiel game of phase 3, as ``pyspiel.load_game`` reads it."""
    simulations: PositiveInt = 200
    """Simulations of a move."""
    c: PositiveFloat = 1.414
    """Exploration constant of PUCT."""
    selfplay_games: Annotated[int, Field(ge=2)] = 500
    """Games of self-play between two measurements."""
    buffer: PositiveInt = 1000
    """Positions that are kept to train on."""
    net_steps: PositiveInt = 500
    """Optimizer steps of the policy and value networks between two measurements."""
    net_lr: PositiveFloat = 1e-3
    """Learning rate of these networks."""
    match_games: Annotated[int, Field(ge=2)] = 400
    """Games against each opponent, half of them with each colour."""
    positions: PositiveInt = 500
    """Solved positions on which moves are judged."""

    router: Literal["mlp", "logistic", "knn"] = "mlp"
    """What routes problems: an MLP with a confidence head, logistic regression, or nearest neighbours."""
    router_features: Literal["surface", "embedding"] = "surface"
    """What the router reads: 14 surface features, or the encoder's embedding of the problem."""
    routed_problems: Annotated[int, Field(ge=16)] = 1000
    """Problems on which all agents are measured to train the router, and as many to test it."""
    cost_weight: NonNegativeFloat = 0.01
    """Success that a cost of one forward pass of an encoder is worth."""

    grace_period: PositiveInt = 4
    """Reports before ASHA may stop a trial."""
    epochs: Annotated[int, Field(ge=7), AfterValidator(require_whole_rounds)] = 43
    """Reports of a whole trial: 3, and 4 times the measurements of each of the four training stages."""

    @property
    def rounds(self) -> int:
        """Measurements of each training stage."""
        return (self.epochs - 3) // 4
