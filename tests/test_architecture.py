"""Data flows down one list of modules; imports never point up it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The order of the layers, as CONTRIBUTING.md explains it. A module may import those before it.
ORDER = [
    "errors",
    "contents",
    "stats",
    "values",
    "tape",
    "plugin",
    "recipe",
    "atlas",
    "metadata",
    "artifacts",
    "records",
    "files",
    "customops",
    "launchers",
    "onnxfile",
    "graph",
    "cost",
    "reparam",
    "layers",
    "masks",
    "keypoints",
    "detection",
    "detectors",
    "images",
    "drawing",
    "samples",
    "checkpoint",
    "passes",
    "observers",
    "memory",
    "calibration",
    "backends",
    "matching",
    "random_inputs",
    "verification",
    "acceptance",
    "placement",
    "float16",
    "lint",
    "quantization",
    "fusion",
    "exporting",
    "evaluation",
    "training",
    "environment",
    "conditions",
    "benchmarking",
    "reporting",
    "pipeline",
    "cli",
]
SIBLINGS = ("exporters", "plugins", "calib")


def imported(path: Path) -> set[str]:
    """Return every deploykit module that a file imports: `deploykit.x.y` as `x`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "deploykit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deploykit."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("deploykit.")}
    return found


def modules() -> dict[str, list[Path]]:
    """Return the files of each module or folder directly in deploykit/."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "deploykit").rglob("*.py")):
        name = path.relative_to(ROOT / "deploykit").parts[0].removesuffix(".py")
        if name not in {"__init__", "__main__"}:
            found.setdefault(name, []).append(path)
    return found


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(modules()) == sorted(ORDER)


def test_the_contributors_guide_lists_the_same_order() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == ORDER


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_comes_before_it(name: str) -> None:
    allowed = {*ORDER[: ORDER.index(name) + 1], "__version__"}
    for path in modules()[name]:
        assert imported(path) <= allowed, path


def test_recipes_plugins_and_sources_import_no_sibling() -> None:
    names = {p.stem for folder in SIBLINGS for p in (ROOT / folder).glob("*.py")}
    for folder in SIBLINGS:
        for path in (ROOT / folder).glob("*.py"):
            tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            roots = {str(n.module).split(".")[0] for n in tree if isinstance(n, ast.ImportFrom)}
            assert not roots & names, path
