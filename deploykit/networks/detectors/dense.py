"""Dense detectors in fixed shapes: the best candidates of every level, then one NMS.

torchvision keeps the candidates above a score and then the best so many; here the best so many
come first, with a fixed shape, and the score threshold is the NMS op's. Both give the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from deploykit import ops
from deploykit.networks.detectors import grids
from deploykit.recipes import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.recipes.identity import Plain

    Array = NDArray[np.float32]
    Decode = Callable[[Tensor, Tensor], Tensor]
    """(deltas [..., 4], anchors [..., 4]) -> boxes [..., 4]."""

MOST = 3840
"""Candidates that enter the NMS: TensorRT's TopK finds no more."""


def up_to_most(value: Plain) -> int:
    """Return a number of rows that one TopK finds. Raises: ValueError."""
    if identity.count(value) > MOST:
        raise ValueError(f"a whole number of 1 to {MOST}")
    return identity.count(value)


@dataclass(frozen=True)
class Limits:
    """Which candidates become detections."""

    score: float
    """A score must be above it."""
    iou: float
    """Of two overlapping candidates of a class, the lesser goes where their IoU is above it."""
    candidates: int
    """The best so many are looked at, of each level or each class."""
    detections: int
    """Most detections per image."""

    @classmethod
    def of(cls, model: Any) -> Limits:  # noqa: ANN401 - torchvision ships no types
        """Return those that a torchvision RetinaNet, FCOS or SSD was made with."""
        return cls(
            model.score_thresh, model.nms_thresh, model.topk_candidates, model.detections_per_img
        )


class Level(NamedTuple):
    """What the heads say of the n anchors of one level."""

    logits: Tensor
    """float32[B, n, classes]."""
    deltas: Tensor
    """float32[B, n, 4]."""
    anchors: Tensor
    """float32[n, 4]: x1, y1, x2, y2 in input pixels."""
    quality: Tensor | None = None
    """float32[B, n, 1]: logits that every class of an anchor shares, or None."""


class Candidates(NamedTuple):
    """Boxes that may become detections."""

    boxes: Tensor
    """float32[B, N, 4]: x1, y1, x2, y2 in input pixels."""
    scores: Tensor
    """float32[B, N]."""
    classes: Tensor
    """int64[B, N]."""


def probability(logits: Tensor, quality: Tensor | None) -> Tensor:
    """Return the score of each class: its sigmoid, or the geometric mean with the quality's."""
    scores = logits.sigmoid()
    return scores if quality is None else (scores * quality.sigmoid()).sqrt()


class Picks(NamedTuple):
    """The best pairs of an anchor and a class of one level."""

    deltas: Tensor
    """float32[B, k, 4]."""
    anchors: Tensor
    """float32[B, k, 4]."""
    scores: Tensor
    """float32[B, k], falling."""
    classes: Tensor
    """int64[B, k]."""


