"""Input sizes that fit a set of images, and what a model is fed beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from deploykit.data import feeding, fitting
from deploykit.data.feeding import IMAGE_SIZES
from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import SOURCES, Dataset, Sample
from deploykit.errors import DataError, OptionError
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = (80, 133)
CORNER = Preprocess(
    (96, 160), resize="corner", resampler="torch", rounding="down", pad_value=None, limits=LIMITS
)
SHAPES = st.tuples(st.integers(4, 300), st.integers(4, 300))
SPECS = (
    TensorSpec("images", "float32", ("batch", 3, 8, 16)),
    TensorSpec(IMAGE_SIZES, "float32", ("batch", 2)),
)


def official(shape: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return the canvas and the sides that torchvision gives an image alone."""
    transform: Any = GeneralizedRCNNTransform(*LIMITS, [0.0] * 3, [1.0] * 3).eval()
    batch, _ = transform([torch.zeros(3, *shape)])
    return tuple(batch.tensors.shape[2:]), batch.image_sizes[0]


@given(st.lists(SHAPES, min_size=1, max_size=6))
def test_every_image_gets_the_canvas_that_torchvision_gives_it(
    shapes: list[tuple[int, int]],
) -> None:
    found = fitting.fitted(CORNER, shapes, 32)
    assert found.exact == len(shapes) == sum(found.images.values())
    for shape in shapes:
        image, place = found.preprocess(np.zeros((*shape, 3), np.uint8))
        canvas, sides = official(shape)
        assert image.shape[1:] == canvas
        assert place.sides == sides


def test_the_most_frequent_size_comes_first() -> None:
    found = fitting.fitted(CORNER, [(90, 60), (60, 90), (90, 60)], 32)
    assert found.preprocess.sizes == ((128, 96), (96, 128))
    assert str(found) == "input sizes for 3 images: 128x96 (67%), 96x128 (33%)"


def test_the_rarest_share_one_size_that_holds_them_all() -> None:
    own = Preprocess((800, 1344), resize="corner", limits=(800, 1333), rounding="down")
    common = [(600, 600 + 24 * step) for step in range(14) for _ in range(3)]
    rare = [(600 + 24 * step, 600) for step in range(1, 14)]
    found = fitting.fitted(own, common + rare, 32)
    assert len(found.preprocess.sizes) == fitting.MOST
    assert found.exact < len(common) + len(rare)
    assert f"{len(common) + len(rare) - found.exact} have more padding than alone" in str(found)
    for image in common + rare:
        fit = found.preprocess.fit(*image)
        assert min(fit.sides) == 800 or max(fit.sides) == 1333, "none is shrunk"


def test_images_of_one_size_need_no_fit() -> None:
    with pytest.raises(OptionError, match="prepared for 320x320"):
        fitting.fitted(Preprocess((320, 320)), [(10, 10)], 32)
    with pytest.raises(DataError, match="no images"):
        fitting.fitted(CORNER, [], 32)


def test_the_shapes_are_those_of_the_images_upright(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[274] = 6  # on its side
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg", exif=turned)
    data = SOURCES.load("folder").open(str(tmp_path))
    assert fitting.shapes(data) == ((20, 30), (30, 20))


IMAGES = TensorSpec("images", "float32", ("batch", 3, 8, 16))
SIZES = TensorSpec(IMAGE_SIZES, "float32", ("batch", 2))


def test_of_a_large_set_some_images_tell() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    data = Dataset("many", [Sample(str(i), lambda: image) for i in range(5000)])
    assert len(fitting.shapes(data)) == 512


def test_a_model_is_fed_where_each_image_ends() -> None:
    preprocess = Preprocess((8, 16), resize="corner", limits=(8, 16), rounding="down")
    images, places = zip(
        *(preprocess(np.zeros((*shape, 3), np.uint8)) for shape in [(8, 8), (4, 16)]), strict=True
    )
    feeds = feeding.feeds((IMAGES, SIZES), np.stack(images), places)
    assert feeds[IMAGE_SIZES].tolist() == [[8, 8], [4, 16]]
    assert set(feeding.feeds((IMAGES,), np.stack(images), places)) == {"images"}


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "crop"])
def test_where_padding_is_a_part_of_the_image_it_ends_with_the_canvas(resize: Any) -> None:
    image, place = Preprocess((8, 16), resize=resize)(np.zeros((8, 8, 3), np.uint8))
    feeds = feeding.feeds((IMAGES, SIZES), image[None], [place])
    assert feeds[IMAGE_SIZES].tolist() == [[8, 16]]


def test_without_a_word_images_are_as_large_as_their_canvases() -> None:
    images = np.zeros((3, 3, 8, 16), np.float32)
    found = feeding.completed(SPECS, {"images": images})
    assert found[IMAGE_SIZES].tolist() == [[8, 16]] * 3
    said = np.ones((3, 2), np.float32)
    assert feeding.completed(SPECS, {"images": images, IMAGE_SIZES: said})[IMAGE_SIZES] is said
    assert feeding.completed(SPECS[:1], {"images": images}).keys() == {"images"}
    assert not feeding.completed(SPECS, {})


def test_a_model_takes_images_where_nothing_else_is_asked() -> None:
    other = TensorSpec("state", "float32", ("batch", 4))
    assert feeding.takes_images(SPECS)
    assert feeding.takes_images(SPECS[:1])
    assert not feeding.takes_images((*SPECS, other))
    assert not feeding.takes_images((other,))
    assert not feeding.takes_images(())
