"""Instance segmentation: objects with masks, scored by COCO average precision of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploykit.tasks.detection import Detection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.tasks.coco import Part
    from deploykit.tasks.detections import Detections
    from deploykit.tasks.masks import Pasting


@dataclass(frozen=True)
class Instances(Detection):
    """The objects in an image, each with a class, a box and a mask."""

    parts: ClassVar[tuple[Part, ...]] = ("bbox", "segm")
    pasting: Pasting = "rounded"
    """How the family of the network brings masks to pixels."""

    def decode(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[Detections]:
        """Return the objects in each image, best first, in its own pixels."""
        found = [replace(one, pasting=self.pasting) for one in self.read(outputs, geometries)]
        if self.pasting == "whole":
            pairs = zip(found, geometries, strict=True)
            return [replace(one, frames=_spanned(one, where)) for one, where in pairs]
        return found


def _spanned(found: Detections, geometry: Geometry) -> Floats:
    """Return the whole input for each object, float32[N, 4] in the image's own pixels."""
    height, width = geometry.canvas or (geometry.height, geometry.width)
    whole = geometry.unclipped(np.array([[0, 0, width, height]], np.float32))
    return whole.repeat(len(found.scores), 0)
