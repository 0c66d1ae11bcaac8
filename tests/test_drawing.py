from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from deploykit.data import drawing

if TYPE_CHECKING:
    from numpy.typing import NDArray

MATERIALS = drawing.Materials(
    photos=(Image.new("RGB", (200, 150), (90, 120, 150)),),
    grounds=(Image.new("RGB", (200, 150), (120, 120, 120)),),
    textures=(np.zeros((7, 5), np.float32),),
)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> NDArray[np.float64]:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)


def test_a_rectangle_covers_exactly_its_pixels() -> None:
    shape = drawing.rasterised((rectangle(5, 4, 15, 10),), 20, 30)
    x1, y1, x2, y2 = shape.region
    cover = np.zeros((20, 30), np.uint8)
    cover[y1:y2, x1:x2] = shape.cover
    expected = np.zeros((20, 30), np.uint8)
    expected[4:10, 5:15] = 255
    assert np.array_equal(cover > 127, expected > 127)
    assert shape.area == 60


@pytest.mark.parametrize("angle", np.linspace(0, math.tau, 7))
@pytest.mark.parametrize("corners", [3, 4, 10, 48])
def test_the_rasterised_area_equals_the_polygons(corners: int, angle: float) -> None:
    outside = drawing.polygon(corners, 40.0) @ drawing.rotation(angle).T + 50
    hole = drawing.polygon(corners, 15.0) + 50
    shape = drawing.rasterised((outside, hole), 100, 100)
    exact = corners / 2 * math.sin(math.tau / corners) * (40**2 - 15**2)
    assert shape.area == pytest.approx(exact)
    assert shape.cover.sum() / 255 == pytest.approx(exact, rel=0.02)


def test_the_area_counts_what_lies_beyond_the_image() -> None:
    shape = drawing.rasterised((rectangle(-10, -10, 10, 10),), 30, 30)
    assert shape.area == 400
    assert shape.region[:2] == (0, 0)
    assert (shape.cover > 127).sum() == 100


def test_later_shapes_cover_earlier_ones() -> None:
    shapes = [
        drawing.rasterised((rectangle(2, 2, 22, 12),), 30, 30),
        drawing.rasterised((rectangle(12, 2, 25, 12),), 30, 30),
    ]
    behind, front = drawing.visible(shapes, 30, 30)
    assert (int(behind.sum()), int(front.sum())) == (100, 130)
    box, mask = drawing.tight(shapes[0].region, behind)
    assert box == (2, 2, 12, 12)
    assert mask.all()


@given(mask=arrays(np.bool_, (5, 4)), x=st.integers(0, 3), y=st.integers(0, 2))
def test_run_lengths_rebuild_the_mask(mask: NDArray[np.bool_], x: int, y: int) -> None:
    runs = drawing.run_lengths((x, y, x + 4, y + 5), mask, 7, 8)
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    expected = np.zeros((7, 8), np.bool_)
    expected[y : y + 5, x : x + 4] = mask
    np.testing.assert_array_equal(values.reshape(8, 7).T, expected)


def test_the_same_generator_paints_the_same_picture() -> None:
    shapes = [drawing.rasterised((rectangle(10, 10, 40, 40),), 60, 80)]
    first, again, other = (
        drawing.paint(np.random.default_rng(seed), shapes, MATERIALS, 60, 80) for seed in (1, 1, 2)
    )
    assert first.shape == (60, 80, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(20))
def test_a_shape_can_be_told_from_its_background(seed: int) -> None:
    shapes = [drawing.rasterised((rectangle(20, 20, 40, 40),), 60, 60)]
    picture = drawing.paint(np.random.default_rng(seed), shapes, MATERIALS, 60, 60).astype(float)
    inside, outside = picture[25:35, 25:35].mean((0, 1)), picture[:8].mean((0, 1))
    assert np.abs(inside - outside).max() > 10