def best(level: Level, count: int) -> Picks:
    """Return the `count` best pairs of an anchor and a class of one level.

    Anchors are ranked by their best class first: the best `count` pairs lie within the best
    `count` anchors, and the pairs of all anchors (13.7 million at the finest level of 800x1344)
    are never ranked at once. Of pairs with equal scores, others may be the last ones. A level with
    fewer anchors is ranked too: the graph is the same for every size of image.
    """
    logits, deltas, anchors, quality = level
    top = probability(logits.amax(-1, keepdim=True), quality).squeeze(-1)
    chosen = top.topk(min(count, anchors.shape[0])).indices
    logits, deltas = rows(logits, chosen), rows(deltas, chosen)
    quality = None if quality is None else rows(quality, chosen)
    pairs = probability(logits, quality).flatten(1)
    scores, index = pairs.topk(min(count, pairs.shape[1]))
    classes = logits.shape[-1]
    anchor = torch.div(index, classes, rounding_mode="floor")
    places = rows(constant_rows(anchors, chosen), anchor)
    return Picks(rows(deltas, anchor), places, scores, index - anchor * classes)


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Return [B, k, C]: the rows that `index` (int64[B, k]) names of each image's [B, n, C]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def constant_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return [B, k, C]: the rows that `index` (int64[B, k]) names of [n, C], alike for all images.

    An embedding is exported as one Gather.
    """
    return nn.functional.embedding(index, values)


class Select(nn.Module):
    """From the answers of all levels to the detections."""

    def __init__(self, limits: Limits, decode: Decode) -> None:
        """Keep how boxes are coded, and which of them become detections.

        `early`: whether boxes end at their images before they suppress each other. `empty`: whether
        those without area there may be found.
        """
        super().__init__()
        self.limits, self.decode = limits, decode
        self.early = self.empty = True

    def forward(self, levels: Sequence[Level], limit: Tensor, score: float) -> tuple[Tensor, ...]:
        """Return what `suppressed` does, with boxes inside their images, see `grids.limits`."""
        parts = [best(level, self.limits.candidates) for level in levels]
        picks = Picks(*(torch.cat(list(part), 1) for part in zip(*parts, strict=True)))
        boxes = self.decode(picks.deltas, picks.anchors)
        inside, scores = grids.clipped(boxes, limit), picks.scores
        if not self.empty:
            seen = (inside[..., 2:] > inside[..., :2]).all(-1)
            scores = torch.where(seen, scores, -torch.inf)
        boxes = inside if self.early else boxes
        found = suppressed(Candidates(boxes, scores, picks.classes), self.limits, score)
        return found if self.early else (grids.clipped(found[0], limit), *found[1:])


class Pyramid(nn.Module):
    """A detector whose heads answer for every cell of every level: RetinaNet, FCOS."""

    def __init__(self, model: Any, decode: Decode) -> None:  # noqa: ANN401 - torchvision ships no types
        """Take the trained parts of torchvision's model, under their names.

        `score_threshold` may be changed until the network is traced. `steps`: input pixels between
        the anchors of each level; None: as many as there are to a cell, rounded down.
        """
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.cells = [cell.numpy() for cell in model.anchor_generator.cell_anchors]
        self.steps: tuple[int, ...] | None = None
        limits = Limits.of(model)
        self.score_threshold, self.select = limits.score, Select(limits, decode)

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count of normalised images float32[B, 3, H, W].

        image_sizes: float32[B, 2], height and width of the images at the top left of the inputs.
        """
        size = (int(images.shape[2]), int(images.shape[3]))
        maps = self.backbone(images).values()
        steps = self.steps or (None,) * len(self.cells)
        levels = [
            self._level(features, (cell, step), size)
            for features, cell, step in zip(maps, self.cells, steps, strict=True)
        ]
        found: tuple[Tensor, ...] = self.select(
            levels, grids.limits(size, image_sizes), self.score_threshold
        )
        return found

    def _level(
        self, features: Tensor, cell: tuple[Array, int | None], size: tuple[int, int]
    ) -> Level:
        logits = self.head.classification_head([features])
        sides = self.head.regression_head([features])
        deltas, quality = sides if isinstance(sides, tuple) else (sides, None)
        grid = (int(features.shape[2]), int(features.shape[3]))
        anchors = grids.anchors(cell[0], size, grid, cell[1])
        return Level(logits, deltas, torch.from_numpy(anchors).to(deltas.dtype), quality)


def suppressed(found: Candidates, limits: Limits, score: float) -> tuple[Tensor, ...]:
    """Return boxes [B, M, 4], scores [B, M], classes int32[B, M] and count int32[B] after NMS.

    At most MOST candidates enter, the best by score. Where more are above `score`, the result is
    still exact as long as M of the best MOST survive, and else lacks those beyond them.
    """
    boxes, scores, classes, _, count = nms(found, limits, score)
    return boxes, scores, classes, count


def nms(found: Candidates, limits: Limits, score: float) -> tuple[Tensor, ...]:
    """Return what `suppressed` does, and before the count int32[B, M]: places in `found`, or -1."""
    result: tuple[Tensor, ...] = ops.torch_op("batched_nms")(
        found.boxes,
        found.scores,
        found.classes.to(torch.int32),
        iou_threshold=limits.iou,
        score_threshold=score,
        candidates=MOST,
        max_detections=limits.detections,
    )
    return result
