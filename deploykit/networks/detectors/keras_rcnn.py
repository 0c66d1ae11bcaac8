"""Mask R-CNN with a feature pyramid as matterport's Keras code has it, in fixed shapes.

Boxes are shares of the input there, from its first pixel (0) to its last (1). A RoI is a crop of
one level, resized bilinearly, not RoIAlign. Source: github.com/matterport/Mask_RCNN (MIT), whose
conventions these are; the code is written from them. What else its networks have of their own:
biases before the norms, norms in the mask head, one suppression for all levels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit.networks.detectors import dense
from deploykit.networks.detectors.two_stage import Rois, object_masks
from deploykit.networks.reparam import Phases, fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Size = tuple[int, int]

EPSILON = 1e-3
"""Of the norms."""
SPREAD = (0.1, 0.1, 0.2, 0.2)
"""Standard deviations by which the targets of boxes were divided."""
STRIDES = (4, 8, 16, 32, 64)
"""Input pixels per cell of the pyramid's levels; RoIs are read from all but the last."""
BOX, MASK = 7, 14
"""Height and width of the features of a RoI, for its box and for its mask."""
TRUNKS = {"resnet50_fpn": (3, 4, 6, 3), "resnet101_fpn": (3, 4, 23, 3)}
"""Variant -> blocks of the body's stages."""


@dataclass(frozen=True)
class Widths:
    """Channels of the layers."""

    stem: int = 64
    stages: tuple[tuple[int, int], ...] = ((64, 256), (128, 512), (256, 1024), (512, 2048))
    """Inside the blocks, and behind them."""
    pyramid: int = 256
    rpn: int = 512
    hidden: int = 1024
    """Outputs of the two layers of the box head."""
    mask: int = 256
    anchors: int = 3
    """Of a cell."""


@dataclass(frozen=True)
class Limits:
    """What a network is run with, which its weights do not hold."""

    candidates: int = dense.MOST
    """The best so many anchors of all levels together become boxes. Published: 6000, more than
    TensorRT's TopK finds (3840). The proposals differ only where fewer than `proposals` of these
    survive the suppression."""
    proposals: int = 1000
    proposal_iou: float = 0.7
    score: float = 0.7
    """Least score of what is found."""
    iou: float = 0.3
    detections: int = 100
    sides: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Of the anchors of each level, in input pixels."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Width over height of the anchors."""


