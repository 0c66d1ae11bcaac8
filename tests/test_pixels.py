"""Input pixels equal the official pipelines': within one level of 255, at every size of image.

torchvision's transforms run beside ours. Those of YOLOv6, detectron2 and the Caffe detectors are
told anew here in the library calls that they consist of.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from deploykit.data.preprocess import Floats, Pixels, Preprocess
from deploykit.errors import InputError
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable

cv2: Any = pytest.importorskip("cv2")
SIZES = [
    *((480, 640), (640, 480), (427, 640), (333, 500), (500, 333), (640, 640), (601, 600)),
    *((540, 960), (960, 540), (200, 1500), (1500, 200), (97, 61), (13, 700), (700, 13)),
]
"""Landscape, portrait, square, panorama; H and W."""
THIN = [(1, 1), (1, 300), (300, 1)]
LEVEL = 1.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def photograph(height: int, width: int) -> Pixels:
    """Return soft shapes under fine noise: every way to resize gives other pixels."""
    rng = np.random.default_rng(height * 10_000 + width)
    soft = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    large = np.asarray(Image.fromarray(soft).resize((width, height))).astype(np.int64)
    noisy: Pixels = np.clip(large + rng.integers(-40, 40, large.shape), 0, 255).astype(np.uint8)
    return noisy


def levels(values: Floats, prepared: Preprocess) -> Floats:
    """Return a normalised input in levels of 0 to 255."""
    std, mean = (np.array(v, np.float32)[:, None, None] for v in (prepared.std, prepared.mean))
    found: Floats = (values * std + mean) / np.float32(prepared.scale)
    return found


def inside(prepared: Preprocess, size: tuple[int, int]) -> Floats:
    """Return the scaled image without what lies beside it, in levels."""
    values, _ = prepared(photograph(*size))
    fit = prepared.fit(*size)
    return levels(values, prepared)[:, : fit.sides[0], : fit.sides[1]]


def near(found: Floats, expected: Floats) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= LEVEL


def preprocess(recipe: str, variant: str, size: tuple[int, int] | None = None) -> Preprocess:
    return RECIPES.load(recipe).variant(variant).sized(size)


# --- torchvision ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_torchvisions_detectors_see_what_their_own_transform_gives(size: tuple[int, int]) -> None:
    prepared = replace(preprocess("faster_rcnn", "resnet50_fpn"), canvases=((1344, 800),))
    transform = GeneralizedRCNNTransform(800, 1333, list(MEAN), list(STD), size_divisible=1)
    tensor = torch.from_numpy(photograph(*size).transpose(2, 0, 1).astype(np.float32) / 255)
    near(inside(prepared, size), levels(transform([tensor])[0].tensors[0].numpy(), prepared))


@pytest.mark.parametrize("size", SIZES)
def test_repvgg_sees_torchvisions_resize_and_centre_crop(size: tuple[int, int]) -> None:
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    expected = transforms.Compose(steps)(Image.fromarray(photograph(*size))).numpy() * 255
    prepared = preprocess("repvgg", "a0")
    near(levels(prepared(photograph(*size))[0], prepared), expected)


# --- YOLOv6 -----------------------------------------------------------------------------------


def yolov6(
    size: tuple[int, int], sides: tuple[int, int], way: int, canvas: tuple[int, int]
) -> Floats:
    """Return an image that cv2 resized to `sides` in the middle of a grey canvas, in levels."""
    image = photograph(*size)
    if size != sides:
        image = cv2.resize(image, sides[::-1], interpolation=way)
    down, across = ((room - side) / 2 for room, side in zip(canvas, sides, strict=True))
    margins = [round(half + part) for half in (down, across) for part in (-0.1, 0.1)]
    grey = (114.0,) * 3
    placed = cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=grey)
    assert placed.shape[:2] == canvas
    found: Floats = placed.transpose(2, 0, 1).astype(np.float32)
    return found


def evaluated(size: tuple[int, int], longest: int) -> tuple[tuple[int, int], int]:
    """Return the sides that YOLOv6's evaluation gives an image, and how cv2 gets there."""
    ratio = longest / max(size)
    sides = int(size[0] * ratio), int(size[1] * ratio)
    return sides, cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR


