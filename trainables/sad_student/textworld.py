"""Microsoft's TextWorld as environments (Côté et al., 2018): text games with rooms, doors, containers and a quest.

Games are made from their seeds and kept, compiled, in the cache folder: the first use of a game takes some seconds.
The package ``textworld`` is an extra, since jericho, which plays the games, needs a C compiler to be installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from trainables.common.embedded import cache_folder
from trainables.common.errors import InputError
from trainables.sad_student.protocol import INVALID, MAX_TURNS

# what the games write around an answer: the prompt, the line with room and moves, and the end
AROUND = re.compile(r"\s*(\n>\s*(-= .* =-\S*)?|\*\*\* The End \*\*\*.*)\s*$", re.DOTALL)


class TextWorldGame:
    """A game whose quest is as many commands long as its difficulty and one more.

    From difficulty 3 on the task names the last of them only.

    Args:
        name: Of its problem.
        difficulty: From 1.
        seed: That it is made from.
    """

    kind = "textworld"

    def __init__(self, name: str, difficulty: int, seed: int) -> None:
        self.whole, self.difficulty, self._seed = name, difficulty, seed
        self.success, self.turns, self.invalid = False, 0, 0
        self._game: Any = None
        self._state: Any = None

    def reset(self) -> str:
        import textworld

        asked = textworld.EnvInfos(
            policy_commands=True, admissible_commands=True, won=True, objective=True, description=True
        )
        self._game = textworld.start(str(compiled(self.difficulty, self._seed)), asked)
        self._state = self._game.reset()
        self.success, self.turns, self.invalid = False, 0, 0
        return _plain(f"{self._state.objective} {self._state.description}")

    def step(self, action: str) -> tuple[str, bool]:
        self.turns += 1
        if action.strip() not in self._state.admissible_commands:
            self.invalid += 1
            return INVALID, self.turns >= MAX_TURNS
        self._state, _, over = self._game.step(action.strip())
        self.success = bool(self._state.won)
        over = over or self.turns >= MAX_TURNS
        if over:
            self._game.close()
        return _plain(self._state.feedback), over

    def actions(self) -> list[str]:
        return list(self._state.admissible_commands)

    def expert_action(self) -> tuple[str, str]:
        command = self._state.policy_commands[0]
        return f"Next I {command}.", command


def require_textworld() -> None:
    """Raise InputError where the package is not installed."""
    if importlib.util.find_spec("textworld") is None:
        raise InputError(
            "--environment textworld needs the package textworld; install it (with a C compiler at hand): "
            "pip install 'ray-lora-sweeps[textworld]'"
        )


def compiled(difficulty: int, seed: int) -> Path:
    """Return the file of a game, made now where the cache folder does not have it."""
    import textworld
    from textworld.generator import compile_game, make_game

    file = cache_folder() / "textworld" / f"{difficulty}-{seed}.z8"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    options = textworld.GameOptions()
    options.nb_rooms = options.quest_length = difficulty + 1
    options.nb_objects, options.seeds = 2 * difficulty + 2, seed
    options.grammar.only_last_action = difficulty > 2
    with tempfile.TemporaryDirectory(dir=file.parent) as aside:
        options.path = str(Path(aside, file.name))
        compile_game(make_game(options), options)
        # what is needed to play lies in a second file, which comes first
        os.replace(Path(aside, file.with_suffix(".json").name), file.with_suffix(".json"))
        os.replace(options.path, file)
    return file


def _plain(text: str) -> str:
    """Return what a game says on one line."""
    return " ".join(AROUND.sub("", text).split())
