"""Ways of preparing images that many models share, for files that do not say theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, as shares of 255. Source: torchvision, references/classification."""
_ANY = (1, 1)
"""Stands for the size, which the model says."""


@dataclass(frozen=True)
class Preset:
    """One way."""

    says: str
    made: Preprocess
    """For an input of any size."""
    colours: bool = False
    """Whether its means are those of three colours, which a grey image has not."""

    def sized(self, size: tuple[int, int]) -> Preprocess:
        """Return it for inputs of `size` (H, W)."""
        return replace(self.made, size=size)


PRESETS: Mapping[str, Preset] = {
    "imagenet": Preset(
        "short side to size / 0.875, centre crop, ImageNet's mean and deviation (torchvision)",
        Preprocess(_ANY, "crop", mean=MEAN, std=STD, rounding="down", centre="even"),
        colours=True,
    ),
    "yolo": Preset(
        "fitted inside and padded with 114 on both sides, 0 to 1 (Ultralytics, YOLOv5 to 11)",
        Preprocess(_ANY, "letterbox", resampler="cv2-linear"),
    ),
    "coco": Preset(
        "fitted inside at the top left, ImageNet's mean and deviation, zero beside the image "
        "(DETR, detectors of torchvision)",
        Preprocess(_ANY, "corner", mean=MEAN, std=STD, pad_value=None),
        colours=True,
    ),
    "unit": Preset("stretched, 0 to 1", Preprocess(_ANY, "stretch")),
    "raw": Preset("stretched, 0 to 255", Preprocess(_ANY, "stretch", scale=1.0)),
}
"""Name -> way."""
