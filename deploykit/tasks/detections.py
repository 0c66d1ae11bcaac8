"""The objects that a detector finds in an image."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.tasks.masks import Pasting


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first."""

    boxes: Floats
    """float32[N, 4]: x1, y1, x2, y2 in pixels of the original image."""
    scores: Floats
    """float32[N], 0 to 1."""
    classes: NDArray[np.int64]
    """int64[N], indices into the model's class names."""
    masks: Floats | None = None
    """float32[N, S, S], 0 to 1: the mask of each object on an even grid over its box, before
    that box was clipped to the image (`frames`)."""
    frames: Floats | None = None
    """float32[N, 4]: the boxes that `masks` span, x1, y1, x2, y2 in pixels of the original image;
    None: `boxes`."""
    pasting: Pasting = "rounded"
    """How `masks` are brought to pixels, see `tasks.masks`."""
    keypoints: Floats | None = None
    """float32[N, K, 3]: x, y in pixels of the original image, and a score (a logit)."""

    def only(self, kept: NDArray[np.bool_]) -> Detections:
        """Return those objects of which `kept`, bool[N], says so."""
        if kept.all():
            return self
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = {name: value[kept] for name, value in named.items() if hasattr(value, "shape")}
        return replace(self, **rows)


class Decode(Protocol):
    """Turns a model's outputs for a batch into one result per image."""

    def __call__(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[Detections]:
        """Return one Detections per geometry, coordinates in original pixels."""
        ...
