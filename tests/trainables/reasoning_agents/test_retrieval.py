"""The corpus with its labelled queries, fusion, and an index that is made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainables.common.folder import Folder
from trainables.reasoning_agents.corpus import RELEVANT, build_corpus, split, units
from trainables.reasoning_agents.retrieval import Index, fuse, precision_at


class Hashed:
    """Counts letters: an embedding that costs nothing."""

    def __init__(self) -> None:
        self.texts = 0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        rows = np.array(
            [[text.count(letter) + 0.01 for letter in "abcdefghijklmnop"] for text in texts], dtype=np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_chunks_are_as_long_as_they_may_be_and_share_words() -> None:
    text = " ".join(f"word{n}" for n in range(100))
    pieces = split(text, 64, 16)
    assert all(len(piece) <= 64 for piece in pieces)
    for one, other in zip(pieces, pieces[1:], strict=False):
        shared = [word for word in one.split() if word in other.split()]
        assert shared and one.endswith(" ".join(shared)) and len(" ".join(shared)) <= 16


def test_an_index_is_made_once_and_again_for_another_text(tmp_path: Path) -> None:
    corpus = build_corpus(60, 256, 32)
    assert all(len(query.relevant) >= RELEVANT for query in corpus.queries) and len(corpus.queries) >= 4
    for query in corpus.queries:
        assert not any(corpus.chunks[i].startswith(query.text) for i in query.relevant)
    embedder: Any = Hashed()
    index = Index.build(corpus, Folder(tmp_path), embedder)
    made = embedder.texts
    Index.build(corpus, Folder(tmp_path), embedder)
    assert embedder.texts == made == len(corpus.chunks)
    Index.build(build_corpus(75, 256, 32), Folder(tmp_path), embedder)
    assert embedder.texts > made
    # a word that is in one chunk alone is found by its letters
    name, pieces = units()[0][0]
    best = index.rank([f"what does each of the {name} hold"], 1, "lexical")[0][0]
    assert corpus.chunks[best] == f"each of the {name} holds {pieces} pieces"


def test_fusion_adds_reciprocal_ranks() -> None:
    assert fuse([[1, 2, 3], [3, 1, 4]]) == [1, 3, 2, 4]
    assert precision_at([[1, 2, 3], [4, 5, 6]], [frozenset({1, 3, 9}), frozenset()], 2) == [0.5, 0.0]


def test_an_index_that_was_never_made_is_missed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Index.load(Folder(tmp_path), Hashed())  # type: ignore[arg-type]
