"""The networks of YOLOv6: releases 0.2 (RepPAN neck), 0.3 and 0.4 (RepBiFPAN neck), and `pico`.

Source: the YOLOv6 reports (arXiv 2209.02976 and 2301.05586) for the architecture, and the names
and shapes in the official checkpoints; the code is written from those descriptions.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from deploykit.networks.blocks import QARepVGGBlock, SearchBlock, VGGBlock
from deploykit.networks.reparam import RepVGGBlock
from deploykit.networks.yolov6 import layers
from deploykit.networks.yolov6.layers import conv

if TYPE_CHECKING:
    from deploykit.networks.yolov6.architecture import Architecture
    from deploykit.networks.yolov6.layers import Pair, Raw

STRIDES = (8, 16, 32)
"""Input pixels per cell of the three prediction levels."""
BN_EPS, BN_MOMENTUM = 1e-3, 0.03
"""Not PyTorch's defaults: with 1e-5 the official weights load and give wrong results."""


class Builder:
    """Makes the stages that one architecture is composed of."""

    def __init__(self, architecture: Architecture) -> None:
        """Keep what every stage needs."""
        self.architecture = architecture
        self.channels = architecture.channels
        self.act: type[nn.Module] = nn.SiLU if architecture.activation == "silu" else nn.ReLU

    def block(self, channels: Pair, stride: int = 1) -> nn.Module:
        """Return the basic 3x3 block."""
        kind = self.architecture.block
        match kind:
            case "repvgg":
                return RepVGGBlock(channels, stride=stride)
            case "qarepvgg" | "qarepvggv2":
                return QARepVGGBlock(channels, stride=stride, average=kind == "qarepvggv2")
            case "hyper_search":
                return SearchBlock(channels, stride=stride)
            case "repopt":
                return VGGBlock(channels, stride=stride)
            case "conv":
                return conv(channels, 3, stride, self.act)
            case _:
                assert_never(kind)

    def stage(self, channels: Pair, index: int) -> nn.Module:
        """Return stage `index` of the repeats."""
        count, inner = self.architecture.repeats[index], self.architecture.inner
        if inner is None:
            return layers.Stage(self.block, channels, count)
        return layers.BepC3(self.block, channels, inner[index], count, self.act)

    def pooling(self, channels: int) -> nn.Module:
        """Return the last layer of the backbone."""
        kind = self.architecture.pooling
        made = (
            layers.SPPF(channels, self.act)
            if kind == "sppf"
            else layers.CSPSPPF(channels, self.act)
        )
        return nn.Sequential(OrderedDict({kind: made}))


class Backbone(nn.Module):
    """EfficientRep, or CSPBep where the stages are CSPStackRep."""

    def __init__(self, make: Builder) -> None:
        """Make the stem and four stages, each at half the size of the one before."""
        super().__init__()
        c = make.channels
        self.stem = make.block((make.architecture.inputs, c[0]), 2)
        stages = [
            nn.Sequential(make.block((c[i], c[i + 1]), 2), make.stage((c[i + 1], c[i + 1]), i))
            for i in range(4)
        ]
        stages[-1].append(make.pooling(c[4]))
        self.ERBlock_2, self.ERBlock_3, self.ERBlock_4, self.ERBlock_5 = stages

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features at strides 4, 8, 16 and 32."""
        features, x = [], self.stem(images)
        for stage in (self.ERBlock_2, self.ERBlock_3, self.ERBlock_4, self.ERBlock_5):
            x = stage(x)
            features.append(x)
        return features


class Neck(nn.Module):
    """RepPAN or RepBiFPAN: down the pyramid and up again."""

    def __init__(self, make: Builder) -> None:
        """Make the layers; the two necks differ in how a level meets its neighbours."""
        super().__init__()
        _, c2, c3, c4, c5, p4, p3, d3, n3, d4, n4 = make.channels
        self.fuses = make.architecture.neck == "RepBiFPAN"
        self.reduce_layer0, self.reduce_layer1 = conv((c5, p4)), conv((p4, p3))
        if self.fuses:
            self.Bifusion0, self.Bifusion1 = (
                layers.BiFusion(c4, c3, p4),
                layers.BiFusion(c3, c2, p3),
            )
        else:
            self.upsample0, self.upsample1 = layers.Transpose(p4), layers.Transpose(p3)
        self.Rep_p4 = make.stage((p4 if self.fuses else c4 + p4, p4), 4)
        self.Rep_p3 = make.stage((p3 if self.fuses else c3 + p3, p3), 5)
        self.downsample2, self.downsample1 = conv((p3, d3), 3, 2), conv((n3, d4), 3, 2)
        self.Rep_n3 = make.stage((p3 + d3, n3), 6)
        self.Rep_n4 = make.stage((p4 + d4, n4), 7)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the features at strides 8, 16 and 32 that the head reads."""
        x2, x3, x4, x5 = features
        top = self.reduce_layer0(x5)
        if self.fuses:
            middle = self.reduce_layer1(self.Rep_p4(self.Bifusion0(top, x4, x3)))
            fine = self.Rep_p3(self.Bifusion1(middle, x3, x2))
        else:
            joined = torch.cat([self.upsample0(top), x4], 1)
            middle = self.reduce_layer1(self.Rep_p4(joined))
            fine = self.Rep_p3(torch.cat([self.upsample1(middle), x3], 1))
        down = self.Rep_n3(torch.cat([self.downsample2(fine), middle], 1))
        return [fine, down, self.Rep_n4(torch.cat([self.downsample1(down), top], 1))]


class Network(nn.Module):
    """Backbone, neck and head."""

    def __init__(self, architecture: Architecture, classes: int) -> None:
        """Make the network as it is trained."""
        super().__init__()
        make = Builder(architecture)
        self.backbone, self.neck = Backbone(make), Neck(make)
        levels = tuple(make.channels[i] for i in (6, 8, 10))
        self.detect = layers.Detect(levels, classes, architecture.reg_max, STRIDES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = BN_EPS, BN_MOMENTUM

    def forward(self, images: Tensor) -> Tensor:
        """Return float32[batch, anchors, 5 + classes]: cx, cy, w, h in pixels, 1, scores.

        images: float32[batch, 3, H, W] from 0 to 1, H and W multiples of 32.
        """
        return cast("Tensor", self.detect(self.neck(self.backbone(images))))

    def raw(self, images: Tensor) -> Raw:
        """Return class logits, box distances, cell centres and strides: see `layers.Detect.raw`."""
        return self.detect.raw(self.neck(self.backbone(images)))
