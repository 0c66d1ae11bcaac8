"""PointRend for semantic segmentation: coarse scores of a pyramid, doubtful points computed anew.

Source: Kirillov et al., PointRend (arXiv 1912.08193, section 5), on the head of Panoptic FPN
(arXiv 1901.02446, section 3.1); the names of parameters are those of detectron2's project. The
code is written from the papers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn
from torchvision.models.detection import backbone_utils

from deploykit.networks.detectors.dense import MOST
from deploykit.networks.detectors.point_layers import before, linear, row
from deploykit.networks.detectors.point_rend import as_points
from deploykit.networks.detectors.point_tables import Places, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

WIDTH, COARSE, GROUPS = 256, 128, 32
"""Channels of points and of the coarse head, and the groups of its norms."""
LAYERS, POINTS, STEPS, STRIDE = 3, 8192, 2, 4
"""Layers of the point head before its predictor; points of a step; how often the map doubles, and
input pixels to a cell of the coarse one."""


def most(scores: Tensor, count: int) -> Tensor:
    """Return the places int64[B, count] of the highest scores float32[B, N], in parts.

    TensorRT's TopK finds no more than MOST at once: what was found is out of the next search.
    """
    found = []
    while count:
        chosen = scores.topk(min(count, MOST)).indices
        found.append(chosen)
        count -= chosen.shape[1]
        scores = scores.scatter(1, chosen, -torch.inf) if count else scores
    return torch.cat(found, 1)


def doubt(logits: Tensor) -> Tensor:
    """Return how near the second class is to the first, float32[B, H * W]: at most 0.

    logits: float32[B, classes, H, W].
    """
    best = logits.amax(1, keepdim=True)
    others = torch.where(logits == best, -torch.inf, logits).amax(1, keepdim=True)
    tied = (logits == best).sum(1, keepdim=True) > 1
    return torch.where(tied, 0.0, others - best).flatten(1)


class Normed(nn.Conv2d):
    """A convolution 3x3, a group norm and a ReLU."""

    def __init__(self, inputs: int) -> None:
        """Make the layers."""
        super().__init__(inputs, COARSE, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, COARSE)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[B, COARSE, H, W]."""
        return cast("Tensor", self.norm(super().forward(x)).relu())


