"""What the tests of two-stage detectors share: small networks whose scores say something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dense_models import aligned, assert_same, eager, sane, tame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SIZE = (128, 160)
"""Height and width of the test images, in pixels."""


def settled(model: Any, seed: int = 0) -> Any:
    """Return torchvision's model with random weights and scores that differ."""
    sane(model, seed)
    images = pictures(1, seed)
    heads = model.roi_heads
    with torch.inference_mode():
        features = list(model.backbone(images).values())
    for layer, mean, deviation in (
        (model.rpn.head.cls_logits, -1.0, 2.0),
        (model.rpn.head.bbox_pred, 0.0, 0.3),
    ):
        tame(lambda: model.rpn.head(features), [layer], mean, deviation)
    pools = heads.mask_roi_pool, heads.keypoint_roi_pool
    heads.mask_roi_pool = heads.keypoint_roi_pool = None  # what follows the boxes says nothing here
    for layer, mean, deviation in (
        (heads.box_predictor.cls_score, 0.0, 1.5),
        (heads.box_predictor.bbox_pred, 0.0, 0.5),
    ):
        tame(lambda: eager(model, images), [layer], mean, deviation)
    heads.mask_roi_pool, heads.keypoint_roi_pool = pools
    return model


def pictures(count: int, seed: int = 1) -> torch.Tensor:
    """Return normalised images float32[count, 3, H, W]: even patches under noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, SIZE[0] // 16, SIZE[1] // 16, generator=generator)
    patches = torch.nn.functional.interpolate(coarse, SIZE)
    return patches + 0.3 * torch.randn(count, 3, *SIZE, generator=generator)


def assert_same_masks(
    found: Sequence[NDArray[Any]], expected: Sequence[Mapping[str, torch.Tensor]]
) -> None:
    """Compare the boxes, and the masks after they were pasted, with torchvision's."""
    from deploykit.tasks import masks

    assert_same(found, expected, 1)
    boxes, _, classes, counts, values = found
    for i, wanted in enumerate(expected):
        order = aligned(boxes[i, : counts[i]], classes[i, : counts[i]], wanted, 1)
        size = wanted["masks"].shape[2:]
        ours = masks.paste(values[i][order], wanted["boxes"].numpy(), *size)
        theirs = (wanted["masks"][:, 0] > masks.THRESHOLD).numpy()
        both, either = (ours & theirs).sum((1, 2)), (ours | theirs).sum((1, 2))
        assert (both >= 0.99 * either).all()
        assert not values[i, counts[i] :].any()


def assert_same_keypoints(
    found: Sequence[NDArray[Any]], expected: Sequence[Mapping[str, torch.Tensor]]
) -> None:
    """Compare the boxes and the located keypoints with torchvision's."""
    from deploykit.tasks import heatmaps

    assert_same(found, expected, 1)
    boxes, _, classes, counts, logits = found
    for i, wanted in enumerate(expected):
        order = aligned(boxes[i, : counts[i]], classes[i, : counts[i]], wanted, 1)
        points = heatmaps.locate(logits[i][order], wanted["boxes"].numpy())
        off = np.abs(points[..., :2] - wanted["keypoints"][..., :2].numpy()).max(-1)
        assert (off <= 0.5).mean() >= 0.99
