"""Matterport's Mask R-CNN as a whole: images and where they lie in, boxes and masks out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from deploykit import ops
from deploykit.networks.detectors import dense
from deploykit.networks.detectors.keras_rcnn import (
    BOX,
    EDGE,
    MASK,
    STRIDES,
    TRUNKS,
    Body,
    BoxHead,
    Limits,
    MaskHead,
    Propose,
    Pyramid,
    Rpn,
    Widths,
    last,
    moved,
)
from deploykit.networks.detectors.two_stage import LEAST, Rois

if TYPE_CHECKING:
    from collections.abc import Sequence

    Size = tuple[int, int]


USUAL, PUBLISHED = Widths(), Limits()


class Select(nn.Module):
    """From what the box head says of the proposals to the detections."""

    def forward(
        self, answers: tuple[Tensor, Tensor], rois: Rois, window: Tensor, limits: Limits
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count, see `dense.suppressed`; boxes are shares.

        A proposal is of its likeliest class alone. answers: logits [B * R, labels] and deltas
        [B * R, labels * 4]. window: of the boxes, float32[B or 1, 1, 4], as shares.
        """
        logits, deltas = answers
        count, labels = int(rois.boxes.shape[1]), int(logits.shape[1])
        scores, label = logits.softmax(-1).max(-1)
        chosen = label.reshape(-1, 1, 1).expand(-1, 1, 4)
        moves = deltas.reshape(-1, labels, 4).gather(1, chosen).reshape(-1, count, 4)
        boxes = moved(rois.boxes, moves)
        boxes = boxes.maximum(window[..., :2].repeat(1, 1, 2))
        boxes = boxes.minimum(window[..., 2:].repeat(1, 1, 2))
        label, scores = label.reshape(-1, count), scores.reshape(-1, count)
        present = torch.arange(count) < rois.count.unsqueeze(1)
        scores = torch.where(present & (label > 0), scores, -torch.inf)
        found = dense.Candidates(boxes, scores, (label - 1).clamp(min=0))
        kept = dense.Limits(limits.score, limits.iou, dense.MOST, min(limits.detections, count))
        return dense.suppressed(found, kept, limits.score - LEAST)


class KerasMaskRcnn(nn.Module):
    """Mask R-CNN on a ResNet with a feature pyramid."""

    def __init__(
        self,
        variant: str,
        classes: int,
        widths: Widths = USUAL,
        limits: Limits = PUBLISHED,
    ) -> None:
        """Make the layers for `classes`, the background not among them."""
        super().__init__()
        self.body, self.pyramid = Body(TRUNKS[variant], widths), Pyramid(widths)
        self.rpn, self.box = Rpn(widths), BoxHead(widths, classes + 1)
        self.mask = MaskHead(widths, classes + 1)
        self.propose, self.select = Propose(), Select()
        self.limits = limits

    def forward(self, images: Tensor, image_windows: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes, count and masks, padded.

        images: float32[B, 3, H, W], RGB less a mean. image_windows: float32[B, 4], x1, y1, x2, y2
        of the image in each input; None: it fills it. masks: float32[B, M, 28, 28], 0 to 1.
        """
        size = (int(images.shape[2]), int(images.shape[3]))
        levels = self.pyramid(self.body(images))
        rois = self.propose(self.rpn(levels), size, self.limits)
        answers = self.box(self._crops(levels, rois, size, BOX))
        window = shares(image_windows, size)
        boxes, scores, classes, count = self.select(answers, rois, window, self.limits)
        objects = Rois(boxes, count)
        pooled = objects.packed(self._crops(levels, objects, size, MASK))
        masks = self.mask(pooled, objects.packed(classes.flatten()))
        there = (torch.arange(boxes.shape[1]) < count.unsqueeze(1)).unsqueeze(-1)
        edges = boxes * torch.from_numpy(last(size)).to(boxes.dtype) + _edge(boxes)
        edges = torch.where(there, edges, 0.0)
        return edges, scores, classes, count, objects.unpacked(masks)

    def _crops(self, levels: Sequence[Tensor], rois: Rois, size: Size, side: int) -> Tensor:
        """Return float32[B * R, C, side, side] of the levels that RoIs are read from."""
        maps = list(levels[: len(STRIDES) - 1])
        found = ops.torch_op("multiscale_crop")(
            rois.boxes,
            rois.count,
            maps,
            output_height=side,
            output_width=side,
            levels=len(maps),
            image_area=float(size[0] * size[1]),
        )
        return cast("Tensor", found)


def shares(windows: Tensor | None, size: Size) -> Tensor:
    """Return windows float32[B, 4] in pixels as shares of an input of `size`: [B or 1, 1, 4]."""
    if windows is None:
        return torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.get_default_dtype()).reshape(1, 1, 4)
    whole = torch.from_numpy(last(size)).to(windows.dtype)
    return ((windows - _edge(windows)) / whole).unsqueeze(1)


def _edge(like: Tensor) -> Tensor:
    return torch.from_numpy(EDGE).to(like.dtype)
