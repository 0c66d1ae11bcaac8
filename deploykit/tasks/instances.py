"""Instance segmentation: objects with masks, scored by COCO average precision of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deploykit.tasks.detection import Detection

if TYPE_CHECKING:
    from deploykit.tasks.coco import Part


@dataclass(frozen=True)
class Instances(Detection):
    """The objects in an image, each with a class, a box and a mask."""

    parts: ClassVar[tuple[Part, ...]] = ("bbox", "segm")
