"""R-CNN: every region cut out, warped, seen by a network of its own and judged by linear machines.

Source: Girshick et al., Rich feature hierarchies (arXiv 1311.2524), and the conventions of its
MATLAB code, github.com/rbgirshick/rcnn: 16 pixels of context, warped in whole pixels, features of a
fixed mean length, bounding boxes regressed from the last pooling. Layers have Caffe's names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit.networks.detectors import dense, grids, inclusive
from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict

CONTEXT = 16
"""Pixels around a region in its crop, where the image has them."""


@dataclass(frozen=True)
class Conv:
    """A convolution with a ReLU, and what follows it."""

    name: str
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    then: tuple[str, ...] = ()
    """pool, norm: a pooling to half the size, a normalisation across channels."""


@dataclass(frozen=True)
class Trunk:
    """A network that sees crops."""

    side: int
    """Height and width of a crop."""
    pooled: int
    """Height and width of the last pooling's result."""
    overlapping: bool
    """Whether the poolings are 3x3 and overlap, or 2x2."""
    convolutions: tuple[Conv, ...]
    hidden: int = 4096
    """Outputs of fc6 and fc7."""


_STAGES = ((1, 64, 2), (2, 128, 2), (3, 256, 3), (4, 512, 3), (5, 512, 3))
TRUNKS = {
    "alexnet": Trunk(
        227,
        6,
        overlapping=True,
        convolutions=(
            Conv("conv1", 96, 11, 4, 0, then=("pool", "norm")),
            Conv("conv2", 256, 5, padding=2, groups=2, then=("pool", "norm")),
            Conv("conv3", 384),
            Conv("conv4", 384, groups=2),
            Conv("conv5", 256, groups=2, then=("pool",)),
        ),
    ),
    "vgg16": Trunk(
        224,
        7,
        overlapping=False,
        convolutions=tuple(
            Conv(f"conv{stage}_{number}", width, then=("pool",) if number == count else ())
            for stage, width, count in _STAGES
            for number in range(1, count + 1)
        ),
    ),
}


def key(name: str) -> str:
    """Return the name of a layer's weights."""
    return f"features.{name}.weight"


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the layers that see crops inside `features`."""
    seeing = ("conv", "fc6.", "fc7.")
    return {f"features.{k}" if k.startswith(seeing) else k: v for k, v in state.items()}


def measured(state: StateDict, trunk: Trunk) -> Trunk:
    """Return a trunk with the widths of the weights."""
    widths = ((c, outputs(state, key(c.name))) for c in trunk.convolutions)
    convolutions = tuple(replace(c, width=width or c.width) for c, width in widths)
    hidden = outputs(state, key("fc6")) or trunk.hidden
    return replace(trunk, convolutions=convolutions, hidden=hidden)


@dataclass(frozen=True)
class Limits:
    """What a network is run with, which its weights do not hold."""

    score: float = -1.0
    """Distance from the plane of a class that a region must be above: -1 is the margin."""
    iou: float = 0.3
    detections: int = 100


class LocalNorm(nn.Module):
    """Caffe's local response normalisation across five channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x / (1 + 1e-4 / 5 * the sum of the squares of five neighbours) ** 0.75."""
        count = int(x.shape[1])
        squares = F.pad(x * x, [0, 0, 0, 0, 2, 2])
        near = [squares[:, start : start + count] for start in range(5)]
        total = near[0] + near[1] + near[2] + near[3] + near[4]
        return x / (1 + 2e-5 * total) ** 0.75


