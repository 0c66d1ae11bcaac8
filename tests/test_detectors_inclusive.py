from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploykit.networks.detectors import dense, inclusive

# What the Caffe code prints for a stride of 16, ratios 0.5, 1, 2 and scales 8, 16, 32.
CAFFE = [
    [-84, -40, 99, 55],
    [-176, -88, 191, 103],
    [-360, -184, 375, 199],
    [-56, -56, 71, 71],
    [-120, -120, 135, 135],
    [-248, -248, 263, 263],
    [-36, -80, 51, 95],
    [-80, -168, 95, 183],
    [-168, -344, 183, 359],
]


def cell() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return inclusive.cell_anchors(16, (8, 16, 32), (0.5, 1, 2))


def test_anchors_of_the_first_cell_are_those_of_the_caffe_code() -> None:
    assert cell().tolist() == CAFFE


def test_anchors_go_row_by_row_sixteen_pixels_apart() -> None:
    grid = inclusive.grid_anchors(cell(), 16, (3, 4)).reshape(3, 4, 9, 4)
    assert np.array_equal(grid[0, 0], cell())
    assert np.array_equal(grid[2, 3] - grid[0, 0], np.tile([48.0, 32, 48, 32], (9, 1)))


def test_a_box_that_does_not_move_stays_inside_the_image() -> None:
    boxes = torch.tensor([[3.0, 4, 3, 4], [-9, 2, 500, 80], [0, 0, 99, 49]])
    found = inclusive.moved(boxes, torch.zeros(3, 4), torch.tensor([100, 50, 100, 50]))
    # The far corner comes out one pixel further, as in the Caffe code, and is cut to the image.
    assert found.tolist() == [[3, 4, 4, 5], [0, 2, 99, 49], [0, 0, 99, 49]]


@given(st.integers(0, 10_000))
def test_boxes_move_as_by_the_published_formula(seed: int) -> None:
    random = np.random.default_rng(seed)
    low, sides = random.uniform(0, 300, (7, 2)), random.uniform(1, 200, (7, 2))
    moves = random.normal(0, 0.4, (7, 4))
    centre = low + 0.5 * sides + moves[:, :2] * sides
    half = 0.5 * np.exp(moves[:, 2:]) * sides
    expected = np.concatenate([centre - half, centre + half], 1).clip(0, [399, 299] * 2)
    boxes = np.concatenate([low, low + sides - 1], 1)
    found = inclusive.moved(torch.tensor(boxes), torch.tensor(moves), torch.tensor([400, 300] * 2))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_overlaps_count_the_last_pixel() -> None:
    # 10x10 pixels and 10x5 of them: half. Without the last pixel it would be 36 of 81.
    boxes = torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 4], [100, 0, 109, 9]]])
    found = dense.Candidates(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3))
    for iou, kept in ((0.51, 3), (0.49, 2)):
        limits = dense.Limits(0.1, iou, 3, 4)
        corners, scores, classes, count = inclusive.suppressed(found, limits, 0.1)
        assert count.tolist() == [kept]
        assert corners[0, kept - 1].tolist() == [100, 0, 109, 9]
        assert corners[0, kept:].eq(0).all()
        assert scores[0, :kept].tolist() == pytest.approx(
            [0.9, 0.8, 0.7] if kept == 3 else [0.9, 0.7]
        )
        assert classes[0, kept:].eq(-1).all()
