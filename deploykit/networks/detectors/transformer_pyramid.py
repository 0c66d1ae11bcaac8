"""A transformer as the body of detectors: its four maps and a feature pyramid (arXiv 1612.03144).

Bodies are MPViT's and Swin's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

from torch import nn
from torchvision import ops
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from deploykit.networks import bodies

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = 256
"""Of the pyramid."""


class Pyramid(nn.Module):
    """The backbone and a feature pyramid, as torchvision's detectors take it."""

    def __init__(self, name: str) -> None:
        """Make the layers. name: see `bodies.NAMES`."""
        super().__init__()
        self.out_channels = CHANNELS
        self.body = bodies.body(name)
        self.fpn: nn.Module = ops.FeaturePyramidNetwork(
            list(self.body.widths), CHANNELS, LastLevelMaxPool()
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of strides 4 to 64, by the names `0` to `3` and `pool`."""
        maps = enumerate(self.body.maps(images))
        return cast("dict[str, Tensor]", self.fpn(OrderedDict((str(i), x) for i, x in maps)))
