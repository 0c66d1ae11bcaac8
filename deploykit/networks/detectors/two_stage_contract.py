"""What all of deploykit may know of a two-stage detector: its images, and what stays in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.networks.detectors import dense_family, layouts
from deploykit.networks.detectors.two_stage_models import LIGHT, MOBILE_320
from deploykit.recipes.recipe import KeepFloat, Variant
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIZES = {MOBILE_320: (320, 640), LIGHT: (320, 320)}
"""Input height and width where they are not 800x1344."""


def preprocess(variant: str) -> Preprocess:
    """Return torchvision's, see `dense_family.PREPROCESS`, or those of a variant's project.

    The light network was trained on letterboxed images.
    """
    if variant == LIGHT:
        mean, std = MEAN, STD
        return Preprocess(_SIZES[LIGHT], mean=mean, std=std)
    if variant == MOBILE_320:
        prepared = dense_family.torchvisions(_SIZES[variant])
        return prepared.turned().at_scale(*_SIZES[variant])
    layout = layouts.of_variant(variant)
    if layout is None:
        return dense_family.PREPROCESS
    settings = layout.choices(variant, {})
    own: Any = {name: settings[name].assumed for name in ("mean", "std", "channels")}
    prepared = Preprocess(
        dense_family.CANVAS,
        resize="corner",
        scale=1.0,
        **own,
        pad_value=None,
        **layout.IMAGES,
    )
    return prepared.turned().at_scale(*dense_family.LIMITS)


def variants(names: Iterable[str]) -> dict[str, Variant]:
    """Return the contract of each variant: the pyramid's levels are what is distilled."""
    return {
        name: Variant(preprocess(name), KEEP_FLOAT, features=("backbone.fpn",)) for name in names
    }


KEEP_FLOAT = (
    KeepFloat(
        r"^rpn\.head\.(cls_logits|bbox_pred)\b",
        "1x1 convolutions whose outputs rank the proposals and place them: 255 levels would merge "
        "scores and move boxes, and their cost is small",
    ),
    KeepFloat(
        r"^roi_heads\.box_predictor\b",
        "its outputs are the class scores and box sides themselves, which INT8 would round, and "
        "their cost is small",
    ),
    KeepFloat(
        r"^roi_heads\.(mask_predictor\.mask_fcn_logits|keypoint_predictor)\b",
        "its outputs are the masks or heatmaps themselves, and their cost is small",
    ),
    KeepFloat(
        r"^roi_heads\.maskiou\.predictor\b",
        "its outputs are the scores of the masks themselves, and their cost is small",
    ),
    KeepFloat(
        r"^roi_heads\.mask_head\.(places|doubt)\b",
        "places of points in cells of the map, and the ranking of points: above 512 cells "
        "neighbouring FP16 numbers are half a cell apart",
        Precision.FP32,
    ),
    KeepFloat(
        r"^(propose|select)\b",
        "anchors, boxes in pixels and the ranking of scores: above 512 px neighbouring FP16 "
        "numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
