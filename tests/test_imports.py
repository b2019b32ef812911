"""Imports run down, floor by floor, and never round in a circle; imports inside functions count as well."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("sweeps", "search_spaces", "trainables", "dashboards")
# what each part may import besides itself: the longest name that a module begins with says which part it is in
FLOORS = {
    "trainables": (),
    "search_spaces": ("trainables",),
    "sweeps.store": ("trainables.common", "search_spaces"),
    "sweeps.backend": ("trainables", "search_spaces"),
    "dashboards": ("sweeps.store", "trainables"),
    "sweeps.monitoring": ("sweeps.store", "sweeps.backend", "trainables.common"),
    "sweeps.core": ("sweeps.monitoring", "sweeps.store", "sweeps.backend", "dashboards", "search_spaces", "trainables"),
    "sweeps": ("sweeps.core", *("sweeps.monitoring", "sweeps.store", "sweeps.backend"), *TOPS[1:]),
}


def imports() -> dict[str, set[str]]:
    """Every module of the project, with all that it imports."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for top in TOPS for p in (ROOT / top).rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            whole |= {full if full in files else str(node.module) for full in names}
        found[name] = whole
    return found


def part(name: str) -> str:
    return max((floor for floor in FLOORS if f"{name}.".startswith(f"{floor}.")), key=len, default="")


IMPORTS = imports()


def test_no_circle() -> None:
    TopologicalSorter({name: whole & IMPORTS.keys() for name, whole in IMPORTS.items()}).prepare()


@pytest.mark.parametrize("name", IMPORTS)
def test_a_module_imports_only_from_the_floors_below(name: str) -> None:
    own = part(name)
    upwards = {
        other
        for other in IMPORTS[name] & IMPORTS.keys()
        if part(other) != own and not any(f"{other}.".startswith(f"{below}.") for below in FLOORS[own])
    }
    assert not upwards


def test_families_know_neither_ray_nor_each_other() -> None:
    families = {path.parent.name for path in (ROOT / "trainables").glob("*/config.py")}
    for name in (name for name in IMPORTS if part(name) == "trainables"):
        assert "ray" not in {other.split(".")[0] for other in IMPORTS[name]}, name
        foreign = {f"trainables.{family}" for family in families} - {".".join(name.split(".")[:2])}
        assert not {other for other in IMPORTS[name] if ".".join(other.split(".")[:2]) in foreign}, name
