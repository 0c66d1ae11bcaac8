"""What the recipes of the VGG-16 detectors share: checkpoints, images, names, precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.networks.class_names import numbered
from deploykit.networks.detectors import dense_family
from deploykit.networks.detectors.vgg import VARIANTS
from deploykit.networks.states import outputs
from deploykit.recipes.recipe import KeepFloat, Variant
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict

MEAN_BGR = (102.9801, 115.9465, 122.7717)
"""Of the images that the published VGG-16 was trained with, 0 to 255."""
LIMITS = (600, 1000)
"""Short and longest long side of an image."""
OUTPUTS = dense_family.OUTPUTS


_PORT = (
    (re.compile(r"^RCNN_base\."), "features."),
    (re.compile(r"^RCNN_rpn\.RPN_Conv\."), "rpn.conv."),
    (re.compile(r"^RCNN_rpn\.RPN_"), "rpn."),
    (re.compile(r"^RCNN_top\.0\."), "head.fc6."),
    (re.compile(r"^RCNN_top\.3\."), "head.fc7."),
    (re.compile(r"^RCNN_(?=cls_score|bbox_pred)"), "head."),
)


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys used here, from those or the PyTorch port's."""
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    for pattern, new in _PORT:
        key = pattern.sub(new, key)
    return key


def identify(state: StateDict, *, proposals: bool) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is another network.

    `proposals`: whether the network finds its own regions.
    """
    classes = outputs(state, "head.cls_score.weight")
    if classes is None or outputs(state, "features.28.weight") != VARIANTS["vgg16"].widths[-1]:
        return None
    if proposals != ("rpn.conv.weight" in state):
        return None
    found = (outputs(state, "rpn.cls_score.weight"), outputs(state, "head.bbox_pred.weight"))
    for name, settings in VARIANTS.items():
        anchors = 2 * len(settings.scales) * len(settings.ratios) if proposals else None
        if found == (anchors, 4 if settings.agnostic else 4 * classes):
            return name, classes - 1
    return None


_PREPROCESS = Preprocess(
    LIMITS,
    resize="corner",
    channels="BGR",
    scale=1.0,
    mean=MEAN_BGR,
    pad_value=None,
    resampler="cv2-float",
    rounding="even",
    mapping="ratio",
)
PREPROCESS = _PREPROCESS.turned().at_scale(*LIMITS)
"""The Caffe detectors': BGR from 0 to 255 less a mean, at most 600x1000 pixels."""

KEEP_FLOAT = (
    KeepFloat(
        r"^rpn\.(cls_score|bbox_pred)\b",
        "1x1 convolutions whose outputs rank the proposals and place them: 255 levels would merge "
        "scores and move boxes, and their cost is small",
    ),
    KeepFloat(
        r"^head\.(cls_score|bbox_pred)\b",
        "their outputs are the class scores and box sides themselves, which INT8 would round, and "
        "their cost is small",
    ),
    KeepFloat(
        r"\.select\b",
        "anchors and boxes in pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
)


def class_names(count: int) -> tuple[str, ...]:
    """Return the names of Pascal VOC's 20 or COCO's 80 classes; numbers for other counts."""
    coco = tuple(name for name in dense_family.coco_names(1) if name != "N/A")
    known = {len(names): names for names in (tuple(VOC.split()), coco)}
    return known.get(count) or numbered(count)


VARIANT = Variant(PREPROCESS, KEEP_FLOAT, size_multiple=1, features=("features",))
"""The contract of every variant: the map that all regions are read from is what is distilled."""
