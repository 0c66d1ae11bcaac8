"""The two benchmarks of Cityscapes, as values that a data set names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.tasks.cityscapes import predictions
from deploykit.tasks.cityscapes.objects import StreetObjects
from deploykit.tasks.cityscapes.pixels import StreetPixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Size = tuple[int, int]


@dataclass(frozen=True)
class PixelBenchmark:
    """Label maps: mIoU of 19 classes and 7 categories, iIoU."""

    def metric(self, known: Mapping[int, str], classes: Sequence[str], /) -> StreetPixels:
        """Return a fresh metric. Raises: DataError where the classes do not fit."""
        return StreetPixels(known, classes)

    def write(
        self, folder: Path, name: str, result: object, size: Size, classes: Sequence[str], /
    ) -> None:
        """Write a label map as the official scripts read it. Raises: DataError, OutputError."""
        del size
        predictions.write_pixels(folder, name, result, classes)


@dataclass(frozen=True)
class ObjectBenchmark:
    """Masks of objects: AP of 8 classes."""

    def metric(self, known: Mapping[int, str], classes: Sequence[str], /) -> StreetObjects:
        """Return a fresh metric. Raises: DataError where the classes do not fit."""
        return StreetObjects(known, classes)

    def write(
        self, folder: Path, name: str, result: object, size: Size, classes: Sequence[str], /
    ) -> None:
        """Write objects as the official scripts read them. Raises: DataError, OutputError."""
        predictions.write_objects(folder, name, result, size, classes)
