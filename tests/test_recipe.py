"""How an image becomes an input: placed at the top left as torchvision and detectron2 do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from deploykit.data.preprocess import Pixels, Preprocess
from deploykit.errors import DataError, InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CORNER = Preprocess(
    (96, 160), resize="corner", mean=MEAN, std=STD, pad_value=None, resampler="torch"
)
"""As the recipes of torchvision's detectors, smaller."""


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), np.uint8
    )


def torchvisions(image: Pixels, short: int, long: int) -> np.ndarray:
    """Return what torchvision's detectors see of an image, float32[3, H, W] without padding."""
    transform = GeneralizedRCNNTransform(short, long, list(MEAN), list(STD), size_divisible=1)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)
    seen: np.ndarray = transform([tensor])[0].tensors[0].numpy()
    return seen


def test_the_corner_holds_what_torchvision_sees() -> None:
    sizes = np.random.default_rng(0).integers(20, 300, (60, 2)).tolist()
    alike = 0
    for height, width in sizes:
        found, place = CORNER(noise(height, width))
        # torchvision's limits, of the short and the long side, that fit the same canvas
        expected = torchvisions(noise(height, width), 96, 160 if height <= width else 96)
        sides = round(height * place.scale_y), round(width * place.scale_x)
        assert np.abs(np.subtract(sides, expected.shape[1:])).max() <= 1  # it rounds in float32
        if expected.shape[1:] == sides:
            alike += 1
            inside = found[:, : sides[0], : sides[1]]
            np.testing.assert_allclose(inside, expected, atol=2e-3)
    assert alike >= 0.9 * len(sizes)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_beside_the_corner_is_nothing(height: int, width: int) -> None:
    above = replace(CORNER, mean=(-1.0,) * 3)  # no level is the mean, so no pixel is 0
    found, place = above(noise(height, width))
    sides = round(height * place.scale_y), round(width * place.scale_x)
    assert 1 <= sides[0] <= CORNER.size[0]
    assert 1 <= sides[1] <= CORNER.size[1]
    assert (found[:, : sides[0], : sides[1]] > 0).all()
    found[:, : sides[0], : sides[1]] = 0
    assert not found.any()
    assert (place.offset_x, place.offset_y) == (0, 0)


@pytest.mark.parametrize(("height", "width"), [(40, 50), (96, 160), (200, 100), (31, 333)])
def test_bilinear_without_antialias_is_torchs_interpolate(height: int, width: int) -> None:
    image = noise(height, width)
    found, place = Preprocess(
        (96, 160), resize="corner", scale=1.0, pad_value=None, resampler="torch"
    )(image)
    sides = round(height * place.scale_y), round(width * place.scale_x)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)),
        sides,
        mode="bilinear",
        align_corners=False,
    )[0].numpy()
    np.testing.assert_allclose(found[:, : sides[0], : sides[1]], expected, atol=2e-2)


def test_detectron2s_input_is_pillows_bilinear_in_bgr_less_the_mean() -> None:
    image, mean = noise(300, 450), (103.53, 116.28, 123.675)
    prepare = Preprocess(
        (128, 192), resize="corner", channels="BGR", scale=1.0, mean=mean, pad_value=None
    )
    found, place = prepare(image)
    resized = Image.fromarray(image).resize((192, 128), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[:, :, ::-1].astype(np.float32) - np.array(mean, np.float32)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-4)
    assert (place.scale_x, place.scale_y) == (192 / 450, 128 / 300)


def test_padding_is_zero_after_normalisation_or_a_grey_before() -> None:
    image = np.full((50, 50, 3), 200, np.uint8)
    zero, _ = CORNER(image)
    assert not zero[:, :, 96:].any()
    assert (zero[:, :, :96] > 1).all()
    grey, _ = Preprocess((96, 160), resize="corner", pad_value=51)(image)
    np.testing.assert_allclose(grey[:, :, 96:], 0.2, rtol=1e-6)


def test_a_letterbox_can_be_zero_on_both_sides() -> None:
    prepare = Preprocess((96, 160), mean=(0.5,) * 3, pad_value=None)
    found, place = prepare(np.full((96, 96, 3), 255, np.uint8))
    assert place.offset_x == 32
    assert not found[:, :, :32].any()
    assert not found[:, :, 128:].any()
    np.testing.assert_allclose(found[:, :, 32:128], 0.5)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_boxes_go_back_to_the_image_from_the_corner(height: int, width: int) -> None:
    _, place = CORNER(noise(height, width))
    boxes = np.array([[0, 0, width, height], [0, 0, width / 2, height / 3]], np.float32)
    scale = np.array([place.scale_x, place.scale_y] * 2, np.float32)
    np.testing.assert_allclose(place.to_image(boxes * scale), boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("pad_value", [None, 0, 114])
def test_a_preprocessing_survives_its_description(pad_value: int | None) -> None:
    prepare = Preprocess(
        (96, 160), resize="corner", channels="BGR", pad_value=pad_value, resampler="torch"
    )
    assert Preprocess.from_json(json.loads(json.dumps(prepare.to_json()))) == prepare


def test_a_description_from_before_the_corner_is_read() -> None:
    old = Preprocess((96, 160)).to_json()
    for later in ("resampler", "canvases", "limits", "rounding", "margin", "centre", "mapping"):
        del old[later]
    assert Preprocess.from_json(old) == Preprocess((96, 160))


def test_a_description_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="not a preprocessing description"):
        Preprocess.from_json({"size": [96, 160], "colour": "sepia"})


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4)])
def test_what_is_no_image_is_refused_by_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="an image of shape"):
        CORNER(np.zeros(shape, np.uint8))
