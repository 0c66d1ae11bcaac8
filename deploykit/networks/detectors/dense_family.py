"""What the recipes of torchvision's dense detectors share: checkpoints, images, names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights, backbone_utils
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from deploykit.data.preprocess import Preprocess
from deploykit.recipes.recipe import KeepFloat, Variant
from deploykit.tasks.outputs import Output
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.recipes.recipe import StateDict

OUTPUTS = (
    Output("boxes", "boxes"),
    Output("scores", "scores"),
    Output("classes", "classes"),
    Output("count", "count"),
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIMITS, CANVAS = (800, 1333), (800, 1344)
"""Short and longest long side of an image, and what holds it where it is wider than high."""
STAGES = (2, 3, 4)
"""Stages of the body that the pyramid starts from: strides 8, 16 and 32."""
BODIES = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
"""Name in torchvision -> blocks of each stage, and whether they are bottlenecks."""
WIDTH = 64
"""Channels inside the blocks of the first stage; ResNeXt and wide ResNets have more."""


def pyramid(body: str, *, from_features: bool = False) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return a ResNet with a pyramid of five levels, strides 8 to 128, weights random.

    from_features: whether the sixth level is made from the body's last features, not the
    pyramid's.
    """
    channels = 256 if not from_features else 2048 if BODIES[body][1] else 512
    return backbone_utils.resnet_fpn_backbone(
        backbone_name=body,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=list(STAGES),
        extra_blocks=LastLevelP6P7(channels, 256),
    )


def body(state: StateDict) -> str | None:
    """Return the name of the ResNet in a state dict, None where it is none of `BODIES`."""
    prefix = "backbone.body.layer"
    blocks = {tuple(k.removeprefix(prefix).split(".")[:2]) for k in state if k.startswith(prefix)}
    depths = tuple(sum(block[0] == str(stage) for block in blocks) for stage in range(1, 5))
    inner = state.get(f"{prefix}1.0.conv2.weight")
    if inner is None or tuple(inner.shape[:2]) != (WIDTH, WIDTH):
        return None
    found = depths, f"{prefix}1.0.conv3.weight" in state
    return next((name for name, expected in BODIES.items() if expected == found), None)


_OLD_PYRAMID = re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$")


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of torchvision 0.13 or later.

    Before, a convolution of the pyramid was not in a sequence of its own.
    """
    return {_OLD_PYRAMID.sub(r"\1.0.\2", key): value for key, value in state.items()}


def torchvisions(size: tuple[int, int]) -> Preprocess:
    """Return how torchvision's detectors prepare an image for a canvas of `size` (H, W)."""
    return Preprocess(
        size,
        resize="corner",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pad_value=None,
        resampler="torch",
        rounding="down",
    )


PREPROCESS = torchvisions(CANVAS).turned().at_scale(*LIMITS)
"""torchvision's: sides of 800 to 1333 pixels, at the top left, mean and deviation."""


def class_names(count: int) -> tuple[str, ...]:
    """Return the names of COCO's 91 categories, the first for none; numbers for other counts.

    These networks have an output for every label, and none for the background: a label that was
    never used in training, as 0 is by torchvision's, is a class that is never found.
    """
    return coco_names(0) if count == len(coco_names(0)) else numbered(count)


def coco_names(first: int) -> tuple[str, ...]:
    """Return torchvision's names of COCO's labels from `first` on; label 0 is the background."""
    names: Sequence[str] = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(names[first:])


def numbered(count: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(f"class{i}" for i in range(count))


SELECT = (
    KeepFloat(
        r"^select\b",
        "ranking of scores, and boxes in pixels: above 512 px neighbouring FP16 numbers are "
        "0.5 px apart",
        Precision.FP32,
    ),
)
KEEP_FLOAT = (
    KeepFloat(
        r"^head\.(classification|regression)_head\.(cls_logits|bbox_reg|bbox_ctrness)\b",
        "their outputs are the scores and box sides themselves: 255 levels over all classes or "
        "sides merge scores and move boxes",
    ),
    *SELECT,
)
VARIANT = Variant(PREPROCESS, KEEP_FLOAT, features=("backbone.fpn",))
"""The contract of every variant: the pyramid's levels are what is distilled."""
