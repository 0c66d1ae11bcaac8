"""A light Mask R-CNN for small images, made of torchvision's own classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision.models import resnet
from torchvision.models.detection import MaskRCNN, anchor_utils, backbone_utils, faster_rcnn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from deploykit.networks.detectors import mask_scoring, point_rend

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTHS = (32, 64, 128, 256)
"""Channels of the four stages: half of ResNet-18's."""
PYRAMID, HIDDEN, MASKS = 48, 256, (64, 64)
"""Channels of the pyramid, of the box head's two layers, and of the mask head's layers."""
SCORES = mask_scoring.Widths(convolutions=48, hidden=64)
"""Of Mask Scoring R-CNN's head."""
POINTS = point_rend.Widths(points=64, reduced=32, hidden=128)
"""Of PointRend's heads."""
ANCHORS = (24, 40, 64, 104, 160)
"""Sides in pixels, one per level, for objects of about 15 to 180 pixels."""
RATIOS = (0.5, 1.0, 2.0)
CANDIDATES, PROPOSALS, DETECTIONS = 500, 200, 50
"""Anchors per level that enter the proposals' NMS; proposals and objects per image."""


def narrow_resnet18(widths: Sequence[int]) -> nn.Module:
    """Return ResNet-18 with fewer channels, batch norms trained, weights random."""
    body: Any = resnet.resnet18()
    body.inplanes = widths[0]
    body.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
    body.bn1 = nn.BatchNorm2d(widths[0])
    for stage, width in enumerate(widths, start=1):
        layer = body._make_layer(resnet.BasicBlock, width, 2, stride=1 if stage == 1 else 2)  # noqa: SLF001 - the constructor fixes the widths
        setattr(body, f"layer{stage}", layer)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    network: nn.Module = body
    return network


def light_mask_rcnn(classes: int) -> MaskRCNN:
    """Return the network for `classes` kinds of object, background not counted."""
    levels = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    backbone = backbone_utils.BackboneWithFPN(
        narrow_resnet18(WIDTHS), levels, list(WIDTHS), PYRAMID, norm_layer=nn.BatchNorm2d
    )
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=anchor_utils.AnchorGenerator(
            tuple((side,) for side in ANCHORS), (RATIOS,) * len(ANCHORS)
        ),
        rpn_pre_nms_top_n_test=CANDIDATES,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_head=faster_rcnn.TwoMLPHead(PYRAMID * 7 * 7, HIDDEN),
        box_predictor=faster_rcnn.FastRCNNPredictor(HIDDEN, classes + 1),
        box_detections_per_img=DETECTIONS,
        mask_head=MaskRCNNHeads(PYRAMID, MASKS, 1, norm_layer=nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(MASKS[-1], MASKS[-1], classes + 1),
    )
