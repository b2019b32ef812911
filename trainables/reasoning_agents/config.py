"""The settings of the family, as a plain frozen dataclass: no torch, so that a driver can read them at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AgentsConfig:
    """The agents and their training. Defaults: the settings of the published system.

    Attributes:
        rank, alpha, dropout: LoRA on the encoder's query, key and value projections.
        layers: First layers of the encoder that are used; 0 uses all of them.
        pooling: What the heads read for a word: its own hidden state, or (an ablation) the first token's hidden state
            added to the word's input embedding.
        lr: Highest learning rate of encoders and heads, after a warm-up over a tenth of the steps; it falls to 0.
        batch_size: Problems in a forward pass.
        accumulation: Forward passes in an optimizer step.
        clip_norm: Largest norm of the gradient.
        hrm_steps, trm_steps: Optimizer steps of the decomposition and of the refinement agent (phase 1).
        tuning_steps: Optimizer steps of each of the two in instruction tuning (phase 2).
        train_problems: Problems to train on.
        held_out_problems: Problems of each held-out split.
        max_refinements: Most refinements of a candidate.
        chunks: Chunks of the standard library's documentation in the index.
        chunk_size, overlap: Characters of a chunk, and those that it shares with the next one.
        k: Retrieved chunks that an agent reads.
        game: OpenSpiel game of phase 3, as `pyspiel.load_game` reads it.
        simulations: Simulations of a move.
        c: Exploration constant of PUCT.
        selfplay_games: Games of self-play between two measurements.
        buffer: Positions that are kept to train on.
        net_steps: Optimizer steps of the policy and value networks between two measurements.
        net_lr: Their learning rate.
        match_games: Games against each opponent, half of them with each colour.
        positions: Solved positions on which moves are judged.
        router: What routes problems: an MLP with a confidence head, logistic regression, or nearest neighbours.
        router_features: What it reads: 14 surface features, or the encoder's embedding of the problem.
        routed_problems: Problems on which all agents are measured to train the router, and as many to test it.
        cost_weight: Success that a cost of one forward pass of an encoder is worth.
        grace_period: Reports before ASHA may stop a trial.
        epochs: Reports of a whole trial: 3, and 4 times the measurements of each of the four training stages.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.1
    layers: int = 0
    pooling: Literal["token", "cls"] = "token"
    lr: float = 3e-5
    batch_size: int = 8
    accumulation: int = 2
    clip_norm: float = 1.0
    hrm_steps: int = 4000
    trm_steps: int = 4000
    tuning_steps: int = 2000
    train_problems: int = 20000
    held_out_problems: int = 500
    max_refinements: int = 8
    chunks: int = 500
    chunk_size: int = 256
    overlap: int = 32
    k: int = 5
    game: str = "connect_four(rows=4,columns=5,x_in_row=4)"
    simulations: int = 200
    c: float = 1.414
    selfplay_games: int = 500
    buffer: int = 1000
    net_steps: int = 500
    net_lr: float = 1e-3
    match_games: int = 400
    positions: int = 500
    router: Literal["mlp", "logistic", "knn"] = "mlp"
    router_features: Literal["surface", "embedding"] = "surface"
    routed_problems: int = 1000
    cost_weight: float = 0.01
    grace_period: int = 4
    epochs: int = 43

    @property
    def rounds(self) -> int:
        """Measurements of each training stage."""
        return (self.epochs - 3) // 4
