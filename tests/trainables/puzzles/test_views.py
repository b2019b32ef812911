"""Puzzles as text, image or grid: what is shown is the puzzle, and a class is shown in one way only."""

from __future__ import annotations

import numpy as np
import pytest

from trainables.puzzles import views
from trainables.puzzles.kinds import Kind
from trainables.puzzles.puzzles import Puzzles, collect

MIXED = Kind("mixed", 4)


@pytest.fixture(scope="module")
def puzzles() -> Puzzles:
    return MIXED.generate(300, np.random.default_rng(0))


def test_a_text_is_lines_of_digits_and_dots(puzzles: Puzzles) -> None:
    grid = np.array([[0, 1, 0, 0, 2, 0, 0, 0, 1, 0, 3, 0, 0, 0, 0, 4]], dtype=np.uint8)
    assert views.as_text(grid).tobytes() == b".1..\n2...\n1.3.\n...4"
    for grid, text in zip(puzzles.inputs, views.as_text(puzzles.inputs), strict=True):
        read = text.tobytes().decode().replace("\n", "").replace(".", "0")
        assert list(map(int, read)) == grid.tolist() and len(text) == views.length("text", 4)


def test_an_image_has_each_digit_somewhere_in_its_cell(puzzles: Puzzles) -> None:
    images = views.as_image(puzzles.inputs).reshape(-1, 24, 24)
    places = set()
    for grid, image in zip(puzzles.inputs.reshape(-1, 4, 4), images, strict=True):
        for row, column in np.ndindex(4, 4):
            square = image[6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
            if grid[row, column] == 0:
                assert not square.any()
                continue
            down, right = (int(np.flatnonzero(square.any(1 - axis))[0]) for axis in (0, 1))
            # every glyph has ink in its first row and column, so that is where it begins
            assert (square[down : down + 5, right : right + 3] == views.GLYPHS[grid[row, column]]).all()
            assert square.sum() == views.GLYPHS[grid[row, column]].sum()
            places.add((down, right))
    assert len(places) == 2 * 4, "a digit is not told by single pixels"
    assert (views.as_image(puzzles.inputs[7:9]).reshape(-1, 24, 24) == images[7:9]).all()


def test_each_is_shown_as_its_id_says_and_padded(puzzles: Puzzles) -> None:
    shown = MIXED.show(puzzles.inputs, puzzles.ids)
    assert shown.shape == (300, 24 * 24) == (300, views.shown_length(views.MODALITIES, 4))
    oracles = (views.as_text(puzzles.inputs), views.as_image(puzzles.inputs), puzzles.inputs)
    for row, modality in enumerate(puzzles.ids):
        view = oracles[modality][row]
        assert (shown[row, : len(view)] == view).all() and not shown[row, len(view) :].any()
        assert len(view) == views.length(views.MODALITIES[modality], 4)
    plain = Kind("sudoku4", 4)
    assert plain.show(puzzles.inputs, puzzles.ids) is puzzles.inputs and plain.modalities == ("grid",)


def test_a_class_is_shown_in_one_way_and_is_trained_on_or_held_out() -> None:
    train, held_out, _ = collect(MIXED.generate, 600, 80, 0, MIXED.harder)
    for some in (train, held_out):
        assert min(np.bincount(some.ids, minlength=3)) > len(some) / 5
        assert (some.ids == MIXED.ids(some.classes)).all()
    assert not set(train.classes.tolist()) & set(held_out.classes.tolist()), "nor in another modality"
    inputs, _ = MIXED.augment(train.inputs, train.targets, 0, np.arange(600))
    turned = Kind("sudoku4", 4).augment(train.inputs, train.targets, 0, np.arange(600))[0]
    assert (inputs == turned).all() and (inputs != train.inputs).any()
