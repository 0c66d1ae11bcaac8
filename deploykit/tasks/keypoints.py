"""Keypoints: objects with points, scored by COCO average precision of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deploykit.tasks import coco
from deploykit.tasks.coco import AveragePrecision
from deploykit.tasks.detection import Detection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.tasks.coco import Part


@dataclass(frozen=True)
class Keypoints(Detection):
    """The objects in an image, each with a class, a box and points such as joints."""

    tolerances: tuple[float, ...] = coco.PERSON
    """Of each point over the object's scale, as annotators disagree; by default a person's 17."""
    parts: ClassVar[tuple[Part, ...]] = ("bbox", "keypoints")

    def metric(self, categories: Mapping[int, str], classes: Sequence[str], /) -> AveragePrecision:
        """Return a fresh COCO average precision. Raises: DataError, BackendError."""
        return AveragePrecision(categories, classes, self.parts, self.tolerances)
