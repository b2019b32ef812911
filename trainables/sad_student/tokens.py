"""Text as tokens, each in exactly one span, in a vocabulary that may be cut down to the tokens that occur."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from trainables.common.errors import InputError
from trainables.sad_student.trajectories import SPANS, Trajectory

SPAN_IDS = {span: number for number, span in enumerate(SPANS)}


@dataclass(frozen=True)
class Tokens:
    """A tokenized trajectory.

    Attributes:
        ids: [T] int64, in the vocabulary that made them.
        spans: [T] int8, indices into `SPANS`.
        trajectory: What they were made from.
    """

    ids: np.ndarray
    spans: np.ndarray
    trajectory: Trajectory


class Vocabulary:
    """A fast tokenizer and the ids of its tokens that a model keeps.

    Args:
        tokenizer: A fast tokenizer of transformers.
        kept: Ids in the tokenizer's own numbers; None keeps all. The byte tokens of a byte-level tokenizer are always
            kept: a token that was cut is spelled with them, so every text can be written.
    """

    def __init__(self, tokenizer: Any, kept: Iterable[int] | None = None) -> None:
        self.tokenizer = tokenizer
        self.kept: list[int] | None = None
        if kept is not None:
            self.kept = sorted({*kept, *byte_ids(tokenizer), tokenizer.eos_token_id})

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str]) -> Vocabulary:
        """Return the vocabulary cut to the tokens of some texts; whole where the tokenizer has no byte tokens."""
        if not byte_ids(tokenizer):
            return cls(tokenizer)
        return cls(tokenizer, {i for ids in tokenizer(list(texts), add_special_tokens=False).input_ids for i in ids})

    def __len__(self) -> int:
        return len(self.tokenizer) if self.kept is None else len(self.kept)

    @cached_property
    def _place(self) -> dict[int, int]:
        return {own: place for place, own in enumerate(self.kept or ())}

    def cut(self, ids: Iterable[int]) -> list[list[int]]:
        """Return for each id of the tokenizer its ids here: one, or those of its bytes."""
        if self.kept is None:
            return [[own] for own in ids]
        return [[self._place[own]] if own in self._place else self._spelled(own) for own in ids]

    def _spelled(self, own: int) -> list[int]:
        token = self.tokenizer.convert_ids_to_tokens(own)
        return [self._place[self.tokenizer.convert_tokens_to_ids(character)] for character in token]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return [i for places in self.cut(ids) for i in places]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids."""
        own = list(ids) if self.kept is None else [self.kept[i] for i in ids]
        return str(self.tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def tokens(self, trajectory: Trajectory) -> Tokens:
        """Return a trajectory's tokens; a token belongs to the span in which its first character lies.

        Raises:
            InputError: If the tokenizer is not a fast one, which alone knows where a token's characters are.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError("Spans need a fast tokenizer, which knows where tokens are in a text; choose another.")
        encoded = self.tokenizer(trajectory.text, add_special_tokens=False, return_offsets_mapping=True)
        ends = np.array([end for _, end, _ in trajectory.spans])
        spans = np.array([SPAN_IDS[span] for _, _, span in trajectory.spans], dtype=np.int8)
        starts = np.array([start for start, _ in encoded.offset_mapping], dtype=np.int64)
        # segments without text never match: of equal ends the last one begins where the next character is
        of_token = spans[np.searchsorted(ends, starts, side="right").clip(max=len(ends) - 1)]
        places = self.cut(encoded.input_ids)
        ids = np.array([i for some in places for i in some], dtype=np.int64)
        return Tokens(ids, np.repeat(of_token, [len(some) for some in places]), trajectory)


def byte_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens of single bytes; none where the tokenizer is not byte-level.

    A tokenizer may lack tokens of bytes that no text has, but has those of ASCII's characters.
    """
    vocabulary = tokenizer.get_vocab()
    ascii_ids = [vocabulary.get(character) for character in (*map(chr, range(33, 127)), "\u0120", "\u010a")]
    if None in ascii_ids:
        return []
    return [vocabulary[character] for character in ByteLevel.alphabet() if character in vocabulary]


def batches(lengths: Sequence[int], rows: int, order: Sequence[int], window: int = 8) -> list[list[int]]:
    """Return the indices ``order`` in batches of ``rows``; within a window of batches similar lengths are together."""
    found = []
    for start in range(0, len(order), rows * window):
        some = sorted(order[start : start + rows * window], key=lambda i: -lengths[i])
        found += [some[k : k + rows] for k in range(0, len(some), rows)]
    return found


def padded(rows: Sequence[np.ndarray], fill: int = 0, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return rows as [B, T] int64 and their mask of real tokens, [B, T] int64."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), fill, dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
