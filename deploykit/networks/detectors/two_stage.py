"""Two-stage detectors in fixed shapes: proposals, then boxes, masks and keypoints of RoIs.

The parts are torchvision's, under torchvision's names; only what happens between them is written
anew, with padded results and counts where torchvision makes lists. On the same canvas both find
the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from deploykit import ops
from deploykit.networks.detectors import dense, grids
from deploykit.networks.reparam import Phases

if TYPE_CHECKING:
    from collections.abc import Sequence

    Size = tuple[int, int]

NOTHING = -1.0
"""Score of what shall not be found; those of torch are 0 or more."""
LEAST = 1e-6
"""A threshold of 0 that admits 0 is this much below it."""


@dataclass(frozen=True)
class Sampling:
    """How a RoI is read from the pyramid, see DKMultiscaleRoiAlign."""

    aligned: int = 0
    sampling_ratio: int = 2
    """0: as many samples as the RoI has cells."""
    level_epsilon: float = 1e-6
    epsilon_inside: int = 0
    inclusive: int = 0
    """1: the ends of a box are pixels, both inside, so its sides are x2 - x1 + 1. Between the heads
    boxes are edges then, x2 and y2 one pixel further: all else is as for others."""


@dataclass(frozen=True)
class Rois:
    """Boxes to look at closely."""

    boxes: Tensor
    """float32[B, R, 4]: x1, y1, x2, y2 in input pixels; zeros in the padding."""
    count: Tensor
    """int32[B]: how many are there."""

    def packed(self, rows: Tensor) -> Tensor:
        """Return the rows T[B * R, ...] between which and `unpacked` the padding may be left out.

        There, no row may depend on another.
        """
        pack = ops.torch_op("pack_rows")
        return cast("Tensor", pack(rows, self.count, per_image=int(self.boxes.shape[1])))

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return T[B, R, ...] of packed rows, the padding zero."""
        unpack, count = ops.torch_op("unpack_rows"), int(self.boxes.shape[1])
        rows = unpack(packed, self.count, per_image=count)
        return cast("Tensor", rows.reshape(-1, count, *packed.shape[1:]))


class Pooler(nn.Module):
    """Features of RoIs, each from the level of the pyramid that fits its size."""

    def __init__(self, size: Size, strides: Sequence[int], sampling: Sampling) -> None:
        """Keep the size of the result, H and W, and the input pixels per cell of each level."""
        super().__init__()
        first = strides[0].bit_length() - 1
        self.options = {
            "output_height": size[0],
            "output_width": size[1],
            "spatial_scales": [1 / stride for stride in strides],
            "first_level": first,
            **vars(sampling),
        }

    def forward(self, maps: Sequence[Tensor], rois: Rois) -> Tensor:
        """Return float32[B * R, C, H, W] of the pyramid's maps float32[B, C, H_l, W_l]."""
        pool = ops.torch_op("multiscale_roi_align")
        return cast("Tensor", pool(rois.boxes, rois.count, list(maps), **self.options))