def protocol(variant: str, name: str, size: tuple[int, int] | None = None) -> Preprocess:
    known = RECIPES.load("yolov6").variant(variant)
    return known.protocol(name).prepared(known.sized(size))


SHRUNK = [
    *(("v2n", 638), ("v2t", 634), ("v2s", 638), ("v2m", 628), ("v2l", 632), ("v2l_relu", 638)),
    *(("v3n", 636), ("v3s", 634), ("v3m", 636), ("v3l", 636), ("v3s_base", 638)),
]
"""The longest side of an image in an input of 640 where a published AP is reproduced: releases
0.2.1 and 0.4.0, configs/experiment/eval_640_repro.py."""


@pytest.mark.parametrize("size", [*SIZES, *THIN])
@pytest.mark.parametrize(
    ("variant", "name", "longest"),
    [("v3s", "evaluation", 640), *((variant, "evaluation-640", side) for variant, side in SHRUNK)],
)
def test_yolov6s_evaluation_shrinks_by_area_and_cuts_sides_off(
    size: tuple[int, int], variant: str, name: str, longest: int
) -> None:
    sides, way = evaluated(size, longest)
    prepared = protocol(variant, name)
    found, place = prepared(photograph(*size))
    near(found * 255, yolov6(size, sides, way, (640, 640)))
    assert (place.scale_y, place.scale_x) == (sides[0] / size[0], sides[1] / size[1])


def test_yolov6s_evaluation_is_what_is_taken_where_no_protocol_is_named() -> None:
    for variant in RECIPES.load("yolov6").variants.values():
        if variant.protocols:
            assert variant.protocol("evaluation").prepared(variant.preprocess) == variant.preprocess


@pytest.mark.parametrize("size", [*SIZES, *THIN])
def test_yolov6s_inference_takes_the_smallest_rectangle(size: tuple[int, int]) -> None:
    rectangles = [(32 * n, 640) for n in range(1, 20)] + [(640, 32 * n) for n in range(1, 20)]
    prepared = replace(protocol("v3s", "inference"), canvases=tuple(rectangles))
    ratio = min(640 / side for side in size)
    sides = round(size[0] * ratio), round(size[1] * ratio)
    canvas = tuple(side + (640 - side) % 32 for side in sides)
    found, place = prepared(photograph(*size))
    near(found * 255, yolov6(size, sides, cv2.INTER_LINEAR, (canvas[0], canvas[1])))
    corners = np.array([[0, 0, canvas[1], canvas[0]]], np.float32)
    x, y = ((room - side * ratio) / 2 for room, side in zip(canvas, size, strict=True))
    back = place.unclipped(corners)[0]
    np.testing.assert_allclose(back[:2], [-y / ratio, -x / ratio], rtol=1e-4, atol=1e-2)


def rectangle(size: tuple[int, int]) -> tuple[int, int]:
    """Return the input of YOLOv6's rectangular evaluation: half a stride more on both sides."""
    shape = np.array([min(1, size[0] / size[1]), min(1, size[1] / size[0])])
    height, width = (np.ceil(shape * 640 / 32 + 0.5).astype(int) * 32).tolist()
    return height, width


@pytest.mark.parametrize("size", SIZES)
def test_a_margin_asks_for_the_next_canvas(size: tuple[int, int]) -> None:
    rectangles = [(32 * n, 672) for n in range(1, 21)] + [(672, 32 * n) for n in range(1, 21)]
    known = RECIPES.load("yolov6").variant("v3s")
    every = replace(known.sized((672, 672)), canvases=tuple(rectangles))
    prepared = known.protocol("evaluation-rect").prepared(every)
    sides, way = evaluated(size, 640)
    near(prepared(photograph(*size))[0] * 255, yolov6(size, sides, way, rectangle(size)))


