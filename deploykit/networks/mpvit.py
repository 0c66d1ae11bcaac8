"""MPViT: patches of several sizes side by side, each with its own transformer, joined by stages.

Source: MPViT: Multi-Path Vision Transformer for Dense Prediction (arXiv 2112.11010, section 3 and
table 1), attention and its position encodings CoaT (arXiv 2104.06399, section 3); the names of
parameters are those of the published checkpoints. The code is written from the papers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from deploykit.networks.mpvit_encoder import Encoder, depthwise
from deploykit.networks.reparam import ConvNorm

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Architecture:
    """All that tells one network from another, by stages."""

    widths: tuple[int, ...]
    """Channels of the paths."""
    layers: tuple[int, ...]
    """Of each path's transformer."""
    ratio: int = 4
    """How much wider an MLP is inside."""
    paths: tuple[int, ...] = (2, 3, 3, 3)
    """Patches of 3, 5, 7 ... side by side."""

    @property
    def joined(self) -> tuple[int, ...]:
        """Channels of the maps behind the stages: those that the next one starts with."""
        return (*self.widths[1:], self.widths[-1])


SIZES = {
    "tiny": Architecture((64, 96, 176, 216), (1, 2, 4, 1), 2),
    "xsmall": Architecture((64, 128, 192, 256), (1, 2, 4, 1)),
    "small": Architecture((64, 128, 216, 288), (1, 3, 6, 3)),
    "base": Architecture((128, 224, 368, 480), (1, 3, 8, 3)),
}
VARIANTS = {**SIZES, "light": Architecture((32, 64, 96, 128), (1, 1, 2, 1), 2)}
"""`light` is this project's own classifier, for images of 64x64."""


class Local(nn.Sequential):
    """An inverted residual block beside the paths."""

    def __init__(self, width: int) -> None:
        """Make the layers."""
        parts: list[tuple[str, nn.Module]] = [
            ("conv1", ConvNorm((width, width), 1, activation=nn.Hardswish())),
            ("dwconv", depthwise(width, 3)),
            ("norm", nn.BatchNorm2d(width)),
            ("act", nn.Hardswish()),
            ("conv2", ConvNorm((width, width), 1)),
        ]
        super().__init__(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, H, W] of the same."""
        found = x
        for layer in self:
            found = layer(found)
        return x + found


class Stage(nn.Module):
    """A transformer on each path, a local block on the first, and one layer that joins all."""

    def __init__(self, width: int, joined: int, encoders: Sequence[Encoder]) -> None:
        """Make the layers; joined: channels behind the stage."""
        super().__init__()
        self.mhca_blks = nn.ModuleList(encoders)
        self.InvRes = Local(width)
        self.aggregate = ConvNorm(
            ((len(encoders) + 1) * width, joined), 1, activation=nn.Hardswish()
        )

    def forward(self, paths: Sequence[Tensor]) -> Tensor:
        """Return float32[batch, joined, H, W] of paths float32[batch, C, H, W]."""
        inside = (encoder(path) for encoder, path in zip(self.mhca_blks, paths, strict=True))
        return cast("Tensor", self.aggregate(torch.cat([self.InvRes(paths[0]), *inside], 1)))


class Patch(nn.Module):
    """A depthwise-separable convolution, one norm and a Hardswish."""

    def __init__(self, width: int, stride: int) -> None:
        """Make the layers."""
        super().__init__()
        parts: list[tuple[str, nn.Module]] = [
            ("dwconv", depthwise(width, 3, stride=stride)),
            ("pwconv", nn.Conv2d(width, width, 1, bias=False)),
            ("bn", nn.BatchNorm2d(width)),
            ("act", nn.Hardswish()),
        ]
        self.patch_conv = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, H / stride, W / stride]."""
        return cast("Tensor", self.patch_conv(x))


class Patches(nn.Module):
    """A chain of which each link is a path: patches of 3, 5, 7 ... places."""

    def __init__(self, width: int, paths: int, stride: int) -> None:
        """Make the layers; the first link has the stride."""
        super().__init__()
        self.patch_embeds = nn.ModuleList(
            Patch(width, stride if path == 0 else 1) for path in range(paths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the paths, float32[batch, C, H / stride, W / stride] each."""
        found = []
        for link in self.patch_embeds:
            x = link(x)
            found.append(x)
        return found


class Backbone(nn.Module):
    """The stem and the four stages."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the layers, weights random."""
        super().__init__()
        a, first = architecture, architecture.widths[0]
        self.widths = a.joined
        self.stem = nn.Sequential(
            ConvNorm((3, first // 2), stride=2, activation=nn.Hardswish()),
            ConvNorm((first // 2, first), stride=2, activation=nn.Hardswish()),
        )
        rows = list(zip(a.widths, a.joined, a.layers, a.paths, strict=True))
        self.patch_embed_stages = nn.ModuleList(
            Patches(width, paths, 2 if stage else 1)
            for stage, (width, _, _, paths) in enumerate(rows)
        )
        self.mhca_stages = nn.ModuleList(
            Stage(width, joined, [Encoder(width, a.ratio, layers) for _ in range(paths)])
            for width, joined, layers, paths in rows
        )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of strides 4, 8, 16 and 32 of images float32[batch, 3, H, W]."""
        x, found = self.stem(images), []
        for patches, stage in zip(self.patch_embed_stages, self.mhca_stages, strict=True):
            x = stage(patches(x))
            found.append(x)
        return found


class Head(nn.Module):
    """The mean over the image and one linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        """Make the layer."""
        super().__init__()
        self.cls = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits float32[batch, classes] of float32[batch, C, H, W]."""
        return cast("Tensor", self.cls(x.mean((2, 3))))


class Classifier(Backbone):
    """The backbone and a head."""

    def __init__(self, architecture: Architecture, classes: int) -> None:
        """Make the network as it is trained."""
        super().__init__(architecture)
        self.cls_head = Head(architecture.joined[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[batch, classes] of images float32[batch, 3, H, W]."""
        return cast("Tensor", self.cls_head(self.maps(images)[-1]))
