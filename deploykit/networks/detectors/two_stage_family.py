"""What the recipes of torchvision's two-stage detectors share: checkpoints, images, precision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn
from torchvision.models import detection as zoo
from torchvision.models.detection import backbone_utils

from deploykit.data.preprocess import Preprocess
from deploykit.networks.detectors import dense_family, detectron2_layout, light
from deploykit.networks.detectors.two_stage import TwoStage
from deploykit.networks.reparam import Phases, fold
from deploykit.networks.states import outputs
from deploykit.recipes.recipe import KeepFloat, Variant
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.recipes.recipe import StateDict

Head: TypeAlias = Literal["boxes", "masks", "keypoints"]
"""What the network finds: boxes alone, or masks or keypoints too."""
OUTPUTS = dense_family.OUTPUTS
PEOPLE = "person"
"""The only class of COCO's keypoints."""


@dataclass(frozen=True)
class Body:
    """What tells one ResNet from another in a state dict."""

    blocks: tuple[int, ...]
    inner: tuple[int, int] = (64, 64)
    """Channels out and, per group, in of the second convolution of the first block."""
    bottleneck: bool = True


LIGHT = "light"
"""Half a ResNet-18 and narrow heads, for images of 320x320: see `deploykit.detectors.light`."""
BODIES = {
    "resnet18": Body((2, 2, 2, 2), bottleneck=False),
    LIGHT: Body((2, 2, 2, 2), (light.WIDTHS[0], light.WIDTHS[0]), bottleneck=False),
    "resnet34": Body((3, 4, 6, 3), bottleneck=False),
    "resnet50": Body((3, 4, 6, 3)),
    "resnet101": Body((3, 4, 23, 3)),
    "resnet152": Body((3, 8, 36, 3)),
    "resnext50_32x4d": Body((3, 4, 6, 3), (128, 4)),
    "resnext101_32x8d": Body((3, 4, 23, 3), (256, 8)),
    "resnext101_64x4d": Body((3, 4, 23, 3), (256, 4)),
    "wide_resnet50_2": Body((3, 4, 6, 3), (128, 128)),
    "wide_resnet101_2": Body((3, 4, 23, 3), (128, 128)),
}
V2 = "resnet50_fpn_v2"
"""torchvision's improved recipe: norms in the pyramid and the heads."""
EPS0 = "resnet50_fpn_eps0"
"""torchvision's published COCO_V1 weights, and what was trained from them: their frozen batch norms
have an epsilon of 0. Weights trained from a published backbone alone have 1e-5: `resnet50_fpn`."""
MOBILE, MOBILE_320 = "mobilenet_v3_large_fpn", "mobilenet_v3_large_320_fpn"
DETECTRON2 = {f"detectron2_{body}_fpn": body for body in ("resnet50", "resnet101")}
COMMON = (*(f"{body}_fpn" for body in BODIES if body != LIGHT), EPS0, *DETECTRON2)
_MODELS = {"boxes": zoo.FasterRCNN, "masks": zoo.MaskRCNN, "keypoints": zoo.KeypointRCNN}
_OWN = {
    ("boxes", V2): zoo.fasterrcnn_resnet50_fpn_v2,
    ("masks", V2): zoo.maskrcnn_resnet50_fpn_v2,
    ("boxes", MOBILE): zoo.fasterrcnn_mobilenet_v3_large_fpn,
    ("boxes", MOBILE_320): zoo.fasterrcnn_mobilenet_v3_large_320_fpn,
}
"""Networks that torchvision has a function for, since they differ in more than the body."""


def network(variant: str, classes: int, head: Head) -> TwoStage:
    """Return the network of a variant as it was trained, in eval mode.

    classes: the background not among them.
    """
    if variant == LIGHT:
        return TwoStage(light.light_mask_rcnn(classes)).eval()
    own = _OWN.get((head, variant))
    if own is not None:
        model = own(weights=None, weights_backbone=None, num_classes=classes + 1)
        return TwoStage(model).eval()
    body = DETECTRON2.get(variant, re.sub("_fpn.*", "", variant))
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name=body, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    model = _MODELS[head](backbone, classes + 1)
    if variant == EPS0:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return (detectron2_layout.configure(model) if variant in DETECTRON2 else TwoStage(model)).eval()


def deploy(network: nn.Module) -> nn.Module:
    """Return a copy with batch norms folded, and the masks' upsampling in ops that INT8 has."""
    folded = fold(network)
    predictor: Any = folded.get_submodule("roi_heads").mask_predictor
    if predictor is not None and Phases.replaces(predictor.conv5_mask):
        predictor.conv5_mask = Phases(predictor.conv5_mask, predictor.relu)
        predictor.relu = nn.Identity()
    return folded


