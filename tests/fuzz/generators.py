"""Every hostile case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import (
    cards,
    checkpoints,
    commands,
    engines,
    foreign,
    images,
    json_files,
    layouts,
    onnx_files,
    scales,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .case import Case

_MODULES = (
    *(cards, checkpoints, commands, engines, foreign, images, json_files, layouts, onnx_files),
    scales,
)


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield the cases of every module, made from the sound files in `base`."""
    for module in _MODULES:
        yield from module.cases(base, seed)
