"""torchvision's two-stage models, in the sizes that the weights of a checkpoint say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn
from torchvision.models import detection as zoo
from torchvision.models.detection import backbone_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead

from deploykit.networks import bodies, mpvit, swin_dense
from deploykit.networks.detectors import light, mask_scoring, point_rend
from deploykit.networks.detectors.settings import anchored
from deploykit.networks.detectors.transformer_pyramid import Pyramid
from deploykit.networks.states import COLOURS, check_colours, children, inputs, outputs

if TYPE_CHECKING:
    from deploykit.networks.detectors.settings import Levels
    from deploykit.recipes.recipe import StateDict

Head: TypeAlias = Literal["boxes", "masks", "mask_scores", "mask_points", "keypoints"]
"""What the network finds: boxes alone, masks, masks with scores of their own or of doubtful points
computed anew, or keypoints."""


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
DETECTRON2 = {
    f"detectron2_{body}_fpn": body for body in ("resnet50", "resnet101", "resnext101_32x8d")
}
BENCHMARK = {
    f"maskrcnn_benchmark_{body}_fpn": body for body in ("resnet50", "resnet101", "resnext101_32x8d")
}
MMDET = {
    f"mmdet_{body}_fpn": body
    for body in (
        *("resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d"),
        *(f"swin_{size}" for size in swin_dense.BODIES),
    )
}
"""They find boxes and masks, no keypoints."""
MPVIT = {f"detectron2_mpvit_{size}_fpn": f"mpvit_{size}" for size in mpvit.SIZES}
_BODY = {**DETECTRON2, **BENCHMARK, **MMDET, **MPVIT}
COMMON = (
    *(f"{body}_fpn" for body in BODIES if body != LIGHT),
    *(EPS0, *DETECTRON2, *BENCHMARK, *MPVIT),
)
_MODELS = {
    "boxes": zoo.FasterRCNN,
    "masks": zoo.MaskRCNN,
    "mask_scores": zoo.MaskRCNN,
    "mask_points": zoo.MaskRCNN,
    "keypoints": zoo.KeypointRCNN,
}
OWN = {
    ("boxes", V2): zoo.fasterrcnn_resnet50_fpn_v2,
    ("masks", V2): zoo.maskrcnn_resnet50_fpn_v2,
    ("boxes", MOBILE): zoo.fasterrcnn_mobilenet_v3_large_fpn,
    ("boxes", MOBILE_320): zoo.fasterrcnn_mobilenet_v3_large_320_fpn,
}
"""Networks that torchvision has a function for, since they differ in more than the body."""
STAGES = (1, 2, 3, 4)
"""Stages of the body that the pyramid starts from: strides 4 to 32."""


@dataclass(frozen=True)
class Sizes:
    """What the weights say of what a variant leaves open."""

    classes: int
    """The background not among them."""
    keypoints: int = 17
    anchors: int = 3
    """Per cell of each level."""
    stages: tuple[int, ...] = STAGES
    """Of the body, whose features make the pyramid."""
    scores: mask_scoring.Widths | None = None
    """Of the head of the masks' scores; None: the variant's own."""
    points: point_rend.Widths | None = None
    """Of PointRend's heads; None: the variant's own."""


def sizes(state: StateDict, classes: int) -> Sizes:
    """Return the sizes in a state dict; `classes`: the background not among them.

    Raises: CheckpointError where images would not fit the first convolution.
    """
    found = Sizes(classes)
    first = inputs(
        state,
        *(
            f"backbone.body.{key}.weight"
            for key in ("conv1", "0.0", "stem.0.conv", "patch_embed.proj")
        ),
    )
    check_colours(COLOURS if first is None else first)
    points = state.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")
    return Sizes(
        classes,
        found.keypoints if points is None else int(points.shape[1]),
        outputs(state, "rpn.head.cls_logits.weight") or found.anchors,
        stages(state),
        mask_scoring.widths(state),
        point_rend.widths(state),
    )


def stages(state: StateDict) -> tuple[int, ...]:
    """Return the stages of a ResNet whose features make its pyramid."""
    widths = {}
    for stage in STAGES:
        block = f"backbone.body.layer{stage}.0"
        last = outputs(state, f"{block}.conv3.weight") or outputs(state, f"{block}.conv2.weight")
        widths[last] = stage
    count = len(children(state, "backbone.fpn.inner_blocks"))
    channels = [inputs(state, f"backbone.fpn.inner_blocks.{i}.0.weight") for i in range(count)]
    return tuple(widths[c] for c in channels if c in widths) or STAGES


def body(state: StateDict) -> str | None:
    """Return the name of the body in a state dict, None where it is none of ours."""
    prefix = "backbone.body.layer"
    blocks = {tuple(k.removeprefix(prefix).split(".")[:2]) for k in state if k.startswith(prefix)}
    inner = state.get(f"{prefix}1.0.conv2.weight")
    if inner is None:
        return bodies.name(state, "backbone.body.")
    found = Body(
        tuple(sum(block[0] == str(stage) for block in blocks) for stage in STAGES),
        (int(inner.shape[0]), int(inner.shape[1])),
        f"{prefix}1.0.conv3.weight" in state,
    )
    return next((name for name, known in BODIES.items() if known == found), None)


def model(variant: str, wanted: Sizes, head: Head) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return torchvision's model of a variant with random weights, in eval mode."""
    classes = wanted.classes + 1
    own = OWN.get((head, variant))
    if variant == LIGHT:
        made: Any = light.light_mask_rcnn(wanted.classes)
    elif own is not None:
        made = own(weights=None, weights_backbone=None, num_classes=classes)
    else:
        more = {"num_keypoints": wanted.keypoints} if head == "keypoints" else {}
        made = _MODELS[head](_pyramid(variant, wanted), classes, **_levels(wanted), **more)
    if head == "mask_scores":
        usual = light.SCORES if variant == LIGHT else mask_scoring.Widths()
        channels, widths = made.backbone.out_channels, wanted.scores or usual
        made.roi_heads.maskiou = mask_scoring.MaskIou(channels, classes, widths)
    if head == "mask_points":
        made.roi_heads.mask_roi_pool = made.roi_heads.mask_predictor = None
        known = light.POINTS if variant == LIGHT else point_rend.Widths()
        made.roi_heads.mask_head = point_rend.PointRend(
            made.backbone.out_channels, wanted.classes, wanted.points or known
        )
    if variant == EPS0:
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return made.eval()


