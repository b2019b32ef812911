"""Episodes of language models in environments, batched, each model with a KV cache of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from trainables.sad_student.protocol import Environment
from trainables.sad_student.tokens import SPAN_IDS, Vocabulary, padded
from trainables.sad_student.trajectories import Segment, Trajectory, observation_text, task_text, trajectory_of

# tokens that a turn may have; the expert's longest has 30
TURN_TOKENS = 40
# meaningless actions after which an episode is given up
MAX_INVALID = 3
ACTION = re.compile(r"^Action: ?(.*)\n", re.MULTILINE)


@dataclass
class Episode:
    """An episode that is being played or over.

    Attributes:
        environment: What it is played in.
        name: Of its problem.
        segments: Its text so far.
        ids: Its tokens so far.
        spans: Of each token, an index into `SPANS`.
        writers: Name of the model that wrote each token; empty for the environment's.
        turn_of: Turn of each token, from 0.
        turns: Actions so far.
        over: Whether it has ended.
    """

    environment: Environment
    name: str
    segments: list[Segment] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    turn_of: list[int] = field(default_factory=list)
    turns: int = 0
    over: bool = False

    @property
    def trajectory(self) -> Trajectory:
        return trajectory_of(self.name, self.environment, self.segments)


class Writer:
    """A model that writes turns for a batch of rows, whose keys and values it keeps.

    Args:
        model: A causal LM in evaluation mode.
        vocabulary: Of its tokens.
        rows: Number of rows.
        temperature: 0 always takes the most probable token.
        generator: Draws where the temperature is above 0.
    """

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        rows: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.temperature, self.generator = temperature, generator
        self.device = model.get_input_embeddings().weight.device
        self.pending: list[list[int]] = [[] for _ in range(rows)]
        self._cache = DynamicCache(config=model.config)
        self._mask = torch.zeros(rows, 0, dtype=torch.long, device=self.device)
        self._ends = ending_ids(vocabulary)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        index = torch.tensor(rows, device=self.device)
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]
        self.pending = [self.pending[row] for row in rows]

    @torch.inference_mode()
    def write(self, wanted: Sequence[bool]) -> list[list[int]]:
        """Return the tokens of a turn for each wanted row, none for the others; all read what is pending for them."""
        logits = self._read(
            *(t.to(self.device) for t in padded([np.array(p, dtype=int) for p in self.pending], left=True))
        )
        self.pending = [[] for _ in self.pending]
        written: list[list[int]] = [[] for _ in wanted]
        going = list(wanted)
        while any(going):
            tokens = self._choose(logits)
            for row, token in enumerate(tokens.tolist()):
                if going[row]:
                    written[row].append(token)
                    if self._ended(written[row]):
                        going[row] = False
                        # read at the beginning of the next turn
                        self.pending[row] = [token]
            if any(going):
                mask = torch.tensor(going, dtype=torch.long, device=self.device)[:, None]
                logits = self._read(tokens[:, None], mask)
        return written

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read tokens [B, T] with their mask; return the logits after the last one, [B, V]."""
        places = (self._mask.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp_min(0)
        self._mask = torch.cat([self._mask, mask], dim=1)
        output = self.model(
            input_ids=ids, attention_mask=self._mask, position_ids=places, past_key_values=self._cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return output.logits[:, -1]

    def _choose(self, logits: Tensor) -> Tensor:
        if not self.temperature:
            return logits.argmax(dim=-1)
        shares = torch.softmax(logits.float() / self.temperature, dim=-1).cpu()
        return torch.multinomial(shares, 1, generator=self.generator)[:, 0].to(self.device)

    def _ended(self, written: Sequence[int]) -> bool:
        if len(written) >= TURN_TOKENS or written[-1] == self._ends[1]:
            return True
        return written[-1] in self._ends[0] and bool(ACTION.search(self.vocabulary.decode(written)))


def ending_ids(vocabulary: Vocabulary) -> tuple[frozenset[int], int]:
    """Return the ids of the tokens that hold a newline, and of the one that ends a text."""
    own = range(len(vocabulary.tokenizer)) if vocabulary.kept is None else vocabulary.kept
    tokens = vocabulary.tokenizer.batch_decode([[i] for i in own])
    newlines = frozenset(place for place, text in enumerate(tokens) if "\n" in text)
    (end,) = vocabulary.cut([vocabulary.tokenizer.eos_token_id])[0]
    return newlines, end


def play(
    environments: Mapping[str, Environment],
    writers: Mapping[str, Any],
    vocabulary: Vocabulary,
    rows: int = 64,
    shares: Mapping[str, float] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Episode]:
    """Play an episode in each environment and return them, in order.

    Args:
        environments: By the name of the problem.
        writers: Models by name, which share the vocabulary, or servers, which have a ``writer``.
        vocabulary: Of their tokens.
        rows: Episodes at once.
        shares: How probable it is that a model writes a turn; it need not be given for one model.
        temperature: Of the drawn tokens; 0 always takes the most probable one.
        seed: Of everything that is drawn.
    """
    episodes = [Episode(environment, name) for name, environment in environments.items()]
    draw, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for start in range(0, len(episodes), rows):
        _play_batch(episodes[start : start + rows], writers, vocabulary, shares or {}, temperature, draw, generator)
    return episodes


def _play_batch(
    episodes: list[Episode],
    models: Mapping[str, Any],
    vocabulary: Vocabulary,
    shares: Mapping[str, float],
    temperature: float,
    draw: np.random.Generator,
    generator: torch.Generator,
) -> None:
    names = list(models)
    weights = np.array([shares.get(name, 1.0) for name in names])
    writers: dict[str, Any] = {}
    for name, model in models.items():
        if hasattr(model, "writer"):
            writers[name] = model.writer(len(episodes))
        else:
            writers[name] = Writer(model, vocabulary, len(episodes), temperature, generator)
    for row, episode in enumerate(episodes):
        _append(episode, row, writers, Segment("other", task_text(episode.environment.reset())), vocabulary)
    while episodes:
        chosen = [names[k] for k in draw.choice(len(names), size=len(episodes), p=weights / weights.sum())]
        for name, writer in writers.items():
            wanted = [choice == name for choice in chosen]
            if not any(wanted):
                continue
            for row, ids in enumerate(writer.write(wanted)):
                if ids:
                    _take_turn(episodes[row], row, writers, name, ids, vocabulary)
        left = [row for row, episode in enumerate(episodes) if not episode.over]
        if left and len(left) < len(episodes):
            for writer in writers.values():
                writer.keep(left)
        episodes = [episodes[row] for row in left]


def _take_turn(
    episode: Episode, row: int, writers: Mapping[str, Any], name: str, ids: list[int], vocabulary: Vocabulary
) -> None:
    text = vocabulary.decode(ids)
    found = ACTION.search(text)
    thought = text[: found.start()] if found else text
    # the span of a token is that of its first character
    before, spans = "", []
    for place in range(len(ids)):
        spans.append(SPAN_IDS["reasoning" if not found or len(before) < len(thought) else "action"])
        before = vocabulary.decode(ids[: place + 1])
    episode.ids += ids
    episode.spans += spans
    episode.writers += [name] * len(ids)
    episode.turn_of += [episode.turns] * len(ids)
    episode.segments += [Segment("reasoning", thought)] + ([Segment("action", text[found.start() :])] if found else [])
    for other, writer in writers.items():
        if other != name:
            writer.pending[row] += ids
    observation, over = episode.environment.step(found.group(1) if found else "")
    episode.turns += 1
    episode.over = over or episode.environment.invalid >= MAX_INVALID
    _append(episode, row, writers, Segment("observation", observation_text(observation)), vocabulary)


def _append(episode: Episode, row: int, writers: Mapping[str, Any], segment: Segment, vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode(segment.text)
    episode.segments.append(segment)
    episode.ids += ids
    episode.spans += [SPAN_IDS[segment.span]] * len(ids)
    episode.writers += [""] * len(ids)
    episode.turn_of += [episode.turns] * len(ids)
    for writer in writers.values():
        writer.pending[row] += ids


def outcome(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return success overall and by kind, turns of an episode, and meaningless actions of an episode."""
    kinds = sorted({episode.environment.kind for episode in episodes})
    row = {
        "success_rate": float(np.mean([episode.environment.success for episode in episodes])),
        "steps_per_episode": float(np.mean([episode.turns for episode in episodes])),
        "invalid_actions": float(np.mean([episode.environment.invalid for episode in episodes])),
    }
    for kind in kinds:
        some = [episode.environment.success for episode in episodes if episode.environment.kind == kind]
        row[f"success_rate_{kind}"] = float(np.mean(some))
    return row
