"""The layers that YOLOv6 is made of; a user's own recipe may use them too."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from deploykit.networks.reparam import ConvNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Pair = tuple[int, int]
    Make = Callable[[Pair], nn.Module]

Raw = tuple[Tensor, Tensor, Tensor, Tensor]
"""Class logits, box distances, cell centres and strides of a detector's anchors."""


BINS = 17
"""Distances 0 to 16, in cells, that a distribution over box sides chooses between."""
PRIOR = 0.01
"""Score that every class starts training with."""


def conv(
    channels: Pair, kernel: int = 1, stride: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """Return convolution, batch norm and activation, called `block`, for `channels` (in, out)."""
    norm = ConvNorm(channels, kernel, stride=stride, activation=activation())
    return nn.Sequential(OrderedDict(block=norm))


class Stage(nn.Module):
    """`count` blocks in a row; the first changes the number of channels."""

    def __init__(self, make: Make, channels: Pair, count: int) -> None:
        """Make the blocks for `channels` (in, out)."""
        super().__init__()
        self.conv1 = make(channels)
        rest = (make((channels[1], channels[1])) for _ in range(count - 1))
        self.block = nn.Sequential(*rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, H, W]."""
        return cast("Tensor", self.block(self.conv1(x)))


class BottleRep(nn.Module):
    """Two blocks beside a shortcut with a learned weight."""

    def __init__(self, make: Make, channels: Pair) -> None:
        """Make the blocks; both have `channels` (in, out), which are equal."""
        super().__init__()
        self.conv1, self.conv2 = make(channels), make(channels)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, channels, H, W]."""
        return cast("Tensor", self.conv2(self.conv1(x)) + self.alpha * x)


class BepC3(nn.Module):
    """CSPStackRep: half of the channels pass a stage of BottleRep, half pass by."""

    def __init__(
        self, make: Make, channels: Pair, inner: int, count: int, act: type[nn.Module]
    ) -> None:
        """Make the stage with `count` BottleRep of `inner` channels."""
        super().__init__()
        self.cv1 = conv((channels[0], inner), activation=act)
        self.cv2 = conv((channels[0], inner), activation=act)
        self.cv3 = conv((2 * inner, channels[1]), activation=act)
        self.m = Stage(lambda pair: BottleRep(make, pair), (inner, inner), count)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, H, W]."""
        return cast("Tensor", self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1)))


class SPPF(nn.Module):
    """Max pools over growing windows, side by side."""

    def __init__(self, channels: int, act: type[nn.Module]) -> None:
        """Make the layers; half of `channels` inside."""
        super().__init__()
        inner = channels // 2
        self.cv1 = conv((channels, inner), activation=act)
        self.cv2 = conv((4 * inner, channels), activation=act)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, channels, H, W]."""
        return cast("Tensor", self.cv2(_pooled(self.m, self.cv1(x))))


class CSPSPPF(nn.Module):
    """An SPPF with more convolutions around it, beside a 1x1 convolution."""

    def __init__(self, channels: int, act: type[nn.Module]) -> None:
        """Make the layers; half of `channels` inside."""
        super().__init__()
        inner = channels // 2
        self.cv1 = conv((channels, inner), activation=act)
        self.cv2 = conv((channels, inner), activation=act)
        self.cv3 = conv((inner, inner), 3, activation=act)
        self.cv4 = conv((inner, inner), activation=act)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)
        self.cv5 = conv((4 * inner, inner), activation=act)
        self.cv6 = conv((inner, inner), 3, activation=act)
        self.cv7 = conv((2 * inner, channels), activation=act)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, channels, H, W]."""
        pooled = _pooled(self.m, self.cv4(self.cv3(self.cv1(x))))
        deep = self.cv6(self.cv5(pooled))
        return cast("Tensor", self.cv7(torch.cat([self.cv2(x), deep], 1)))


def _pooled(pool: nn.Module, x: Tensor) -> Tensor:
    """Return `x` and its pools over 5, 9 and 13 cells: four times the channels."""
    once = pool(x)
    twice = pool(once)
    return torch.cat([x, once, twice, pool(twice)], 1)


class Transpose(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int) -> None:
        """Make the 2x2 transposed convolution."""
        super().__init__()
        self.upsample_transpose = nn.ConvTranspose2d(channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, channels, 2 H, 2 W]."""
        return cast("Tensor", self.upsample_transpose(x))


