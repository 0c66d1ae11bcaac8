"""Data flows down one list of rooms; imports never point up it, nor in a circle inside one."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deploykit"
# The order of the rooms, as CONTRIBUTING.md explains it. A room may import those before it.
ORDER = [
    "errors",
    "stats",
    "values",
    "files",
    "data",
    "tasks",
    "ops",
    "recipes",
    "graph",
    "networks",
    "backends",
    "proof",
    "precision",
    "training",
    "measuring",
    "reporting",
    "pipeline",
    "cli",
]
SIBLINGS = ("exporters", "plugins", "calib")
LONGEST_MODULE, LONGEST_FUNCTION = 307, 52
"""Lines."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return dotted name, `deploykit` left out -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in {"", "__main__"}:
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    """Return the modules of deploykit that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deploykit":
            base = str(node.module).partition(".")[2]
            names = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            found |= {name if name in modules() else base for name in names} - {""}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            found |= {n.partition(".")[2] for n in names if n.startswith("deploykit.")}
    return found


def run_by(name: str) -> set[str]:
    """Return what an import of a module runs: itself, and the packages that it lies in."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def rooms() -> list[str]:
    """Return what lies directly in deploykit/."""
    return sorted({name.partition(".")[0] for name in modules()})


def test_every_room_has_its_place_in_the_order() -> None:
    assert rooms() == sorted(ORDER)


def test_the_contributors_guide_lists_the_same_order() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"`(\w+)/?`", " ".join(rows)) == ORDER


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_what_comes_before_it(room: str) -> None:
    allowed = {*ORDER[: ORDER.index(room) + 1]}
    for name, path in modules().items():
        if name.partition(".")[0] == room:
            assert {each.partition(".")[0] for each in imported(path)} <= allowed, path


@pytest.mark.parametrize("room", ORDER)
def test_no_imports_run_in_a_circle_inside_a_room(room: str) -> None:
    inside = {n: p for n, p in modules().items() if n.partition(".")[0] == room}
    arrows = {
        name: {each for found in imported(path) & set(inside) for each in run_by(found)}
        - run_by(name)  # the packages around a module have begun before it
        for name, path in inside.items()
    }
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_recipes_plugins_and_sources_import_no_sibling() -> None:
    names = {p.stem for folder in SIBLINGS for p in (ROOT / folder).glob("*.py")}
    for folder in SIBLINGS:
        for path in (ROOT / folder).glob("*.py"):
            tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            roots = {str(n.module).split(".")[0] for n in tree if isinstance(n, ast.ImportFrom)}
            assert not roots & names, path


def test_no_module_and_no_function_is_long() -> None:
    siblings = (p for f in ("exporters", "calib") for p in (ROOT / f).glob("*.py"))
    files = [*modules().values(), *siblings]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST_MODULE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, (path, node.name)