@pytest.mark.parametrize("size", [(480, 640), (960, 1280), (640, 480), (500, 500)])
def test_the_rectangles_of_usual_photographs_are_there_where_no_size_is_given(
    size: tuple[int, int],
) -> None:
    sides, way = evaluated(size, 640)
    found = protocol("v3s", "evaluation-rect")(photograph(*size))[0]
    near(found * 255, yolov6(size, sides, way, rectangle(size)))


# --- detectron2 and the Caffe detectors -----------------------------------------------------------


def detectron2s(height: int, width: int) -> tuple[int, int]:
    """Return the sides: the short one to 800, then both less where the long one is above 1333."""
    scale = 800 / min(height, width)
    sides = (800.0, scale * width) if height < width else (scale * height, 800.0)
    if max(sides) > 1333:
        less = 1333 / max(sides)
        sides = sides[0] * less, sides[1] * less
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


@pytest.mark.parametrize("size", SIZES)
def test_detectron2s_pixels_are_pillows_at_the_nearest_whole_sides(size: tuple[int, int]) -> None:
    prepared = preprocess("mask_rcnn", "detectron2_resnet50_fpn")
    prepared = replace(prepared, canvases=((1344, 800),))
    height, width = detectron2s(*size)
    image = Image.fromarray(photograph(*size)).resize((width, height), Image.Resampling.BILINEAR)
    near(
        inside(prepared, size), np.asarray(image)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)
    )


@settings(max_examples=300, deadline=None)
@given(height=st.integers(1, 4000), width=st.integers(1, 4000))
def test_detectron2s_sides_are_alike_for_every_image(height: int, width: int) -> None:
    prepared = preprocess("mask_rcnn", "detectron2_resnet50_fpn")
    prepared = replace(prepared, canvases=((1344, 800),))
    expected = tuple(max(1, side) for side in detectron2s(height, width))
    assert prepared.fit(height, width).sides == expected


@settings(max_examples=300, deadline=None)
@given(height=st.integers(1, 4000), width=st.integers(1, 4000))
def test_maskrcnn_benchmarks_sides_are_alike_for_every_image(height: int, width: int) -> None:
    """Its short side is rounded where the long one is above 1333, and the other is cut off."""
    prepared = preprocess("mask_scoring_rcnn", "maskrcnn_benchmark_resnet50_fpn")
    size, least, most = 800, min(height, width), max(height, width)
    if most / least * size > 1333:
        size = max(1, round(1333 * least / most))
    other = max(1, int(size * most / least))
    expected = (size, other) if height <= width else (other, size)
    assert prepared.scaled(height, width)[1] == expected


@pytest.mark.parametrize("size", SIZES)
def test_the_caffe_detectors_see_cv2s_bilinear_by_a_factor(size: tuple[int, int]) -> None:
    prepared = replace(preprocess("faster_rcnn_vgg16", "vgg16"), canvases=((1000, 600),))
    factor = 600 / min(size)
    if np.round(factor * max(size)) > 1000:
        factor = 1000 / max(size)
    image = photograph(*size)[:, :, ::-1].astype(np.float32)
    expected = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    near(inside(prepared, size), expected.transpose(2, 0, 1))
    assert prepared(photograph(*size))[1].scale_x == factor


# --- canvases ---------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
@example(802, 801)  # a square once it is rounded
def test_the_scale_is_the_official_one_whatever_the_orientation(height: int, width: int) -> None:
    prepared = replace(preprocess("fcos", "resnet50_fpn"), canvases=((1344, 800),))
    fit = prepared.fit(height, width)
    assert fit.ratio == pytest.approx(min(800 / min(height, width), 1333 / max(height, width)))
    assert fit.canvas == ((800, 1344) if width >= height else (1344, 800))
    assert fit.sides[0] <= fit.canvas[0]
    assert fit.sides[1] <= fit.canvas[1]


