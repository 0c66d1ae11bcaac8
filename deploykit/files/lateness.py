"""Imports that wait until they are used: what a library takes along and a command seldom needs.

ONNX IR imports SymPy, four times as slow as itself, for arithmetic on sizes that have no number.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import LazyLoader
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_LATE = ("sympy", "onnx_ir._symbolic_shapes")
"""The second uses the first as soon as it runs."""


class Late:
    """A finder of modules that run when they are first used, not when they are imported."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where one of these modules is; None for every other."""
        spec = PathFinder.find_spec(name, path, target) if name in _LATE else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def begin() -> None:
    """Let this process import them late. What it has imported stays as it is."""
    if Late not in sys.meta_path:
        sys.meta_path.insert(0, Late)