class Features(nn.Module):
    """From crops to the features of the last pooling and of fc7."""

    def __init__(self, trunk: Trunk) -> None:
        """Make the layers."""
        super().__init__()
        self.trunk, channels = trunk, 3
        for conv in trunk.convolutions:
            self.add_module(
                conv.name,
                nn.Conv2d(
                    channels,
                    conv.width,
                    conv.kernel,
                    conv.stride,
                    conv.padding,
                    groups=conv.groups,
                ),
            )
            channels = conv.width
        self.flat = channels * trunk.pooled**2
        self.fc6 = nn.Linear(self.flat, trunk.hidden)
        self.fc7 = nn.Linear(trunk.hidden, trunk.hidden)
        self.norm = LocalNorm()

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return [n, C * P * P] and [n, hidden] of crops float32[n, 3, S, S]."""
        x, kernel = crops, 3 if self.trunk.overlapping else 2
        for conv in self.trunk.convolutions:
            x = self.get_submodule(conv.name)(x).relu()
            for step in conv.then:
                x = self.norm(x) if step == "norm" else F.max_pool2d(x, kernel, 2, ceil_mode=True)
        pooled = x.flatten(1)
        return pooled, self.fc7(self.fc6(pooled).relu()).relu()


class Cut(NamedTuple):
    """Where crops lie along one axis, each float32[B, R, 1] in pixels of the input or the crop."""

    first: Tensor
    last: Tensor
    """Of the image's pixels that are in a crop."""
    start: Tensor
    size: Tensor
    """Of the crop's pixels that are the image's."""

    @classmethod
    def of(cls, low: Tensor, high: Tensor, limit: Tensor, side: int) -> Cut:
        """Return the cuts of regions whose first and last pixels are `low` and `high`.

        limit: pixels of the image along the axis.
        """
        half = (high - low + 1) / 2
        centre, reach = low + 1 + half, half * (side / (side - 2 * CONTEXT))
        begin, end = rounded(centre - reach), rounded(centre + reach)  # from 1 on, as in MATLAB
        scale = side / (end - begin + 1)
        first, last = begin.clamp(min=1), end.minimum(limit)
        start = rounded((first - begin) * scale)
        size = rounded((last - first + 1) * scale).minimum(side - start)
        return cls(first - 1, last - 1, start, size)

    def places(self, side: int) -> tuple[Tensor, Tensor]:
        """Return where each pixel of a crop is read, [B, R, side], and whether it is."""
        pixels = torch.arange(side, dtype=self.first.dtype)
        step = (self.last - self.first + 1) / self.size.clamp(min=1)
        place = self.first + (pixels - self.start + 0.5) * step - 0.5
        inside = (pixels >= self.start) & (pixels < self.start + self.size)
        return place.maximum(self.first).minimum(self.last), inside


def rounded(x: Tensor) -> Tensor:
    """Return the nearest whole numbers, of a half the one farther from zero."""
    return x.sign() * (x.abs() + 0.5).floor()


class Warp(nn.Module):
    """Crops of an image, each region with its context stretched to a square."""

    def __init__(self, side: int) -> None:
        """Keep the side of a crop."""
        super().__init__()
        self.side = side

    def forward(self, images: Tensor, regions: Tensor, limit: Tensor, mean: Tensor) -> Tensor:
        """Return float32[B * R, 3, S, S] less the mean of crops; zero beside the image.

        regions: float32[B, R, 4], first and last pixels. limit: see `grids.limits`. mean: float32
        [3, S, S] or [3, 1, 1].
        """
        height, width = (int(side) for side in images.shape[2:])
        count = int(regions.shape[1])
        ends = regions.unsqueeze(-1)
        limits = limit.reshape(-1, 1, 4, 1)
        x, in_x = Cut.of(ends[:, :, 0], ends[:, :, 2], limits[:, :, 2], self.side).places(self.side)
        y, in_y = Cut.of(ends[:, :, 1], ends[:, :, 3], limits[:, :, 3], self.side).places(self.side)
        units = [place * (2 / (cells - 1)) - 1 for place, cells in ((x, width), (y, height))]
        shape = (-1, count, self.side, self.side)
        grid = torch.stack(
            [units[0].unsqueeze(2).expand(shape), units[1].unsqueeze(3).expand(shape)], -1
        )
        grid = grid.reshape(-1, count * self.side, self.side, 2)
        read = F.grid_sample(images, grid, padding_mode="border", align_corners=True)
        crops = read.reshape(-1, 3, count, self.side, self.side).transpose(1, 2)
        inside = (in_y.unsqueeze(3) & in_x.unsqueeze(2)).unsqueeze(2)
        return torch.where(inside, crops - mean, 0.0).flatten(0, 1)


