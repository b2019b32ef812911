"""Episodes that several models write by turns."""

from __future__ import annotations

from pathlib import Path

from tests.trainables.sad_student.models import save_tiny
from trainables.sad_student.environments import problems
from trainables.sad_student.models import load_model, load_tokenizer
from trainables.sad_student.rollout import MAX_INVALID, play
from trainables.sad_student.tokens import Vocabulary


def test_two_copies_of_a_model_that_take_turns_write_what_one_writes_alone(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    model, vocabulary = load_model(folder, "cpu"), Vocabulary(load_tokenizer(folder))

    def played(**models: object) -> list[list[int]]:
        environments = {problem.name: problem.environment() for problem in problems("train", 12)}
        episodes = play(environments, models, vocabulary, seed=1)
        assert {writer for episode in episodes for writer in episode.writers} == {"", *models}
        assert max(episode.turns for episode in episodes) >= MAX_INVALID
        return [episode.ids for episode in episodes]

    assert played(one=model, other=model) == played(one=model)