class BiFusion(nn.Module):
    """Three neighbouring levels, brought to the size of the middle one and mixed."""

    def __init__(self, middle: int, low: int, out: int) -> None:
        """Make the layers; the coarse level has `out` channels already."""
        super().__init__()
        self.cv1 = conv((middle, out))
        self.cv2 = conv((low, out))
        self.cv3 = conv((3 * out, out))
        self.upsample = Transpose(out)
        self.downsample = conv((out, out), 3, 2)

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Return float32[batch, out, H, W] of the middle level."""
        levels = [self.upsample(coarse), self.cv1(middle), self.downsample(self.cv2(fine))]
        return cast("Tensor", self.cv3(torch.cat(levels, 1)))


class Boxes(nn.Module):
    """Distances and scores -> the rows that are returned; a module so that nodes carry its name."""

    def forward(self, raw: Raw, bins: Tensor | None) -> Tensor:
        """Return float32[batch, anchors, 5 + classes]: cx, cy, w, h in pixels, 1, scores."""
        logits, distances, anchors, strides = raw
        sides = distances
        if bins is not None:
            shares = distances.reshape(*distances.shape[:2], 4, len(bins)).softmax(-1)
            sides = (shares * bins).sum(-1)
        sides = sides * strides
        left_top, right_bottom = sides[..., :2], sides[..., 2:]
        centres = anchors + (right_bottom - left_top) / 2
        ones = torch.ones_like(logits[..., :1])
        parts = [centres, left_top + right_bottom, ones, logits.sigmoid()]
        return torch.cat(parts, -1)


def predictor(channels: int, outputs: int, bias: float) -> nn.Conv2d:
    """Return a 1x1 convolution that says `bias` whatever it sees, until it is trained."""
    layer = nn.Conv2d(channels, outputs, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer


def grid(features: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return cell centres float32[anchors, 2] (x, y) and strides float32[anchors, 1], in pixels.

    features: float32[batch, channels, H, W] per level; strides: pixels per cell of each level.
    """
    centres, steps = [], []
    for feature, stride in zip(features, strides, strict=True):
        height, width = feature.shape[-2:]
        axes = (torch.arange(n, device=feature.device) for n in (height, width))
        y, x = torch.meshgrid(*((axis + 0.5) * stride for axis in axes), indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()], 1))
        steps.append(torch.full((height * width, 1), float(stride), device=feature.device))
    return torch.cat(centres), torch.cat(steps)


class Detect(nn.Module):
    """The decoupled head: classes and boxes have a branch of their own at each level."""

    def __init__(
        self,
        channels: tuple[int, ...],
        classes: int,
        reg_max: Literal[0, 16],
        strides: tuple[int, ...],
    ) -> None:
        """Make the branches for the channels and the stride, in input pixels, of each level."""
        super().__init__()
        self.reg_max, self.strides = reg_max, strides
        pairs = [(c, c) for c in channels]
        self.stems = nn.ModuleList(conv(pair, activation=nn.SiLU) for pair in pairs)
        self.cls_convs = nn.ModuleList(conv(pair, 3, activation=nn.SiLU) for pair in pairs)
        self.reg_convs = nn.ModuleList(conv(pair, 3, activation=nn.SiLU) for pair in pairs)
        start = -math.log((1 - PRIOR) / PRIOR)
        self.cls_preds = nn.ModuleList(predictor(c, classes, start) for c in channels)
        self.reg_preds = nn.ModuleList(predictor(c, 4 * (reg_max + 1), 1.0) for c in channels)
        # The two below hold the numbers 0 to 16 in every official checkpoint, used or not.
        self.proj = nn.Parameter(torch.arange(BINS, dtype=torch.float32), requires_grad=False)
        self.proj_conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.proj_conv.weight.data.copy_(self.proj.reshape(1, BINS, 1, 1))
        self.boxes = Boxes()

    def raw(self, features: list[Tensor]) -> Raw:
        """Return what a loss needs, for A anchors.

        Class logits float32[batch, A, classes]; box distances float32[batch, A, 4 * (reg_max + 1)],
        left, top, right, bottom, each a number of cells or the logits of 0 to reg_max cells;
        cell centres float32[A, 2] (x, y) and strides float32[A, 1], in pixels.
        """
        logits, distances = [], []
        for i, feature in enumerate(features):
            x = self.stems[i](feature)
            logits.append(self.cls_preds[i](self.cls_convs[i](x)).flatten(2))
            distances.append(self.reg_preds[i](self.reg_convs[i](x)).flatten(2))
        anchors, strides = grid(features, self.strides)
        joined = (torch.cat(parts, 2).transpose(1, 2) for parts in (logits, distances))
        return (*joined, anchors, strides)  # type: ignore[return-value]  # two tensors

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return float32[batch, A, 5 + classes]: cx, cy, w, h in pixels, 1, scores."""
        bins = self.proj if self.reg_max else None
        return cast("Tensor", self.boxes(self.raw(features), bins))
