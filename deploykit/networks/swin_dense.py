"""Swin as the body of detectors and segmenters: maps of four stages, for images of any size.

Source: Swin Transformer (arXiv 2103.14030, sections 3 and 4); the names of parameters are those of
its authors' detectors and segmenters (MIT, Apache-2.0). The code is written from the paper. What
differs from the classifier: maps are padded to whole windows behind the first norm of a block,
windows are shifted also where an axis has only one, and each map has a norm of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import nn

from deploykit.networks import swin
from deploykit.networks.swin import SIZES

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.networks.swin import Architecture

BODIES = {**SIZES, **{f"{name}_window12": swin.VARIANTS[f"{name}_384"] for name in SIZES}}


class Block(swin.Block):
    """A block for maps of any size; what their size says is constant in a graph."""

    def __init__(self, width: int, window: int, *, shifted: bool) -> None:
        """Make the layers."""
        super().__init__(width, window, (0, 0), shifted=False)
        self.shift = window // 2 if shifted else 0

    def _attended(self, x: Tensor) -> Tensor:
        high, wide = (int(side) for side in x.shape[1:3])
        down, right = -high % self.window, -wide % self.window
        sides, shifts = (high + down, wide + right), (self.shift, self.shift)
        padded = F.pad(self.norm1(x), (0, 0, 0, right, 0, down))
        back = swin.rolled(padded, [-shift for shift in shifts])
        mask = swin.shift_mask(sides, self.window, shifts).to(x) if self.shift else None
        inside = self.attn(swin.in_windows(back, self.window), mask)
        found = swin.rolled(swin.of_windows(inside, self.window, sides), shifts)
        return found[:, :high, :wide]


class Stage(nn.Module):
    """Blocks of one width, then a `Merge` where another stage follows."""

    def __init__(self, width: int, depth: int, window: int, *, last: bool) -> None:
        """Make the layers."""
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(width, window, shifted=i % 2 == 1) for i in range(depth))
        )
        self.downsample = None if last else swin.Merge(width)


class Backbone(nn.Module):
    """The stages, and a norm for each map."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the layers, weights random."""
        super().__init__()
        self.patch_embed = swin.Embed(architecture.width)
        self.widths = tuple(architecture.width << i for i in range(len(architecture.depths)))
        last = len(self.widths) - 1
        rows = enumerate(zip(self.widths, architecture.depths, strict=True))
        self.layers = nn.ModuleList(
            Stage(width, depth, architecture.window, last=i == last) for i, (width, depth) in rows
        )
        for i, width in enumerate(self.widths):
            self.add_module(f"norm{i}", nn.LayerNorm(width))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of strides 4, 8, 16 and 32 of images float32[batch, 3, H, W].

        H and W are multiples of 32.
        """
        x, found = self.patch_embed(images), []
        for i, stage in enumerate(cast("list[Stage]", list(self.layers))):
            x = stage.blocks(x)
            norm = self.get_submodule(f"norm{i}")
            found.append(cast("Tensor", norm(x)).permute(0, 3, 1, 2))
            x = x if stage.downsample is None else stage.downsample(x)
        return found