def test_an_image_takes_the_smallest_canvas_that_holds_it() -> None:
    prepared = Preprocess((96, 96), canvases=((64, 96), (96, 64)), resize="corner")
    assert prepared.fit(100, 150).canvas == (64, 96)
    assert prepared.fit(150, 100).canvas == (96, 64)
    assert prepared.fit(150, 140).canvas == (96, 96)
    assert prepared(photograph(150, 100))[0].shape == (3, 96, 64)


def test_an_image_that_no_canvas_holds_is_as_large_as_one_does() -> None:
    prepared = preprocess("faster_rcnn", "resnet50_fpn", (800, 1344))
    assert prepared.limits == (800, 1333)
    assert prepared.fit(640, 480).sides == (800, 600)
    assert preprocess("faster_rcnn", "resnet50_fpn", (320, 448)).limits is None


# --- descriptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["letterbox", "corner", "stretch", "crop"])
@pytest.mark.parametrize("antialias", [True, False])
def test_an_old_description_means_what_it_meant(resize: str, antialias: bool) -> None:  # noqa: FBT001 - a parameter of the test
    described = {
        "size": [64, 96],
        "resize": resize,
        "channels": "RGB",
        "scale": 1.0,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "pad_value": 114,
        "crop_fraction": 0.875,
        "interpolation": "bilinear",
        "antialias": antialias,
    }
    prepared = Preprocess.from_json(described)
    height, width = 61, 83
    found, place = prepared(photograph(height, width))
    fraction = 0.875 if resize == "crop" else 1.0
    choose: Callable[..., float] = max if resize == "crop" else min
    ratio = choose(64 / height, 96 / width) / fraction
    rounded: Callable[[float], int] = int if resize == "corner" else round
    sides = (64, 96) if resize == "stretch" else (rounded(height * ratio), rounded(width * ratio))
    assert (place.scale_y, place.scale_x) == (sides[0] / height, sides[1] / width)
    start = [0, 0]
    if resize not in {"stretch", "corner"}:
        start = [round((64 - sides[0]) / 2 - 0.1), round((96 - sides[1]) / 2 - 0.1)]
    assert (place.offset_y, place.offset_x) == tuple(start)
    image = photograph(height, width)
    if antialias:
        scaled = np.asarray(Image.fromarray(image).resize(sides[::-1], Image.Resampling.BILINEAR))
    else:
        tensor = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        scaled = torch.nn.functional.interpolate(tensor, sides, mode="bilinear")[0].numpy()
        scaled = scaled.transpose(1, 2, 0)
    canvas = np.full((64, 96, 3), 114, np.float32)
    top, left = start
    canvas[max(top, 0) : top + sides[0], max(left, 0) : left + sides[1]] = scaled[
        max(-top, 0) : max(-top, 0) + 64, max(-left, 0) : max(-left, 0) + 96
    ]
    np.testing.assert_allclose(found, canvas.transpose(2, 0, 1), atol=2e-2)


def test_all_fields_survive_their_description() -> None:
    prepared = Preprocess(
        (96, 160),
        resampler="cv2-area",
        canvases=((160, 96), (128, 128)),
        limits=(96, 150),
        rounding="half-up",
        margin=2,
        centre="even",
        mapping="ratio",
    )
    assert Preprocess.from_json(prepared.to_json()) == prepared


@pytest.mark.parametrize(
    ("field", "value"),
    [("resampler", "lanczos"), ("rounding", "up"), ("centre", "left"), ("mapping", "none")],
)
def test_a_value_outside_its_closed_set_is_refused_with_the_set(field: str, value: str) -> None:
    described = {**Preprocess((96, 160)).to_json(), field: value}
    with pytest.raises(InputError, match=f"{field} '{value}'") as caught:
        Preprocess.from_json(described)
    assert "one of" in caught.value.expected
