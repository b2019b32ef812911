"""Every command in docs/cluster.md is one that its program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from ray.dashboard.modules.job.cli import job_cli_group
from ray.scripts.scripts import cli as ray_cli

from sweeps import atomic_lora, preflight
from sweeps.core.arc_options import task_options
from sweeps.core.cli import common_parser

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


def check_ray(words: list[str]) -> None:
    group, name, *rest = words if words[0] == "job" else ["", *words]
    command = (job_cli_group if group else ray_cli).commands[name]
    # parses the options and does not run the command
    with command.make_context(name, list(rest)) as context:
        entrypoint = context.params.get("entrypoint")
    if entrypoint:
        check(list(entrypoint))


def check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "sweeps.preflight"]:
        preflight.options().parse_args(words[2:])
    elif words[0] == "sweeps/atomic_lora.py":
        parser = common_parser(atomic_lora.SPACE, "")
        task_options(parser)
        parser.parse_args(words[1:])
    else:
        # tests/sweeps/test_object_storage.py runs it
        assert words[:2] == ["-m", "sweeps.results"] and len(words) == 3


def check(words: list[str]) -> None:
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    program, *rest = words
    if program == "export":
        assert all(re.fullmatch(r"(RAY|AWS)_[A-Z_]+=\S+", word) for word in rest)
    elif program == "docker":
        assert rest[0] == "build" and f"docker {' '.join(rest)}" in (ROOT / "Dockerfile").read_text()
    elif program == "kubectl":
        assert (ROOT / rest[-1]).exists()
    else:
        {"ray": check_ray, "python": check_python}[program](rest)


@pytest.mark.parametrize("line", LINES)
def test_the_command_is_one_that_its_program_takes(line: str) -> None:
    check(shlex.split(line))


def test_the_commands_were_found() -> None:
    assert len(LINES) > 15