class Coarse(nn.Module):
    """The sum of all levels of a pyramid, each grown step by step to the finest, as scores."""

    def __init__(self, channels: int, classes: int) -> None:
        """Make the layers for maps of strides 4 to 32."""
        super().__init__()
        for steps in range(4):
            inputs = [channels] + [COARSE] * (max(steps, 1) - 1)
            layers: list[nn.Module] = []
            for count in inputs:
                layers.append(Normed(count))
                if steps:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            setattr(self, f"p{steps + 2}", nn.Sequential(*layers))
        self.predictor = nn.Conv2d(COARSE, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits float32[B, classes, H / 4, W / 4] of maps float32[B, C, h, w]."""
        *levels, last = self.children()
        total: Tensor | None = None
        for level, x in zip(levels, maps, strict=True):
            grown = level(x)
            total = grown if total is None else total + grown
        return cast("Tensor", last(total))


class Points(nn.Module):
    """What a point is, from its fine features and the coarse scores there."""

    def __init__(self, channels: int, classes: int) -> None:
        """Make the layers, which are convolutions along the points as in checkpoints."""
        super().__init__()
        widths = (channels + classes, *(WIDTH,) * LAYERS, classes)
        names = (*(f"fc{number}" for number in range(1, LAYERS + 1)), "predictor")
        for name, (inputs, outputs) in zip(names, pairwise(widths), strict=True):
            setattr(self, name, nn.Conv1d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits float32[B, P, classes] of float32[B, P, C + classes]."""
        return _through(self.children(), x)

    def folded(self) -> nn.Module:
        """Return the same with linear layers."""
        return FoldedPoints(self)


def _through(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Return float32[B, P, out] of float32[B, P, in]."""
    *inner, last = layers
    rows = x.flatten(0, 1)  # see the other head
    for layer in inner:
        rows = row(layer, rows).relu()
    found = row(last, rows)
    return found.reshape(-1, x.shape[1], found.shape[1])


class FoldedPoints(nn.Module):
    """What `Points` becomes."""

    def __init__(self, source: Points) -> None:
        """Take the weights of `source` under their names."""
        super().__init__()
        for name, layer in source.named_children():
            assert isinstance(layer, nn.Conv1d)
            setattr(self, name, linear(layer))

    forward = Points.forward

    def mapped(self, features: Tensor) -> Tensor:
        """Return what the first layer makes of a map float32[B, C + classes, H, W]."""
        return before(cast("nn.Linear", next(self.children())), features)

    def rest(self, first: Tensor) -> Tensor:
        """Return the same as `forward` of what points read from a map of `mapped`."""
        layer, *others = cast("list[nn.Linear]", list(self.children()))
        return _through(others, (first + layer.bias).relu())


class Doubt(nn.Module):
    """The points of a map that two classes nearly share."""

    def __init__(self, count: int) -> None:
        """Look for `count` points, or all of a smaller map."""
        super().__init__()
        self.count = count

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return places int64[B, P] in maps float32[B, classes, H, W], and these as points."""
        height, width = logits.shape[2:]
        chosen = most(doubt(logits), min(self.count, height * width))
        return chosen, as_points(chosen, (height, width), logits)


def refined(
    logits: Tensor,
    steps: int,
    doubt: Doubt,
    answers: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    aligned: bool = False,
) -> Tensor:
    """Return a map twice as large `steps` times, each time with new scores of its doubtful points.

    logits: float32[B, classes, H, W]. answers: (places int64[B, P], these as points float[B, P, 2],
    the map that they are of) -> float32[B, P, classes]. aligned: The map grows with its corners
    kept in place.
    """
    for _ in range(steps):
        sides = [2 * side for side in logits.shape[2:]]
        logits = F.interpolate(logits, sides, mode="bilinear", align_corners=aligned)
        chosen, points = doubt(logits)
        found = answers(chosen, points, logits).transpose(1, 2)
        index = chosen.unsqueeze(1).expand(-1, logits.shape[1], -1)
        logits = logits.flatten(2).scatter(2, index, found)
        logits = logits.reshape(-1, logits.shape[1], *sides)
    return logits


class Head(nn.Module):
    """The coarse head and the point head."""

    def __init__(self, channels: int, classes: int) -> None:
        """Make the layers."""
        super().__init__()
        self.coarse_sem_seg_head = Coarse(channels, classes)
        self.point_head: nn.Module = Points(channels, classes)
        self.places, self.doubt = Places(), Doubt(POINTS)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits float32[B, classes, H, W] of maps of strides 4 to 32, the finest first."""
        coarse = cast("Tensor", self.coarse_sem_seg_head(maps))
        tables, answer = self._read(maps[0], coarse)
        image = torch.arange(coarse.shape[0], dtype=torch.int32)

        def answers(_: Tensor, points: Tensor, __: Tensor) -> Tensor:
            read = [table.read(self.places(points, image, table.sides)) for table in tables]
            return answer(torch.cat(read, -1))

        return refined(coarse, STEPS, self.doubt, answers)

    def _read(
        self, features: Tensor, coarse: Tensor
    ) -> tuple[list[Table], Callable[[Tensor], Tensor]]:
        """Return what points read, and what makes answers of it; see `before`."""
        head, (high, wide) = self.point_head, coarse.shape[2:]
        if high * wide > STEPS * POINTS or not isinstance(head, FoldedPoints):
            return [Table(features), Table(coarse)], head
        return [Table(head.mapped(torch.cat([features, coarse], 1)))], head.rest


class Segmenter(nn.Module):
    """A ResNet with a feature pyramid, and the head."""

    def __init__(self, body: str, classes: int) -> None:
        """Make the network as it is trained."""
        super().__init__()
        self.backbone: nn.Module = backbone_utils.resnet_fpn_backbone(
            backbone_name=body, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        self.sem_seg_head = Head(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[B, classes, H, W] of images float32[B, 3, H, W]."""
        maps = list(self.backbone(images).values())[:4]
        return cast("Tensor", self.sem_seg_head(maps))
