"""Retrieval: dense (FAISS over the encoder's mean-pooled embeddings) and lexical (BM25), fused by reciprocal rank.

Chunks and embeddings lie in one Parquet file; the indexes are made of it in milliseconds. Reciprocal rank fusion is
Cormack, Clarke and Buettcher (2009), with their constant of 60.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import bm25s
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainables.common.folder import Folder
from trainables.reasoning_agents.corpus import Corpus
from trainables.reasoning_agents.tagger import backbone_folder

FILE = "chunks.parquet"
RANK_CONSTANT = 60
# each of the two gives this many to the fusion
CANDIDATES = 50


class Embedder:
    """Sentence embeddings of a pre-trained encoder: the mean over pieces, of length 1."""

    def __init__(self, backbone: str, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        where = backbone_folder(backbone)
        self._tokenizer = AutoTokenizer.from_pretrained(where)
        self._model = AutoModel.from_pretrained(where, dtype=torch.float32).eval().to(device)
        self._device = device

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``[N, width]`` in float32, rows of length 1."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for begin in range(0, len(order), 32):
            part = order[begin : begin + 32]
            inputs = self._tokenizer([texts[i] for i in part], padding=True, truncation=True, max_length=256,
                                     return_tensors="pt").to(self._device)  # fmt: skip
            hidden, mask = self._model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
            rows[part] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Index:
    """The index over chunks.

    Args:
        chunks: Their texts.
        vectors: ``[N, width]``, their embeddings.
        embedder: Embeds queries.
    """

    def __init__(self, chunks: Sequence[str], vectors: np.ndarray, embedder: Embedder) -> None:
        self.chunks, self._embedder = list(chunks), embedder
        self._dense = faiss.IndexFlatIP(vectors.shape[1])
        self._dense.add(np.ascontiguousarray(vectors))
        self._lexical = bm25s.BM25()
        self._lexical.index(bm25s.tokenize(self.chunks, stopwords="en", show_progress=False), show_progress=False)

    @classmethod
    def build(cls, corpus: Corpus, folder: Folder, embedder: Embedder) -> Index:
        """Make the index of a corpus and write it down; read it where the folder holds that of the same text."""
        data = folder.read(FILE)
        try:
            metadata = pq.read_table(io.BytesIO(data or b"")).schema.metadata or {}
        except (pa.ArrowException, OSError):
            # missing or damaged
            metadata = {}
        if metadata.get(b"fingerprint") != corpus.fingerprint.encode():
            vectors = embedder.embed(corpus.chunks)
            table = pa.table(
                {
                    "text": corpus.chunks,
                    "source": corpus.sources,
                    "vector": pa.array(list(vectors), pa.list_(pa.float32())),
                }
            ).replace_schema_metadata({"fingerprint": corpus.fingerprint})
            out = io.BytesIO()
            pq.write_table(table, out)
            folder.write(FILE, out.getvalue())
        return cls.load(folder, embedder)

    @classmethod
    def load(cls, folder: Folder, embedder: Embedder) -> Index:
        """Read the index that `build` wrote.

        Raises:
            FileNotFoundError: If there is none.
            pyarrow.ArrowException: If it is damaged.
        """
        data = folder.read(FILE)
        if data is None:
            raise FileNotFoundError(folder.path(FILE))
        table = pq.read_table(io.BytesIO(data))
        return cls(table["text"].to_pylist(), np.array(table["vector"].to_pylist(), dtype=np.float32), embedder)

    def rank(self, queries: Sequence[str], k: int, by: str = "fused") -> list[list[int]]:
        """Return the ``k`` best chunks of each query, best first; ``by`` is ``fused``, ``dense`` or ``lexical``."""
        depth = min(max(CANDIDATES, k), len(self.chunks))
        dense = self._dense.search(self._embedder.embed(queries), depth)[1]
        words = bm25s.tokenize(list(queries), stopwords="en", show_progress=False)
        lexical = self._lexical.retrieve(words, k=depth, show_progress=False).documents
        if by != "fused":
            return [list(map(int, row[:k])) for row in (dense if by == "dense" else lexical)]
        return [fuse([list(map(int, a)), list(map(int, b))])[:k] for a, b in zip(dense, lexical, strict=True)]


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Return the items of several rankings by the sum of their reciprocal ranks, best first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (RANK_CONSTANT + rank)
    return sorted(scores, key=lambda item: (-scores[item], item))


def precision_at(rankings: Sequence[Sequence[int]], relevant: Sequence[frozenset[int]], k: int) -> list[float]:
    """Return for each query the share of its first ``k`` chunks that are relevant."""
    return [len(set(ranking[:k]) & wanted) / k for ranking, wanted in zip(rankings, relevant, strict=True)]
