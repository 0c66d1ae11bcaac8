"""UPerNet: means over parts of the coarsest map, a feature pyramid, and all levels side by side.

Source: Unified Perceptual Parsing (arXiv 1807.10221, section 3), the pooling PSPNet's (arXiv
1612.01105, section 3.2); the names of parameters are mmsegmentation's (Apache-2.0). The code is
written from the papers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import nn

from deploykit.networks.reparam import ConvNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from deploykit.networks.mpvit import Backbone as MpvitBody
    from deploykit.networks.swin_dense import Backbone as SwinBody

POOLED = (1, 2, 3, 6)
"""Parts along each side of the coarsest map."""
CHANNELS = 512
"""Of every level of the pyramid."""


def grown(x: Tensor, like: Tensor, *, aligned: bool) -> Tensor:
    """Return a map at the size of another, interpolated linearly."""
    size = [int(side) for side in like.shape[2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=aligned)


def shares(side: int, parts: int) -> Tensor:
    """Return float32[parts, side]: what each place of a line adds to the mean of each part.

    Part i is from floor(i side / parts) to ceil((i + 1) side / parts).
    """
    places, part = torch.arange(side), torch.arange(parts).unsqueeze(1)
    first, end = part * side // parts, -(-(part + 1) * side // parts)
    inside = ((places >= first) & (places < end)).float()
    return inside / inside.sum(1, keepdim=True)


class Means(nn.Module):
    """The means over `parts` by `parts` pieces of a map, which overlap where it does not divide."""

    def __init__(self, parts: int) -> None:
        """Keep the number."""
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, C, parts, parts] of float32[batch, C, H, W]."""
        high, wide = (shares(int(side), self.parts).to(x) for side in x.shape[2:])
        return high @ (x @ wide.T)


class Head(nn.Module):
    """From the maps of strides 4 to 32 to class scores at stride 4."""

    def __init__(self, widths: Sequence[int], classes: int, *, aligned: bool) -> None:
        """Make the layers for maps of `widths` channels, aligned: whether corners are."""
        super().__init__()
        last, self.aligned = widths[-1], aligned
        self.psp_modules = nn.ModuleList(
            nn.Sequential(Means(parts), _layer(last, kernel=1)) for parts in POOLED
        )
        self.bottleneck = _layer(last + len(POOLED) * CHANNELS)
        self.lateral_convs = nn.ModuleList(_layer(width, kernel=1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(_layer(CHANNELS) for _ in widths[:-1])
        self.fpn_bottleneck = _layer(len(widths) * CHANNELS)
        self.conv_seg = nn.Conv2d(CHANNELS, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits float32[batch, classes, H / 4, W / 4] of the maps, the finest first."""
        levels = [side(x) for side, x in zip(self.lateral_convs, maps, strict=False)]
        levels.append(self._parts(maps[-1]))
        for fine, coarse in reversed(list(pairwise(range(len(levels))))):
            levels[fine] = levels[fine] + self._grown(levels[coarse], levels[fine])
        smooth = [layer(x) for layer, x in zip(self.fpn_convs, levels, strict=False)]
        finest, *rest = (*smooth, levels[-1])
        whole = torch.cat([finest, *(self._grown(x, finest) for x in rest)], 1)
        return cast("Tensor", self.conv_seg(self.fpn_bottleneck(whole)))

    def _parts(self, x: Tensor) -> Tensor:
        """Return the coarsest level, which knows the whole image."""
        means = (self._grown(layer(x), x) for layer in self.psp_modules)
        return cast("Tensor", self.bottleneck(torch.cat([x, *means], 1)))

    def _grown(self, x: Tensor, like: Tensor) -> Tensor:
        return grown(x, like, aligned=self.aligned)


def _layer(channels: int, kernel: int = 3) -> ConvNorm:
    return ConvNorm((channels, CHANNELS), kernel, activation=nn.ReLU())


class Segmenter(nn.Module):
    """A body and the head."""

    def __init__(self, body: MpvitBody | SwinBody, classes: int, *, aligned: bool) -> None:
        """Make the network as it is trained, without what only training reads."""
        super().__init__()
        self.backbone = body
        self.decode_head = Head(body.widths, classes, aligned=aligned)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[batch, classes, H / 4, W / 4] of images float32[batch, 3, H, W]."""
        return cast("Tensor", self.decode_head(self.backbone.maps(images)))
