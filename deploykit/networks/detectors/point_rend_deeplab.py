"""PointRend on DeepLabV3: a dilated ResNet's scores, whose doubtful points are computed anew.

Source: PointRend (arXiv 1912.08193, section 5.1) and DeepLabV3 (arXiv 1706.05587); the names of
parameters are those of the project zsef123/PointRend-PyTorch, whose form this is: one layer for a
point, which reads the scores of this moment, from the stage of stride 8. The code is written from
the papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from deploykit.networks.detectors.point_layers import linear, row
from deploykit.networks.detectors.point_rend_semantic import Doubt, refined
from deploykit.networks.detectors.point_tables import Places, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

POINTS, STRIDE, FINE, DEEP = 8096, 8, 512, 2048
"""Points of a step; input pixels to a cell of the coarse map; channels of the stage that points
read, and of the last one."""
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
LARGE = {"resnet53": "resnet50", "resnet103": "resnet101"}
"""Bodies whose first convolution is 3x3 and leaves the size: their maps are twice as large."""


class DeepLab(nn.Module):
    """A ResNet without strides in its last two stages, and the scores that it comes to."""

    def __init__(self, body: str, classes: int) -> None:
        """Make the layers."""
        super().__init__()
        dilated = [False, True, True]
        blocks = list(BLOCKS[LARGE.get(body, body)])
        made = resnet.ResNet(resnet.Bottleneck, blocks, replace_stride_with_dilation=dilated)
        if body in LARGE:
            made.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.backbone = IntermediateLayerGetter(made, {"layer2": "fine", "layer4": "out"})
        self.classifier = DeepLabHead(DEEP, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features float32[B, FINE, h, w] and logits float32[B, classes, h, w]."""
        found = self.backbone(images)
        return found["fine"], self.classifier(found["out"])


class Points(nn.Module):
    """What a point is, from the scores and the features there; a convolution along the points."""

    def __init__(self, classes: int) -> None:
        """Make the layers."""
        super().__init__()
        self.mlp: nn.Module = nn.Conv1d(classes + FINE, classes, 1)
        self.places, self.doubt = Places(), Doubt(POINTS)

    def forward(self, fine: Tensor, coarse: Tensor, sides: Sequence[int]) -> Tensor:
        """Return logits float32[B, classes, *sides] of features and logits, see `DeepLab`."""
        table = Table(fine)
        image = torch.arange(coarse.shape[0], dtype=torch.int32)

        def answers(chosen: Tensor, points: Tensor, logits: Tensor) -> Tensor:
            index = chosen.unsqueeze(1).expand(-1, logits.shape[1], -1)
            own = logits.flatten(2).gather(2, index).transpose(1, 2)  # a point is a cell's centre
            read = table.read(self.places(points, image, table.sides))
            rows = torch.cat([own, read], -1)
            found = row(self.mlp, rows.flatten(0, 1))
            return found.reshape(-1, rows.shape[1], found.shape[1])

        steps = (int(sides[1]) // int(coarse.shape[3])).bit_length() - 1
        return refined(coarse, steps, self.doubt, answers, aligned=True)

    def folded(self) -> nn.Module:
        """Return the same with a linear layer."""
        return FoldedPoints(self)


class FoldedPoints(nn.Module):
    """What `Points` becomes."""

    def __init__(self, source: Points) -> None:
        """Take the weights of `source`."""
        super().__init__()
        assert isinstance(source.mlp, nn.Conv1d)
        self.mlp: nn.Module = linear(source.mlp)
        self.places, self.doubt = source.places, source.doubt

    forward = Points.forward


class Segmenter(nn.Module):
    """The whole network."""

    def __init__(self, body: str, classes: int) -> None:
        """Make the network as it is trained."""
        super().__init__()
        self.backbone, self.head = DeepLab(body, classes), Points(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[B, classes, H, W] of images float32[B, 3, H, W].

        H and W are multiples of STRIDE.
        """
        fine, coarse = self.backbone(images)
        return cast("Tensor", self.head(fine, coarse, images.shape[2:]))
