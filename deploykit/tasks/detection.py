"""Detection: objects in boxes, scored by COCO average precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deploykit.tasks import decoding, painting
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.coco import AveragePrecision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.data.preprocess import Floats, Geometry, Pixels
    from deploykit.tasks.coco import Part
    from deploykit.tasks.detections import Decode, Detections


@dataclass(frozen=True)
class Detection:
    """The objects in an image, each with a class and a box."""

    read: Decode = decoding.objects
    """Outputs -> objects; by default by the form of the outputs."""
    parts: ClassVar[tuple[Part, ...]] = ("bbox",)
    """What is scored; the last gives the primary metric."""

    def decode(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[Detections]:
        """Return the objects in each image, best first, in its own pixels."""
        return self.read(outputs, geometries)

    def metric(self, categories: Mapping[int, str], classes: Sequence[str], /) -> AveragePrecision:
        """Return a fresh COCO average precision. Raises: DataError, BackendError."""
        return AveragePrecision(categories, classes, self.parts)

    def agreement(self) -> PaddedRows:
        """Return a pairing of padded rows; other outputs are compared in order."""
        return PaddedRows()

    def draw(self, image: Pixels, result: Detections, classes: Sequence[str], /) -> Pixels:
        """Return the image with boxes, class names and scores."""
        return painting.objects(image, result, classes)
