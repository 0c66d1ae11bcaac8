"""The truth about the objects in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.values import Json


@dataclass(frozen=True)
class ImageAnnotations:
    """The truth about one image, as the COCO format has it."""

    image_id: int
    """Unique in its set; of equal scores that of the lesser id counts first."""
    annotations: Sequence[Json]
    """Each with `category_id`, `bbox`, `area` and `iscrowd`; where they are known with
    `segmentation`, `keypoints` and `num_keypoints`."""
    size: tuple[int, int] | None = None
    """Height and width, as far as the set says them."""
