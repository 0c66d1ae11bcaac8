from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from deploykit.tasks import heatmaps


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_keypoints_are_torchvisions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(4, 3, 14, 14)).astype(np.float32)
    low = rng.uniform(-10, 40, (4, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 60, (4, 2))], 1).astype(np.float32)
    points, scores = heatmaps_to_keypoints(torch.from_numpy(maps), torch.from_numpy(boxes))
    found = heatmaps.locate(maps, boxes)
    # The logits agree everywhere, and so does the place unless two logits nearly tie.
    assert np.abs(found[..., 2] - scores.numpy()).max() < 1e-4
    near = np.abs(found[..., :2] - points.numpy()[..., :2]).max(-1) < 1e-3
    assert near.mean() > 0.9


def test_the_weights_of_the_enlargement_are_torchs_bicubic() -> None:
    rows = np.random.default_rng(0).normal(size=(1, 1, 56, 1)).astype(np.float32)
    for size in (1, 7, 56, 133):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(rows), size=(size, 1), mode="bicubic", align_corners=False
        )
        found = heatmaps.cubic(56, size) @ rows[0, 0]
        assert np.abs(found - expected.numpy()[0, 0]).max() < 1e-5


def test_no_objects_have_no_keypoints() -> None:
    empty = heatmaps.locate(np.zeros((0, 17, 56, 56), np.float32), np.zeros((0, 4), np.float32))
    assert empty.shape == (0, 17, 3)
