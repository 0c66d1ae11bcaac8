"""HRNet: maps of four sizes side by side, which exchange what they know again and again.

Source: Deep High-Resolution Representation Learning for Visual Recognition (arXiv 1908.07919,
section 3 and table 1), the names of parameters are those of github.com/HRNet (MIT) and, for
classifiers, of timm. The code is written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from deploykit.networks.states import children, outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.recipes.recipe import StateDict

Growth: TypeAlias = Literal["nearest", "bilinear", "aligned"]
"""How a map grows to the size of a finer one; aligned: bilinear with `align_corners`."""
STEM = 64
"""Channels of the first two convolutions."""


@dataclass(frozen=True)
class Architecture:
    """All that tells one backbone from another."""

    width: int
    """Channels of the finest map; each coarser one has twice as many."""
    modules: tuple[int, int, int] = (1, 4, 3)
    """Exchanges in the stages of two, three and four maps."""
    blocks: int = 4
    """Residual blocks on each map before an exchange."""
    first: tuple[int, int] = (4, 64)
    """Bottlenecks of the first stage, and their inner channels."""

    def widths(self, count: int) -> list[int]:
        """Return the channels of the finest `count` maps."""
        return [self.width << i for i in range(count)]


VARIANTS = {
    "w18_small": Architecture(16, (1, 1, 1), 2, (1, 32)),
    "w18_small_v2": Architecture(18, (1, 3, 2), 2, (2, 64)),
    **{f"w{width}": Architecture(width) for width in (18, 30, 32, 40, 44, 48, 64)},
}
"""The published sizes, by timm's names; `w18_small` is called small v1 by its authors."""


def variant(state: StateDict) -> str | None:
    """Return the size that weights are of, None where they are of none."""
    finest = "stage2.0.branches.0"
    found = (
        outputs(state, f"{finest}.0.conv1.weight"),
        tuple(len(children(state, f"stage{stage}")) for stage in (2, 3, 4)),
        len(children(state, finest)),
        (len(children(state, "layer1")), outputs(state, "layer1.0.conv1.weight")),
    )
    known = ((name, (a.width, a.modules, a.blocks, a.first)) for name, a in VARIANTS.items())
    return next((name for name, own in known if own == found), None)


def conv(
    channels: tuple[int, int], kernel: int, *more: nn.Module, stride: int = 1
) -> nn.Sequential:
    """Return a convolution of `channels` (in, out) without bias, its norm, and what follows."""
    layer = nn.Conv2d(*channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels[1]), *more)


def residual(
    block: type[BasicBlock | Bottleneck], inputs: int, planes: int, count: int
) -> nn.Sequential:
    """Return `count` residual blocks of `planes` inner channels, at the size of their input."""
    wide = planes * block.expansion
    shortcut = None if inputs == wide else conv((inputs, wide), 1)
    first = block(inputs, planes, downsample=shortcut)
    return nn.Sequential(first, *(block(wide, planes) for _ in range(count - 1)))


def grown(x: Tensor, size: Sequence[int], growth: Growth) -> Tensor:
    """Return a map float32[batch, C, h, w] as float32[batch, C, *size]."""
    if growth == "nearest":
        return F.interpolate(x, tuple(size), mode="nearest")
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=growth == "aligned")


class Exchange(nn.Module):
    """Residual blocks on each map; then each becomes the ReLU of the sum of all, at its size."""

    def __init__(self, widths: Sequence[int], blocks: int, growth: Growth) -> None:
        """Make the layers for maps of `widths` channels, the finest first."""
        super().__init__()
        self.growth: Growth = growth
        self.branches = nn.ModuleList(residual(BasicBlock, w, w, blocks) for w in widths)
        places = range(len(widths))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in places) for target in places
        )
        self.relu = nn.ReLU()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return as many maps, float32[batch, C, h, w] each, of the same sizes."""
        refined = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self._joined(refined, target) for target in range(len(refined))]

    def _joined(self, maps: Sequence[Tensor], target: int) -> Tensor:
        paths = cast("nn.ModuleList", self.fuse_layers[target])
        parts = [path(x) for path, x in zip(paths, maps, strict=True)]
        total = parts[0]
        for source, part in enumerate(parts[1:], start=1):
            coarser = source > target
            total = total + (grown(part, total.shape[2:], self.growth) if coarser else part)
        return cast("Tensor", self.relu(total))


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Return the layers from one map to another: 1x1 to a finer, 3x3 with stride to a coarser."""
    if source >= target:
        return conv((widths[source], widths[target]), 1) if source > target else nn.Identity()
    same = (widths[source],) * 2
    steps = [conv(same, 3, nn.ReLU(), stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv((widths[source], widths[target]), 3, stride=2))


class Backbone(nn.Module):
    """The stem and the four stages."""

    def __init__(self, architecture: Architecture, growth: Growth) -> None:
        """Make the layers, weights random."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.conv2 = nn.Conv2d(STEM, STEM, 3, 2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        count, planes = architecture.first
        self.layer1 = residual(Bottleneck, STEM, planes, count)
        before = [planes * Bottleneck.expansion]
        for stage, modules in enumerate(architecture.modules, start=2):
            widths = architecture.widths(stage)
            exchanges = (Exchange(widths, architecture.blocks, growth) for _ in range(modules))
            setattr(self, f"transition{stage - 1}", _transition(before, widths))
            setattr(self, f"stage{stage}", nn.Sequential(*exchanges))
            before = widths

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of strides 4, 8, 16 and 32 of images float32[batch, 3, H, W]."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        found = [cast("Tensor", self.layer1(x))]
        for stage in (2, 3, 4):
            steps = cast("nn.ModuleList", self.get_submodule(f"transition{stage - 1}"))
            given = [step(found[min(i, len(found) - 1)]) for i, step in enumerate(steps)]
            found = self.get_submodule(f"stage{stage}")(given)
        return found


def _transition(before: Sequence[int], widths: Sequence[int]) -> nn.ModuleList:
    """Return the layers that make one map more, of the coarsest there is."""
    steps: list[nn.Module] = [
        nn.Identity() if old == new else conv((old, new), 3, nn.ReLU())
        for old, new in zip(before, widths, strict=False)
    ]
    further = conv((before[-1], widths[-1]), 3, nn.ReLU(), stride=2)
    return nn.ModuleList([*steps, nn.Sequential(further)])
