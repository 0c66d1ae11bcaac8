"""Ranges that other tools measured: TensorRT's caches, and scales in checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import OptionError
from deploykit.precision import caches, tables

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from deploykit.precision.placement import Placement
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable


def read(path: Path, model: Opened, tensors: Sequence[str]) -> CalibrationTable:
    """Return the table in a file, which may be a cache of TensorRT. Raises: InputError."""
    return caches.read(path, model, tensors) if caches.is_cache(path) else tables.read(path)


def without_repairs(wanted: Collection[str], cache: Path | None) -> Collection[str]:
    """Return which repairs are tried: none where a cache is written of the file as it is.

    Raises: OptionError where the user named some.
    """
    if cache is None:
        return wanted
    if set(wanted) - {"auto", "none"}:
        raise OptionError(
            "a calibration cache is of the model as it is, and repairs change it",
            fix="leave --repair or --write-cache out",
        )
    return ("none",)


def write_cache(path: Path | None, placed: Placement, table: CalibrationTable) -> tuple[str, ...]:
    """Write a cache where one is asked for; return what is said of it. Raises: OutputError."""
    if path is None:
        return ()
    steps = caches.steps(placed, table)
    if table.factors:
        raise OptionError(
            "the table is of a model with scaled channels, and a cache of the model as it is",
            fix="calibrate anew with --repair none",
        )
    caches.write(path, steps)
    return (f"{len(steps)} steps written to {path}, for TensorRT 10 and before; no repairs tried",)
