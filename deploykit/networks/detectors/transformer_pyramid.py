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
    from collections.abc import Callable

    from torch import Tensor
    from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

CHANNELS = 256
"""Of the pyramid."""


class Pyramid(nn.Module):
    """The backbone and a feature pyramid, as torchvision's detectors take it."""

    def __init__(
        self, name: str, first: int = 0, coarser: Callable[[int], ExtraFPNBlock] | None = None
    ) -> None:
        """Make the layers. name: see `bodies.NAMES`.

        first: of the four maps, the first of which a level is made. coarser: from the channels
        of the last map to what makes the levels beyond them; None: one more, of half the size.
        """
        super().__init__()
        self.out_channels = CHANNELS
        self.body = bodies.body(name)
        widths = list(self.body.widths[first:])
        more = coarser(widths[-1]) if coarser else LastLevelMaxPool()
        self.fpn: nn.Module = ops.FeaturePyramidNetwork(widths, CHANNELS, more)
        self.first = first

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels by name, of strides 4 to 64 where there are no others."""
        maps = enumerate(self.body.maps(images)[self.first :])
        return cast("dict[str, Tensor]", self.fpn(OrderedDict((str(i), x) for i, x in maps)))