def _pyramid(variant: str, wanted: Sizes) -> nn.Module:
    name = _BODY.get(variant, re.sub("_fpn.*", "", variant))
    if name in bodies.NAMES:
        return Pyramid(name)
    found: nn.Module = backbone_utils.resnet_fpn_backbone(
        backbone_name=name,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=list(wanted.stages),
    )
    return found


def _levels(wanted: Sizes) -> dict[str, AnchorGenerator]:
    """Return what torchvision must be told of another number of levels than its own."""
    if wanted.stages == STAGES:
        return {}
    rows = tuple((32.0 * 2**i,) for i in range(len(wanted.stages) + 1))
    return {"rpn_anchor_generator": AnchorGenerator(rows, ((0.5, 1.0, 2.0),) * len(rows))}


def set_anchors(made: Any, sizes: Levels, ratios: Levels, per_cell: int) -> None:  # noqa: ANN401 - torchvision ships no types
    """Give a two-stage model these anchors, and a head for them. Raises: OptionError."""
    made.rpn.anchor_generator = anchored(made.rpn.anchor_generator, sizes, ratios, per_cell)
    set_head(made, per_cell)


def set_head(made: Any, per_cell: int) -> None:  # noqa: ANN401 - torchvision ships no types
    """Give a two-stage model a head for so many anchors in each cell, where it has another."""
    rpn = made.rpn
    if rpn.head.cls_logits.out_channels != per_cell:
        channels = rpn.head.cls_logits.in_channels
        rpn.head = RPNHead(channels, per_cell, conv_depth=len(rpn.head.conv)).eval()
