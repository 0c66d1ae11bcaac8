"""Which shipped recipes a checkpoint may belong to, by its names: no recipe is run to find out.

A recipe file may say at its top level, as a literal, `MARKS = ("rpn.head.", ...)`: pieces of names
of which a checkpoint of its family has at least one. The others are not imported, nor the model
library that each of them stands on.
"""

from __future__ import annotations

import ast
import functools
from typing import TYPE_CHECKING

from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def candidates(names: Iterable[str]) -> list[str]:
    """Return the shipped recipes that weights with these names may belong to, sorted."""
    known = "\n".join(names)
    return [
        recipe
        for recipe, path in sorted(RECIPES.shipped().items())
        if (marks := _marks(path)) is None or any(mark in known for mark in marks)
    ]


@functools.cache
def _marks(path: Path) -> tuple[str, ...] | None:
    """Return the literal MARKS of a file, None where it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MARKS":
            return tuple(ast.literal_eval(node.value))
    return None