class Select(nn.Module):
    """From what the machines say of regions to the detections."""

    def forward(
        self, scores: Tensor, deltas: Tensor | None, regions: Tensor, limit: Tensor, limits: Limits
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count, see `dense.suppressed`.

        scores: [B, R, classes]. deltas: [B, R, classes, 4] dx, dy in sides, logarithms dw, dh;
        None: boxes stay where they are. regions: [B, R, 4]; those without area are padding.
        """
        classes = int(scores.shape[2])
        boxes = regions.unsqueeze(2)
        if deltas is not None:
            low, sides = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
            centre = low + 0.5 * sides + deltas[..., :2] * sides
            half = 0.5 * (deltas[..., 2:].exp() * sides)
            boxes = torch.cat([centre - half, centre + half], -1)
        boxes = grids.clipped(boxes, limit - 1).expand(-1, -1, classes, -1)
        valid = (regions[..., 2:] > regions[..., :2]).all(-1, keepdim=True)
        scores = torch.where(valid, scores, -torch.inf)
        labels = torch.arange(classes).expand_as(scores)
        found = dense.Candidates(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1))
        kept = dense.Limits(limits.score, limits.iou, dense.MOST, limits.detections)
        return inclusive.suppressed(found, kept, limits.score)


class Rcnn(nn.Module):
    """R-CNN on regions from elsewhere."""

    def __init__(
        self, trunk: Trunk, classes: int, mean: tuple[int, ...], limits: Limits, *, boxes: bool
    ) -> None:
        """Make the layers. mean: shape of the mean of crops. boxes: whether there are regressors.

        `score_threshold` may be changed until the network is traced.
        """
        super().__init__()
        self.features, self.limits, self.score_threshold = Features(trunk), limits, limits.score
        self.warp, self.select = Warp(trunk.side), Select()
        self.svm = nn.Linear(trunk.hidden, classes)
        self.register_buffer("mean", torch.zeros(mean))
        self.register_buffer("fc7_scale", torch.ones(()))
        if boxes:
            self.box = nn.Linear(self.features.flat, 4 * classes)
            self.register_buffer("pool5_scale", torch.ones(()))
            self.register_buffer("box_unwhiten", torch.zeros(classes, 4, 4))
            self.register_buffer("box_mean", torch.zeros(classes, 4))
        self.boxes = boxes

    def forward(
        self, images: Tensor, proposals: Tensor, image_sizes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count; scores are distances from a class's plane.

        images: float32[B, 3, H, W], BGR, 0 to 255. proposals: float32[B, R, 4], first and last
        pixels; those without area are padding. image_sizes: float32[B, 2], height and width of the
        images at the top left of the inputs; None: as large as these.
        """
        limit = grids.limits((int(images.shape[2]), int(images.shape[3])), image_sizes)
        count, mean = int(proposals.shape[1]), cast("Tensor", self.mean)
        pooled, seen = self.features(self.warp(images, proposals, limit, mean))
        scores = self.svm(seen * self.fc7_scale).reshape(-1, count, self.svm.out_features)
        deltas = self._deltas(pooled, count) if self.boxes else None
        limits = Limits(self.score_threshold, self.limits.iou, self.limits.detections)
        return cast("tuple[Tensor, ...]", self.select(scores, deltas, proposals, limit, limits))

    def _deltas(self, pooled: Tensor, count: int) -> Tensor:
        """Return [B, R, classes, 4]: what the regressors say, no longer whitened."""
        scale, unwhiten, mean = (
            cast("Tensor", getattr(self, name))
            for name in ("pool5_scale", "box_unwhiten", "box_mean")
        )
        white: Tensor = self.box(pooled * scale)
        split = white.reshape(-1, count, self.svm.out_features, 4, 1)
        return (split * unwhiten).sum(3) + mean
