"""Print the settings of all sweeps as Markdown: what each does, its default and its values, and every preset.

python -m sweeps.settings > docs/settings.md
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence

import search_spaces
from search_spaces.fields import Setting, text_of
from search_spaces.settings import domain_text
from search_spaces.space import Preset, SearchSpace

COMMAND = "python -m sweeps.settings > docs/settings.md"
HEAD = f"""# Settings

Every setting of every sweep; `--help` lists those of one. `--set rank=8` fixes a setting, `--sweep rank=4,8` sweeps it,
and `--config FILE` does either from a file. Other settings have the values of the preset and, where it says nothing,
their defaults. What a preset sweeps is swept where nothing else says what to sweep; what it draws at random, only where
`--num-samples` is above 1.

A schedule is a number, `SHAPE:START:END` or `SHAPE:START:END:LENGTH`, such as `cosine:0.1:0.001:50%` (of the run) or
`linear:0.5:2:1000` (steps).

This page is written by `{COMMAND}`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page; return the exit code."""
    argparse.ArgumentParser(prog="python -m sweeps.settings", description=__doc__).parse_args(argv)
    print(page(), end="")
    return 0


def page() -> str:
    """Return the page, with a section for each dataclass of settings."""
    sections: dict[type, dict[str, SearchSpace]] = {}
    for name, space in spaces():
        sections.setdefault(space.config, {})[f"sweeps/{name}.py"] = space
    return "\n".join([HEAD, *(_section(by_script) for by_script in sections.values())])


def spaces() -> list[tuple[str, SearchSpace]]:
    """Return every search space of the project with the name of its module."""
    modules = [module.name for module in pkgutil.iter_modules(search_spaces.__path__)]
    return [
        (name, space)
        for name in modules
        for space in vars(importlib.import_module(f"search_spaces.{name}")).values()
        if isinstance(space, SearchSpace)
    ]


def _section(by_script: Mapping[str, SearchSpace]) -> str:
    first = next(iter(by_script.values()))
    scripts = ", ".join(f"`{script}`" for script in by_script)
    lines = [f"## {scripts}: `{first.config.__name__}`", "", _markdown(first.config.__doc__ or "")]
    for heading, settings in first.sections().items():
        lines += ["", *([f"### {heading.capitalize()}", ""] if heading else [])]
        lines += ["| setting | default | values | what it is |", "|---|---|---|---|", *map(_row, settings)]
    for script, space in by_script.items():
        lines += ["", f"### Presets of `{script}`: `{first.config.__name__}`", ""]
        lines += [_preset(name, preset, name == space.default_preset) for name, preset in space.presets.items()]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    cells = (f"`{setting.name}`", f"`{setting.text}`", setting.values, _markdown(setting.documentation))
    return f"| {' | '.join(cells)} |"


def _preset(name: str, preset: Preset, is_default: bool) -> str:
    options = {"tasks": preset.tasks.removeprefix("all"), "data": preset.data, "base": preset.base}
    given = "".join(f", `--{option} {value}`" for option, value in options.items() if value)
    parts = [f"- `{name}`{' (the default)' if is_default else ''}: {preset.description}{given}."]
    for verb, text, values in (("Sets", text_of, preset.values), ("Sweeps", domain_text, preset.sweep)):
        if values:
            parts.append(f"{verb} {', '.join(f'`{name}={text(value)}`' for name, value in values.items())}.")
    return " ".join(parts)


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    sys.exit(main())
