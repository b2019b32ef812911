"""The corpus: documentation strings of the Python standard library, and facts about units that stand nowhere else.

The documentation is read from the interpreter's own source files, so every machine has it; `Corpus.fingerprint` names
the text. A labelled query is the first sentence of a module's documentation; relevant to it are the other chunks of
that module. No embedding model takes part in the labels.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import random
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# a labelled query has at least this many relevant chunks
RELEVANT = 10
PER_MODULE = 15
UNITS = 200


@dataclass(frozen=True)
class Query:
    """A query and the chunks that are relevant to it, by index."""

    text: str
    relevant: frozenset[int]


@dataclass(frozen=True)
class Corpus:
    """Chunks and what is asked of them.

    Attributes:
        chunks: Texts; those of facts stand last.
        sources: The module of each chunk, ``fact`` for a fact.
        queries: Labelled queries; the sentence that is asked with is in no chunk.
    """

    chunks: tuple[str, ...]
    sources: tuple[str, ...]
    queries: tuple[Query, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the text."""
        return hashlib.sha256("\0".join(self.chunks).encode()).hexdigest()[:16]


def units() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return invented units with the pieces that each holds: those of training problems, and those of held-out ones."""
    names: set[str] = set()
    rng = random.Random("units")
    while len(names) < UNITS:
        stem = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2)) + rng.choice("lmnrt")
        names.add(f"{stem} {rng.choice(('crates', 'sacks', 'barrels', 'chests'))}")
    every = [(name, rng.randint(2, 12)) for name in sorted(names)]
    rng.shuffle(every)
    return every[: UNITS // 2], every[UNITS // 2 :]


def build_corpus(count: int, size: int, overlap: int) -> Corpus:
    """Return the corpus of up to ``count`` chunks of documentation and `UNITS` facts.

    Args:
        count: Chunks of documentation, of the most documented modules first, at most `PER_MODULE` of each.
        size: Characters of a chunk.
        overlap: Characters that a chunk shares with the next one of the same text.
    """
    chunks: list[str] = []
    sources: list[str] = []
    queries: list[Query] = []
    modules = sorted(_documented(), key=lambda module: (-sum(map(len, module[2])), module[0]))
    for name, question, texts in modules:
        own = [chunk for text in texts for chunk in split(text, size, overlap)][: min(PER_MODULE, count - len(chunks))]
        if len(own) < RELEVANT:
            continue
        queries.append(Query(question, frozenset(range(len(chunks), len(chunks) + len(own)))))
        chunks += own
        sources += [name] * len(own)
    for unit, pieces in sum(units(), []):
        chunks.append(f"each of the {unit} holds {pieces} pieces")
        sources.append("fact")
    return Corpus(tuple(chunks), tuple(sources), tuple(queries))


def split(text: str, size: int, overlap: int) -> list[str]:
    """Return pieces of at most ``size`` characters, cut between words, with about ``overlap`` characters in common."""
    words, found, start = text.split(), [], 0
    while start < len(words):
        end, length = start, 0
        while end < len(words) and (end == start or length + len(words[end]) + 1 <= size):
            length += len(words[end]) + 1
            end += 1
        found.append(" ".join(words[start:end]))
        if end == len(words):
            break
        back, shared = end, 0
        while back > start + 1 and shared + len(words[back - 1]) + 1 <= overlap:
            back -= 1
            shared += len(words[back]) + 1
        start = back
    return found


@functools.cache
def _documented() -> list[tuple[str, str, list[str]]]:
    """Return name, first sentence and the other documentation of each public module of the standard library."""
    root, found = Path(sysconfig.get_paths()["stdlib"]), []
    for path in sorted((*root.glob("[a-z]*.py"), *root.glob("[a-z]*/__init__.py"))):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if name in ("site-packages", "dist-packages", "test", "idlelib", "this"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = ast.get_docstring(tree)
        if not own:
            continue
        question, _, rest = re.sub(r"\s+", " ", own).partition(". ")
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        texts = [rest, *(ast.get_docstring(node) or "" for node in nodes)]
        found.append((name, question, [text for text in texts if len(text) > 40]))
    return found