def normed(channels: Size, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """Return a convolution with a bias and a norm."""
    conv = nn.Conv2d(*channels, kernel, stride, padding)
    return nn.Sequential(conv, nn.BatchNorm2d(channels[1], eps=EPSILON))


class Block(nn.Module):
    """A bottleneck; its stride is in its first convolution."""

    def __init__(self, channels: int, inner: Size, stride: int, *, first: bool) -> None:
        """Make the layers; the way past the first block of a stage has a convolution.

        inner: channels inside and behind.
        """
        super().__init__()
        self.branch2a = normed((channels, inner[0]), 1, stride)
        self.branch2b = normed((inner[0], inner[0]), 3, padding=1)
        self.branch2c = normed(inner, 1)
        self.branch1 = normed((channels, inner[1]), 1, stride) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[B, C, H / stride, W / stride]."""
        inside = self.branch2b(self.branch2a(x).relu()).relu()
        return cast("Tensor", (self.branch2c(inside) + self.branch1(x)).relu())


class Body(nn.Module):
    """A ResNet, from images to the maps of its four stages."""

    def __init__(self, depths: Sequence[int], widths: Widths) -> None:
        """Make the layers. depths: blocks of each stage."""
        super().__init__()
        self.stem = normed((3, widths.stem), 7, 2, 3)
        # as TensorFlow's "same": at even sizes what is missing is right of and below the map
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels, stages = widths.stem, []
        for place, (depth, inner) in enumerate(zip(depths, widths.stages, strict=True)):
            blocks = [Block(channels, inner, 1 if place == 0 else 2, first=True)]
            blocks += [Block(inner[1], inner, 1, first=False) for _ in range(depth - 1)]
            channels = inner[1]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of strides 4, 8, 16 and 32."""
        x, maps = self.pool(self.stem(images).relu()), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Pyramid(nn.Module):
    """From the maps of a body to the levels."""

    def __init__(self, widths: Widths) -> None:
        """Make the layers."""
        super().__init__()
        wide = widths.pyramid
        self.lateral = nn.ModuleList(nn.Conv2d(outer, wide, 1) for _, outer in widths.stages)
        self.output = nn.ModuleList(nn.Conv2d(wide, wide, 3, padding=1) for _ in widths.stages)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return float32[B, C, H / s, W / s] for each of `STRIDES`."""
        sides = [layer(each) for layer, each in zip(self.lateral, maps, strict=True)]
        for finer in range(len(sides) - 2, -1, -1):
            grown = F.interpolate(sides[finer + 1], scale_factor=2.0, mode="nearest")
            sides[finer] = sides[finer] + grown
        levels = [layer(each) for layer, each in zip(self.output, sides, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


class Answers(NamedTuple):
    """What the RPN says of all anchors, or the box head of all RoIs."""

    logits: Tensor
    """float32[B, N, labels], the background first."""
    deltas: Tensor
    """float32[B, N, 4], or of every label [B, N, labels, 4]: dx, dy in sides, logarithms dw, dh."""


class Rpn(nn.Module):
    """The region proposal network, one for all levels."""

    def __init__(self, widths: Widths) -> None:
        """Make the layers."""
        super().__init__()
        self.conv_shared = nn.Conv2d(widths.pyramid, widths.rpn, 3, padding=1)
        self.class_raw = nn.Conv2d(widths.rpn, 2 * widths.anchors, 1)
        self.bbox_pred = nn.Conv2d(widths.rpn, 4 * widths.anchors, 1)

    def forward(self, levels: Sequence[Tensor]) -> Answers:
        """Return the answers for the anchors of all levels, the finest first."""
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for level in levels:
            x = self.conv_shared(level).relu()
            for layer, width, found in ((self.class_raw, 2, 0), (self.bbox_pred, 4, 1)):
                answers = layer(x).permute(0, 2, 3, 1)
                count = answers.shape[1] * answers.shape[2] * answers.shape[3] // width
                parts[found].append(answers.reshape(-1, count, width))
        return Answers(torch.cat(parts[0], 1), torch.cat(parts[1], 1))


class BoxHead(nn.Module):
    """From the features of a RoI to its class and boxes."""

    def __init__(self, widths: Widths, labels: int) -> None:
        """Make the layers. labels: the background among them."""
        super().__init__()
        self.conv1 = normed((widths.pyramid, widths.hidden), BOX)
        self.conv2 = normed((widths.hidden, widths.hidden), 1)
        self.logits = nn.Linear(widths.hidden, labels)
        self.bbox_fc = nn.Linear(widths.hidden, 4 * labels)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [n, labels] and deltas [n, labels * 4] of features [n, C, 7, 7]."""
        x = self.conv2(self.conv1(pooled).relu()).relu().flatten(1)
        return self.logits(x), self.bbox_fc(x)


class MaskHead(nn.Module):
    """From the features of an object to a mask for each label."""

    def __init__(self, widths: Widths, labels: int) -> None:
        """Make the layers. labels: the background among them."""
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = widths.pyramid
        for number in range(1, 5):
            conv, norm = normed((channels, widths.mask), 3, padding=1)
            channels = widths.mask
            layers |= {f"conv{number}": conv, f"bn{number}": norm, f"relu{number}": nn.ReLU()}
        self.convs = nn.Sequential(layers)
        self.deconv: nn.Module = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.relu: nn.Module = nn.ReLU()
        self.mask = nn.Conv2d(channels, labels, 1)

    def forward(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Return float32[n, 28, 28], 0 to 1: the mask of each object's class.

        pooled: [n, C, 14, 14]. classes: int32[n], the background not among them.
        """
        logits = self.mask(self.relu(self.deconv(self.convs(pooled))))
        return object_masks(logits, classes, self.deconv)


def deploy(network: nn.Module) -> nn.Module:
    """Return a copy with norms folded, and two layers of the heads in ops that are faster.

    The convolution of a whole RoI is a linear layer, the upsampling a 1x1 convolution.
    """
    folded = fold(network)
    box, mask = folded.get_submodule("box"), folded.get_submodule("mask")
    box.conv1 = _linear(cast("nn.Sequential", box.conv1)[0])
    box.conv2 = _linear(cast("nn.Sequential", box.conv2)[0])
    if Phases.replaces(cast("nn.Module", mask.deconv)):
        mask.deconv = Phases(cast("nn.ConvTranspose2d", mask.deconv), cast("nn.Module", mask.relu))
        mask.relu = nn.Identity()
    return folded


def _linear(conv: nn.Module) -> nn.Module:
    """Return the layer that a convolution is whose kernel is as large as its input."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    weight = conv.weight.flatten(1)
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(conv.bias)
    return nn.Sequential(nn.Flatten(), made)


def anchors(size: Size, limits: Limits) -> NDArray[np.float32]:
    """Return float32[N, 4]: x1, y1, x2, y2 of all levels, as shares of an input of `size` (H, W).

    Row by row, in each cell by ratio; the middle of an anchor is the corner of its cell.
    """
    ratios, found = np.sqrt(np.array(limits.ratios, np.float64)), []
    for side, stride in zip(limits.sides, STRIDES, strict=True):
        half = np.stack([side * ratios, side / ratios], -1) / 2
        y, x = (np.arange(-(-length // stride)) * float(stride) for length in size)
        centre = np.stack(np.meshgrid(x, y), -1)[:, :, None]
        found.append(np.concatenate([centre - half, centre + half], -1).reshape(-1, 4))
    shares: NDArray[np.float64] = (np.concatenate(found) - EDGE) / last(size)
    return shares.astype(np.float32)


EDGE = np.array([0.0, 0.0, 1.0, 1.0])
"""From the last pixels of boxes to their edges."""


def last(size: Size) -> NDArray[np.float64]:
    """Return x, y, x, y of the last pixel of an input of `size` (H, W)."""
    return np.array([size[1] - 1, size[0] - 1] * 2, np.float64)


class Propose(nn.Module):
    """From what the RPN says of all anchors to the proposals."""

    def forward(self, answers: Answers, size: Size, limits: Limits) -> Rois:
        """Return the best boxes, as shares of an input of `size` (H, W)."""
        every = torch.from_numpy(anchors(size, limits)).to(answers.deltas.dtype)
        # by these and not by their sigmoid, which is 1 for all above 17
        logits = answers.logits[..., 1] - answers.logits[..., 0]
        logits, index = logits.topk(min(limits.candidates, len(every)))
        boxes = moved(dense.constant_rows(every, index), dense.rows(answers.deltas, index))
        found = dense.Candidates(boxes.clamp(0, 1), logits.sigmoid(), torch.zeros_like(index))
        most = min(limits.proposals, len(every))
        kept = dense.Limits(-1.0, limits.proposal_iou, dense.MOST, most)
        best, _, _, count = dense.suppressed(found, kept, kept.score)
        return Rois(best, count)


def moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Return `boxes` [..., 4] moved by `deltas` [..., 4]; sides may grow without a limit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    spread = torch.from_numpy(np.array(SPREAD, np.float32)).to(deltas.dtype)
    sides, moves = high - low, deltas * spread
    centre = low + 0.5 * sides + moves[..., :2] * sides
    sides = sides * moves[..., 2:].exp()
    first = centre - 0.5 * sides
    return torch.cat([first, first + sides], -1)
