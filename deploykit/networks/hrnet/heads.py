"""What HRNets end in: a classifier, a segmenter, a segmenter with object contexts.

Source: arXiv 1908.07919 (section 4); Object-Contextual Representations (arXiv 1909.11065, section
3). Names of parameters as in `backbone`; the code is written from the papers' formulas.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from deploykit.networks.hrnet.backbone import Backbone, grown, residual

if TYPE_CHECKING:
    from deploykit.networks.hrnet.backbone import Architecture, Growth

HEAD = (32, 64, 128, 256)
"""Inner channels of the classifier's four Bottlenecks; each gives four times as many."""
POOLED = 2048
"""Channels of which the classifier takes the mean."""
MIDDLE, KEY = 512, 256
"""Channels of the pixels and of the keys in the head of object contexts."""


class Classifier(Backbone):
    """Each map widened, the finer ones shrunk into the coarser, the mean, one linear layer."""

    def __init__(self, architecture: Architecture, classes: int) -> None:
        """Make the network as it is trained."""
        super().__init__(architecture, "nearest")
        wide = [planes * Bottleneck.expansion for planes in HEAD]
        self.incre_modules = nn.ModuleList(
            residual(Bottleneck, inputs, planes, 1)
            for inputs, planes in zip(architecture.widths(4), HEAD, strict=True)
        )
        self.downsamp_modules = nn.ModuleList(
            _biased((fine, coarse), 3, stride=2) for fine, coarse in itertools.pairwise(wide)
        )
        self.final_layer = _biased((wide[-1], POOLED), 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(POOLED, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[batch, classes] of images float32[batch, 3, H, W]."""
        first, *rest = (
            widen(x) for widen, x in zip(self.incre_modules, self.maps(images), strict=True)
        )
        total = first
        for shrink, x in zip(self.downsamp_modules, rest, strict=True):
            total = x + shrink(total)
        return cast("Tensor", self.classifier(self.pool(self.final_layer(total)).flatten(1)))


def _biased(channels: tuple[int, int], kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution of `channels` (in, out) with a bias, its norm and a ReLU."""
    layer = nn.Conv2d(*channels, kernel, stride, padding=kernel // 2)
    return nn.Sequential(layer, nn.BatchNorm2d(channels[1]), nn.ReLU())


class Segmenter(Backbone):
    """All maps at the size of the finest, side by side, and two 1x1 convolutions."""

    def __init__(self, architecture: Architecture, classes: int, growth: Growth) -> None:
        """Make the network as it is trained."""
        super().__init__(architecture, growth)
        self.growth: Growth = growth
        wide = sum(architecture.widths(4))
        self._make_head(wide, classes)

    def _make_head(self, wide: int, classes: int) -> None:
        self.last_layer = nn.Sequential(*_biased((wide, wide), 1), nn.Conv2d(wide, classes, 1))

    def features(self, images: Tensor) -> Tensor:
        """Return float32[batch, 15 * width, H / 4, W / 4] of images float32[batch, 3, H, W]."""
        finest, *rest = self.maps(images)
        return torch.cat([finest, *(grown(x, finest.shape[2:], self.growth) for x in rest)], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[batch, classes, H / 4, W / 4] of images float32[batch, 3, H, W]."""
        return cast("Tensor", self.last_layer(self.features(images)))


class ContextSegmenter(Segmenter):
    """Each pixel learns from the mean pixel of every class, by how alike the two are."""

    def _make_head(self, wide: int, classes: int) -> None:
        self.aux_head = nn.Sequential(*_biased((wide, wide), 1), nn.Conv2d(wide, classes, 1))
        self.conv3x3_ocr = _biased((wide, MIDDLE), 3)
        self.ocr_gather_head = Gather()
        self.ocr_distri_head = Distribute()
        self.cls_head = nn.Conv2d(MIDDLE, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[batch, classes, H / 4, W / 4] of images float32[batch, 3, H, W]."""
        features = self.features(images)
        pixels = self.conv3x3_ocr(features)
        objects = self.ocr_gather_head(pixels, self.aux_head(features))
        return cast("Tensor", self.cls_head(self.ocr_distri_head(pixels, objects)))


class Gather(nn.Module):
    """The mean pixel of each class, weighted by a softmax of its scores over all pixels."""

    def forward(self, pixels: Tensor, scores: Tensor) -> Tensor:
        """Return float32[batch, C, classes, 1] of [batch, C, h, w] and [batch, classes, h, w]."""
        shares = scores.flatten(2).softmax(2)
        return torch.matmul(shares, pixels.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)


class Attention(nn.Module):
    """Pixels as queries, classes as keys and values."""

    def __init__(self) -> None:
        """Make the projections; norms and ReLUs stand one level deeper, as in checkpoints."""
        super().__init__()
        inward, key = (MIDDLE, KEY), (KEY, KEY)
        self.f_pixel = nn.Sequential(*_normed(inward), *_normed(key))
        self.f_object = nn.Sequential(*_normed(inward), *_normed(key))
        self.f_down = _normed(inward)
        self.f_up = _normed((KEY, MIDDLE))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Return float32[batch, C, h, w] of [batch, C, h, w] and [batch, C, classes, 1]."""
        queries = self.f_pixel(pixels).flatten(2).transpose(1, 2)
        keys, values = (f(objects).flatten(2) for f in (self.f_object, self.f_down))
        alike = (torch.matmul(queries, keys) * KEY**-0.5).softmax(-1)
        context = torch.matmul(alike, values.transpose(1, 2)).transpose(1, 2)
        return cast("Tensor", self.f_up(context.reshape(-1, KEY, *pixels.shape[2:])))


class Distribute(nn.Module):
    """Pixels beside what they learnt, and a 1x1 convolution of both."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.object_context_block = Attention()
        self.conv_bn_dropout = _normed((2 * MIDDLE, MIDDLE))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Return float32[batch, C, h, w] of [batch, C, h, w] and [batch, C, classes, 1]."""
        context = self.object_context_block(pixels, objects)
        return cast("Tensor", self.conv_bn_dropout(torch.cat([context, pixels], 1)))


def _normed(channels: tuple[int, int]) -> nn.Sequential:
    """Return a 1x1 convolution of `channels` (in, out), and its norm and ReLU as one step."""
    after = nn.Sequential(nn.BatchNorm2d(channels[1]), nn.ReLU())
    return nn.Sequential(nn.Conv2d(*channels, 1, bias=False), after)
