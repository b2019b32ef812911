"""A puzzle as a text, as an image or as the grid itself: what a mixture shows in place of its tokens.

Which of them a puzzle is shown as is decided by its class, so it and all that symmetries make of it are shown alike, in
training or held out, never both. What is asked stays the grid.

Letters in shape comments: N puzzles, T cells, S cells in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainables.puzzles.puzzles import hash_rows, mix, random_keys

MODALITIES = ("text", "image", "grid")
# pixels in a row of a cell's square
CELL = 6
CHARACTERS = np.frombuffer(b".1234", dtype=np.uint8)
# of each character, five rows of three pixels; an octal digit is a row
_ROWS = np.array([list(rows) for rows in ("00000", "26227", "71747", "71717", "55711")], dtype=np.uint8)
GLYPHS = _ROWS[:, :, None] >> np.array([2, 1, 0], dtype=np.uint8) & 1


def modalities(classes: np.ndarray) -> np.ndarray:
    """Return the index in `MODALITIES` of each class uint64 [N], int32 [N]."""
    return (mix(classes ^ np.uint64(0x71E5)) % np.uint64(len(MODALITIES))).astype(np.int32)


def length(modality: str, side: int) -> int:
    """Return how many numbers show a puzzle of ``side`` cells in a row: characters, pixels or cells."""
    return {"text": side * (side + 1) - 1, "image": (side * CELL) ** 2, "grid": side * side}[modality]


def shown_length(shown_as: Sequence[str], side: int) -> int:
    """Return the length of rows that hold any of these modalities."""
    return max(length(name, side) for name in shown_as)


def show(grids: np.ndarray, shown_as: np.ndarray) -> np.ndarray:
    """Return what is shown of grids uint8 [N, T] whose modalities are ``shown_as`` [N].

    Returns:
        uint8 [N, L], as long as the longest modality; what follows a shorter one is 0.
    """
    side = math.isqrt(grids.shape[1])
    shown = np.zeros((len(grids), shown_length(MODALITIES, side)), dtype=np.uint8)
    text, image, grid = (np.flatnonzero(shown_as == index) for index in range(len(MODALITIES)))
    for rows, view in ((text, as_text(grids[text])), (image, as_image(grids[image])), (grid, grids[grid])):
        shown[rows, : view.shape[1]] = view
    return shown


def as_text(grids: np.ndarray) -> np.ndarray:
    """Return ASCII codes uint8 [N, S * (S + 1) - 1] of lines like ``1.3.``, with a line feed between them."""
    side = math.isqrt(grids.shape[1])
    lines = np.full((len(grids), side, side + 1), ord("\n"), dtype=np.uint8)
    lines[:, :, :-1] = CHARACTERS[grids].reshape(len(grids), side, side)
    return lines.reshape(len(grids), side * (side + 1))[:, :-1]


def as_image(grids: np.ndarray) -> np.ndarray:
    """Return pixels uint8 [N, (S * CELL) ** 2], row by row, 1 where there is ink.

    A digit lies somewhere in the square of its cell; where is drawn from the puzzle itself.
    """
    side = math.isqrt(grids.shape[1])
    height, width = GLYPHS.shape[1:]
    squares = np.zeros((*grids.shape, CELL, CELL), dtype=np.uint8)
    keys = random_keys(0, hash_rows(grids), grids.shape[1])
    downs, rights = keys % np.uint64(CELL - height + 1), (keys >> np.uint64(32)) % np.uint64(CELL - width + 1)
    for down, right in np.ndindex(CELL - height + 1, CELL - width + 1):
        here = (downs == down) & (rights == right)
        squares[here, down : down + height, right : right + width] = GLYPHS[grids[here]]
    return squares.reshape(len(grids), side, side, CELL, CELL).swapaxes(2, 3).reshape(len(grids), (side * CELL) ** 2)