class Proposals(nn.Module):
    """From what the RPN says of all anchors to the proposals."""

    def __init__(self, rpn: Any, inside: int = 0) -> None:  # noqa: ANN401 - torchvision ships no types
        """Take the limits of torchvision's RPN; inside: see `Sampling.inclusive`."""
        super().__init__()
        self.inside, self.bounded = inside, False  # see `grids.moved`
        self.entering, self.most = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
        self.iou, self.score, self.least = rpn.nms_thresh, rpn.score_thresh, rpn.min_size

    def forward(self, levels: Sequence[dense.Level], limit: Tensor) -> Rois:
        """Return the best proposals of all levels inside their images, see `grids.limits`.

        Each level has an NMS of its own; their best come together afterwards.
        """
        parts = [self._best(level, limit) for level in levels]
        boxes, scores = (
            torch.stack(list(part), 1).flatten(0, 1) for part in zip(*parts, strict=True)
        )
        kept = ops.torch_op("batched_nms")(
            boxes,
            scores,
            torch.zeros_like(scores, dtype=torch.int32),
            iou_threshold=self.iou,
            score_threshold=self.score - LEAST,
            candidates=self.entering,
            max_detections=min(self.entering, self.most),
        )
        return self._joined(kept, len(levels))

    def _best(self, level: dense.Level, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes [B, K, 4] and scores [B, K] of the best K anchors, padded."""
        count = min(self.entering, level.anchors.shape[0])
        logits, index = level.logits.squeeze(-1).topk(count)
        anchors = dense.constant_rows(level.anchors, index)
        moved = grids.moved(dense.rows(level.deltas, index), anchors, bounded=self.bounded)
        boxes = grids.clipped(moved, limit, self.inside)
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = torch.where((sides >= self.least).all(-1), logits.sigmoid(), NOTHING)
        return self._padded(boxes, scores)

    def _padded(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return `entering` rows, those beyond the anchors of a small level with no score.

        The graph is the same for a level with enough of them, so it is for every size of image.
        """
        count = boxes.shape[1]
        place = torch.arange(self.entering)
        present = place < count
        place = torch.where(present, place, 0)
        return boxes[:, place], torch.where(present, scores[:, place], NOTHING)

    def _joined(self, kept: tuple[Tensor, ...], levels: int) -> Rois:
        """Return the best of what the levels kept: [B * levels, ...] each."""
        boxes, scores, _, indices, _ = kept
        scores = torch.where(indices >= 0, scores, NOTHING).reshape(-1, levels * scores.shape[1])
        boxes = boxes.reshape(-1, scores.shape[1], 4)
        scores, order = scores.topk(min(self.most, scores.shape[1]))
        count = (scores > NOTHING).sum(1, dtype=torch.int32)
        return Rois(dense.rows(boxes, order), count)


class Detections(nn.Module):
    """From what the box head says of the proposals to the detections."""

    def __init__(self, heads: Any, inside: int = 0) -> None:  # noqa: ANN401 - torchvision ships no types
        """Take the limits of torchvision's RoI heads; inside: see `Sampling.inclusive`."""
        super().__init__()
        self.inside, self.bounded = inside, False  # see `grids.moved`
        self.weights = tuple(heads.box_coder.weights)
        self.limits = dense.Limits(
            heads.score_thresh, heads.nms_thresh, dense.MOST, heads.detections_per_img
        )
        self.least = 1e-2  # of a box's sides, in pixels

    def forward(
        self, logits: Tensor, deltas: Tensor, rois: Rois, limit: Tensor, score: float
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count, see `dense.suppressed`.

        logits: [B * R, 1 + classes], background first. deltas: [B * R, 4 * (1 + classes)].
        """
        count, classes = int(rois.boxes.shape[1]), int(logits.shape[1]) - 1
        scores = logits.softmax(-1)[:, 1:].reshape(-1, count, classes)
        moves = deltas.reshape(-1, count, classes + 1, 4)[:, :, 1:]
        moved = grids.moved(moves, rois.boxes.unsqueeze(2), self.weights, bounded=self.bounded)
        boxes = grids.clipped(moved, limit, self.inside)
        present = torch.arange(count) < rois.count.unsqueeze(1)
        sides = boxes[..., 2:] - boxes[..., :2]
        found = present.unsqueeze(-1) & (sides >= self.least).all(-1)
        scores = torch.where(found, scores, -torch.inf)
        labels = torch.arange(classes).expand_as(scores)
        candidates = dense.Candidates(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1))
        return dense.suppressed(candidates, self.limits, score)


class TwoStage(nn.Module):
    """Faster R-CNN, and Mask, Mask Scoring or Keypoint R-CNN where the model has such heads."""

    def __init__(self, model: Any, sampling: Sampling = Sampling()) -> None:  # noqa: ANN401 - torchvision ships no types
        """Take the trained parts of torchvision's model, under their names; it goes to eval mode.

        `score_threshold` may be changed until the network is traced. `steps`: input pixels between
        the anchors of each level; None: as many as there are to a cell, rounded down.
        """
        super().__init__()
        model.eval()  # the RPN's limits follow the mode
        self.backbone, self.rpn, self.roi_heads = model.backbone, model.rpn, model.roi_heads
        self.cells = [cell.numpy() for cell in model.rpn.anchor_generator.cell_anchors]
        self.steps: tuple[int, ...] | None = None
        self.propose = Proposals(model.rpn, sampling.inclusive)
        self.select = Detections(model.roi_heads, sampling.inclusive)
        self.score_threshold = model.roi_heads.score_thresh
        self.sampling = sampling

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes, count[, masks[, mask_scores]][, keypoints].

        images: float32[B, 3, H, W].
        image_sizes: float32[B, 2], height and width of the images at the top left of the inputs;
        None: as large as these.
        masks: float32[B, M, S, S], 0 to 1, of each object's class over its box. keypoints:
        float32[B, M, K, S, S], logits over its box. mask_scores: float32[B, M]. All are 0 in the
        padding.
        """
        size = (int(images.shape[2]), int(images.shape[3]))
        limit = grids.limits(size, image_sizes)
        maps = dict(self.backbone(images))
        heads = self.roi_heads
        rois = self.propose(self._levels(list(maps.values()), size), limit)
        x = heads.box_head(self._pool(heads.box_roi_pool, maps, rois, size))
        found = self.select(*heads.box_predictor(x), rois, limit, self.score_threshold)
        objects = Rois(found[0], found[3])
        if heads.mask_roi_pool is not None:
            pooled = objects.packed(self._pool(heads.mask_roi_pool, maps, objects, size))
            found = (*found, *self._masked(pooled, objects, found))
        elif heads.mask_head is not None:  # one that reads the pyramid's finest map itself
            finest = next(iter(maps.values()))
            masks = heads.mask_head(finest, size[0] / int(finest.shape[2]), objects, found[2])
            found = (*found, objects.unpacked(masks))
        if heads.keypoint_roi_pool is not None:
            x = objects.packed(self._pool(heads.keypoint_roi_pool, maps, objects, size))
            heatmaps = heads.keypoint_predictor(heads.keypoint_head(x))
            found = (*found, objects.unpacked(heatmaps))
        if self.sampling.inclusive:  # the padding stays zero
            found = (self._ends(found[0]).clamp(min=0), *found[1:])
        return cast("tuple[Tensor, ...]", found)

    def _masked(self, pooled: Tensor, objects: Rois, found: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the masks, and where there is a head for it what each is worth."""
        heads, (_, scores, classes, _) = self.roi_heads, found
        logits = heads.mask_predictor(heads.mask_head(pooled))
        labels = objects.packed(classes.flatten())
        masks = object_masks(logits, labels, heads.mask_predictor.conv5_mask)
        made = [objects.unpacked(masks)]
        if hasattr(heads, "maskiou"):
            worth = objects.unpacked(heads.maskiou(pooled, masks, labels))
            made.append(scores * worth.squeeze(-1))
        return made

    def _ends(self, boxes: Tensor) -> Tensor:
        """Return boxes whose ends are as the family has them, see `Sampling.inclusive`."""
        inside = float(self.sampling.inclusive)
        return boxes - torch.tensor([0.0, 0.0, inside, inside]) if inside else boxes

    def _levels(self, maps: Sequence[Tensor], size: Size) -> list[dense.Level]:
        """Return what the RPN says of each level's anchors."""
        logits, deltas = self.rpn.head(maps)
        steps = self.steps or (None,) * len(self.cells)
        return [
            dense.Level(_by_cell(scores, 1), _by_cell(moves, 4), _anchors(cell, size, scores, step))
            for cell, scores, moves, step in zip(self.cells, logits, deltas, steps, strict=True)
        ]

    def _pool(self, pooler: Any, maps: dict[str, Tensor], rois: Rois, size: Size) -> Tensor:  # noqa: ANN401 - torchvision ships no types
        """Return the features of RoIs as one of torchvision's poolers would."""
        chosen = [maps[name] for name in pooler.featmap_names if name in maps]
        strides = [2 ** round(math.log2(size[0] / int(m.shape[2]))) for m in chosen]
        rois = Rois(self._ends(rois.boxes), rois.count)
        return cast("Tensor", Pooler(pooler.output_size, strides, self.sampling)(chosen, rois))


def _anchors(cell: grids.Array, size: Size, scores: Tensor, step: int | None) -> Tensor:
    grid = int(scores.shape[2]), int(scores.shape[3])
    return torch.from_numpy(grids.anchors(cell, size, grid, step)).to(scores.dtype)


def _by_cell(answers: Tensor, width: int) -> Tensor:
    """Return [B, H * W * A, width] of a map [B, A * width, H, W]."""
    height, across = answers.shape[2:]
    split = answers.reshape(-1, answers.shape[1] // width, width, height, across)
    return split.permute(0, 3, 4, 1, 2).flatten(1, 3)


def object_masks(logits: Tensor, classes: Tensor, upsampling: nn.Module) -> Tensor:
    """Return float32[n, S, S], 0 to 1: each object's mask of its class.

    logits: [n, 1 + classes, S, S], background first, or its phases. classes: int32[n], -1 in the
    padding. upsampling: the layer that gave the logits their size.
    """
    phases = upsampling.count if isinstance(upsampling, Phases) else 1
    side = logits.shape[-1]
    label = (classes.clamp(min=0) + 1).to(torch.int64).reshape(-1, 1).expand(-1, phases)
    label = label.reshape(-1, 1, 1, 1).expand(-1, -1, side, side)
    masks = logits.gather(1, label).squeeze(1).sigmoid()
    return upsampling.join(masks) if isinstance(upsampling, Phases) else masks