_OLD = (
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"\.mask_head\.mask_fcn(\d)\."), lambda m: f".mask_head.{int(m[1]) - 1}.0."),
)


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of torchvision 0.13 or later, from older ones or detectron2's.

    The published COCO_V1 files have the older ones.
    """
    if detectron2_layout.is_own(state):
        return detectron2_layout.adapt(state)
    return {_renamed(key): value for key, value in dense_family.adapt(state).items()}


def _renamed(key: str) -> str:
    for pattern, name in _OLD:
        key = pattern.sub(name, key)
    return key


_PREDICTORS: Mapping[str, str] = {
    "masks": "roi_heads.mask_predictor.",
    "keypoints": "roi_heads.keypoint_predictor.",
}


def identify(state: StateDict, head: Head) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is another network."""
    found = {kind for kind, key in _PREDICTORS.items() if any(k.startswith(key) for k in state)}
    classes = outputs(state, "roi_heads.box_predictor.cls_score.weight")
    if classes is None or found != {head} - {"boxes"} or "rpn.head.cls_logits.weight" not in state:
        return None
    variant = _variant(state)
    return None if variant is None else (variant, classes - 1)


def _variant(state: StateDict) -> str | None:
    if "backbone.body.0.0.weight" in state:
        return MOBILE
    body = _body(state)
    if body is None or body == LIGHT:
        return body
    if detectron2_layout.MARK in state:
        return f"detectron2_{body}_fpn"
    if "backbone.fpn.inner_blocks.0.1.weight" in state:
        return V2
    frozen = not any(key.endswith("num_batches_tracked") for key in state)
    return EPS0 if frozen and body == "resnet50" else f"{body}_fpn"


def _body(state: StateDict) -> str | None:
    """Return the name of the ResNet in a state dict, None where it is none of `BODIES`."""
    prefix = "backbone.body.layer"
    blocks = {tuple(k.removeprefix(prefix).split(".")[:2]) for k in state if k.startswith(prefix)}
    inner = state.get(f"{prefix}1.0.conv2.weight")
    if inner is None:
        return None
    found = Body(
        tuple(sum(block[0] == str(stage) for block in blocks) for stage in range(1, 5)),
        (int(inner.shape[0]), int(inner.shape[1])),
        f"{prefix}1.0.conv3.weight" in state,
    )
    return next((name for name, body in BODIES.items() if body == found), None)


_SIZES = {MOBILE_320: (320, 640), LIGHT: (320, 320)}
"""Input height and width where they are not 800x1344."""


def preprocess(variant: str) -> Preprocess:
    """Return torchvision's, see `dense_family.PREPROCESS`, or detectron2's for its variants.

    The light network was trained on letterboxed images.
    """
    if variant == LIGHT:
        mean, std = dense_family.IMAGENET_MEAN, dense_family.IMAGENET_STD
        return Preprocess(_SIZES[LIGHT], mean=mean, std=std)
    if variant == MOBILE_320:
        prepared = dense_family.torchvisions(_SIZES[variant])
        return prepared.turned().at_scale(*_SIZES[variant])
    if variant not in DETECTRON2:
        return dense_family.PREPROCESS
    prepared = Preprocess(
        dense_family.CANVAS,
        resize="corner",
        channels="BGR",
        scale=1.0,
        mean=detectron2_layout.MEAN_BGR,
        pad_value=None,
        rounding="half-up",
    )
    return prepared.turned().at_scale(*dense_family.LIMITS)


def variants(names: Iterable[str]) -> dict[str, Variant]:
    """Return the contract of each variant: the pyramid's levels are what is distilled."""
    return {
        name: Variant(preprocess(name), KEEP_FLOAT, features=("backbone.fpn",)) for name in names
    }


def class_names(count: int) -> tuple[str, ...]:
    """Return COCO's names: of its 90 labels (torchvision), 80 classes (detectron2), or people."""
    labels = dense_family.coco_names(1)
    known: dict[int, tuple[str, ...]] = {
        len(names): names
        for names in (labels, tuple(name for name in labels if name != "N/A"), (PEOPLE,))
    }
    return known.get(count) or dense_family.numbered(count)


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
        r"^(propose|select)\b",
        "anchors, boxes in pixels and the ranking of scores: above 512 px neighbouring FP16 "
        "numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
