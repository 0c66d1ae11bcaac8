"""DKMultiscaleRoiAlign against torchvision: torch reference, both ONNX bodies, CUDA source."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import host_build
import numpy as np
import plugin_cases
import pytest
import torch
import torchvision
from gpu_regions import Regions, inside
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_cases import FORMS, SPECIAL
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

from deploykit import ops
from deploykit.backends import tensorrt_rtx
from deploykit.errors import ModelError, OptionError
from deploykit.ops.plugin import OPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from host_build import Order
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Maps = list[Array]
    Run = Callable[[Regions, Maps, Mapping[str, Any]], Array]

PLUGIN = OPS.load("multiscale_roi_align")
DEFAULTS = {a.name: a.default for a in PLUGIN.attributes}
BUILDER = tensorrt_rtx.availability()
EXACT, HALF = 1e-5, 2.0**-10
"""Errors that are allowed, relative to the range of the features, by their type."""
FPN = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
DETECTRON2 = {"aligned": 1, "sampling_ratio": 0, "level_epsilon": 1e-8, "epsilon_inside": 1}
MMCV = {"canonical_size": 56.0, "canonical_level": 0, "first_level": 0, "epsilon_inside": 1}
BENCHMARK = {"inclusive": 1, "epsilon_inside": 1}
"""maskrcnn-benchmark: a box from 3 to 3 is one pixel wide."""
SIZE = (200, 296)
"""Of the image, in pixels."""
ATTRIBUTES: tuple[dict[str, Any], ...] = (
    {},
    {"spatial_scales": (1 / 16,), "aligned": 1, "output_width": 3},
    {"spatial_scales": FPN},
    {"spatial_scales": FPN, "output_height": 14, "output_width": 14, "canonical_size": 64.0},
    {"spatial_scales": (*FPN, 1 / 64), "canonical_size": 60.0, "sampling_ratio": 3},
    {"spatial_scales": FPN, **DETECTRON2, "canonical_size": 80.0},
    {"spatial_scales": FPN, **BENCHMARK, "canonical_size": 70.0},
    {"spatial_scales": FPN, **MMCV, "output_height": 5},
    {"spatial_scales": FPN[1:], "first_level": 3, "canonical_size": 100.0, "sampling_ratio": 0},
    {"spatial_scales": FPN[:2], "mode": "max", "canonical_size": 50.0, "canonical_level": 3},
    {"spatial_scales": FPN[1:3], "mode": "max", "aligned": 1, "sampling_ratio": 3, **MMCV},
    {"spatial_scales": (1 / 200, 1 / 300, 0.001), "canonical_size": 100.0},
    {"spatial_scales": (0.1,), "sampling_ratio": 16, "output_height": 2, "output_width": 1},
    {"spatial_scales": (0.05, 0.3), "sampling_ratio": 1, "output_height": 64, "aligned": 1},
)


def complete(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return DEFAULTS | dict(attributes)


def features(seed: int, images: int, a: Mapping[str, Any], channels: int = 2) -> Maps:
    """Return a pyramid for images of SIZE."""
    rng = np.random.default_rng(seed)
    sizes = [[max(1, round(side * scale)) for side in SIZE] for scale in a["spatial_scales"]]
    shapes = [(images, channels, *size) for size in sizes]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


# --- what others say ---------------------------------------------------------------------------


def levels(boxes: Array, a: Mapping[str, Any]) -> Array:
    """Return the level of boxes float32[n, 4], as torchvision or detectron2 say.

    Where both ends are inside, as maskrcnn-benchmark says, a box reaches one pixel further.
    """
    boxes = boxes + np.float32(a["inclusive"]) * np.array([0, 0, 1, 1], np.float32)
    first, last = a["first_level"], a["first_level"] + len(a["spatial_scales"]) - 1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    boxes = np.where(area[:, None] > 0, boxes, np.array([0, 0, 1e-6, 1e-6], np.float32))
    if a["epsilon_inside"]:
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        power = np.log2(sides / a["canonical_size"] + a["level_epsilon"])
        level = np.clip(np.floor(a["canonical_level"] + power), first, last) - first
        return np.asarray(level.astype(np.int64))
    limits = (first, last, a["canonical_size"], a["canonical_level"], a["level_epsilon"])
    mapped: Array = LevelMapper(*limits)([torch.from_numpy(boxes)]).numpy()
    return mapped


def expected(found: Regions, maps: Maps, a: Mapping[str, Any]) -> Array:
    """Return the pooled values in float32, zeros for rows that are not valid."""
    size = a["output_height"], a["output_width"]
    valid = found.valid()
    pooled = np.zeros((*valid.shape, maps[0].shape[1], *size), np.float32)
    rows = found.by_image()
    values = np.zeros((len(rows), *pooled.shape[2:]), np.float32)
    level = levels(rows[:, 1:], a)
    take = largest_samples if a["mode"] == "max" else mean_samples
    for index, (features_of, scale) in enumerate(zip(maps, a["spatial_scales"], strict=True)):
        if (level == index).any():
            whole = features_of.astype(np.float32)
            values[level == index] = take(whole, rows[level == index], scale, a)
    pooled[valid] = values
    return pooled.reshape(-1, *pooled.shape[2:])


def mean_samples(maps: Array, rows: Array, scale: float, a: Mapping[str, Any]) -> Array:
    """Return the mean of the samples of each bin; none, where a side is negative, is zero."""
    size = a["output_height"], a["output_width"]
    ratio, aligned = a["sampling_ratio"], bool(a["aligned"])
    pooled = np.zeros((len(rows), maps.shape[1], *size), np.float32)
    proper = (rows[:, 3:] >= rows[:, 1:3]).all(1) | (not aligned) | (ratio > 0)
    if proper.any():  # torchvision fails for the others
        tensors = torch.from_numpy(maps), torch.from_numpy(rows[proper])
        pooled[proper] = torchvision.ops.roi_align(*tensors, size, scale, ratio, aligned).numpy()
    return pooled


def largest_samples(maps: Array, rows: Array, scale: float, a: Mapping[str, Any]) -> Array:
    """Return the maximum of the samples of each bin, one sample after the other."""
    size, ratio = (a["output_height"], a["output_width"]), a["sampling_ratio"]
    shift, f = 0.5 if a["aligned"] else 0.0, np.float32
    pooled = np.full((len(rows), maps.shape[1], *size), -np.inf, np.float32)
    for n, (image, *box) in enumerate(rows):
        low = [f(f(box[axis]) * f(scale)) - f(shift) for axis in (1, 0)]
        sides = [f(f(box[axis]) * f(scale)) - f(shift) - s for axis, s in zip((3, 2), low)]  # noqa: B905 - Python 3.10 form
        sides = [s if a["aligned"] else max(s, f(1)) for s in sides]
        for place in np.ndindex(*size, ratio, ratio):
            y, x = (
                low[k]
                + f(place[k]) * f(sides[k] / size[k])
                + f(place[2 + k] + 0.5) * f(sides[k] / size[k]) / f(ratio)
                for k in (0, 1)
            )
            value = bilinear(maps[int(image)], float(y), float(x))
            bin_of = (n, slice(None), *place[:2])
            pooled[bin_of] = np.maximum(pooled[bin_of], value)
    return pooled


def bilinear(maps: Array, y: float, x: float) -> Array:
    """Return maps (float32[C, H, W]) at one place."""
    _, height, width = maps.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(maps))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = maps[:, top, left] * (1 - x + left) + maps[:, top, right] * (x - left)
    lower = maps[:, bottom, left] * (1 - x + left) + maps[:, bottom, right] * (x - left)
    return np.asarray(upper * (1 - y + top) + lower * (y - top))


# --- the forms ---------------------------------------------------------------------------------


def in_torch(found: Regions, maps: Maps, a: Mapping[str, Any]) -> Array:
    boxes, count = torch.from_numpy(found.boxes), torch.from_numpy(found.count)
    pooled: Array = PLUGIN.reference(boxes, count, list(map(torch.from_numpy, maps)), **a).numpy()
    return pooled


def in_onnx(form: str) -> Run:
    return lambda found, maps, a: plugin_cases.in_onnx(PLUGIN, form, found, maps, a)


class Params(ctypes.Structure):
    """MultiscaleRoiAlignParams."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "rows", "channels", "levels")),
        ("heights", ctypes.c_int * 5),
        ("widths", ctypes.c_int * 5),
        ("spatial_scales", ctypes.c_float * 5),
        ("output_height", ctypes.c_int),
        ("output_width", ctypes.c_int),
        ("sampling_ratio", ctypes.c_int),
        ("aligned", ctypes.c_int),
        ("maximum", ctypes.c_int),
        ("canonical_size", ctypes.c_float),
        ("canonical_level", ctypes.c_int),
        ("first_level", ctypes.c_int),
        ("level_epsilon", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("epsilon_inside", "inclusive")),
        ("input_scale", ctypes.c_float),
        ("output_scale", ctypes.c_float),
    )


ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}


def params(found: Regions, maps: Maps, a: Mapping[str, Any]) -> Params:
    values = {"maximum": int(a["mode"] == "max"), "levels": len(maps), **a}
    call = Params(*found.boxes.shape[:2], maps[0].shape[1])
    for name, kind, *_ in Params._fields_:
        if name in values:
            many = isinstance(values[name], tuple)
            setattr(call, name, kind(*values[name]) if many else values[name])
    for level, features_of in enumerate(maps):
        call.heights[level], call.widths[level] = features_of.shape[2:]
    return call


class Host:
    """The CUDA source, compiled for the CPU."""

    def __init__(self, order: Order = "forward", threads: int = 32) -> None:
        self.library = host_build.compiled(PLUGIN.source)
        self.order, self.threads = order, threads

    def launch(self, call: Params, found: Regions, maps: Maps, pooled: Array, element: int) -> int:
        host_build.arrange(self.library, order=self.order, threads=self.threads)
        levels_of = (ctypes.c_void_p * 5)(*(m.ctypes.data for m in maps))
        boxes, count, out = (
            ctypes.c_void_p(array.ctypes.data) for array in (found.boxes, found.count, pooled)
        )
        run = self.library.deploykit_multiscale_roi_align
        return int(run(ctypes.byref(call), boxes, count, levels_of, out, element, None))

    def __call__(self, found: Regions, maps: Maps, a: Mapping[str, Any]) -> Array:
        """Return the output, which starts dirty; nothing is written beyond."""
        images, rows = found.boxes.shape[:2]
        shape = (images * rows, maps[0].shape[1], a["output_height"], a["output_width"])
        memory = np.full(int(np.prod(shape)) + 64, 77, maps[0].dtype)
        call = params(found, maps, a)
        assert self.launch(call, found, maps, memory, ELEMENTS[maps[0].dtype]) == 0
        assert (memory[-64:] == 77).all()
        return memory[:-64].reshape(shape)


def every_form() -> list[Run]:
    return [in_torch, Host(), *map(in_onnx, FORMS)]


def assert_padding_is_zero(pooled: Array, found: Regions) -> None:
    assert (pooled.reshape(*found.boxes.shape[:2], *pooled.shape[1:])[~found.valid()] == 0).all()


def assert_close(runs: Sequence[Run], found: Regions, maps: Maps, **attributes: Any) -> None:
    """Check that every run gives what torchvision gives, up to rounding."""
    a = complete(attributes)
    wanted = expected(found, maps, a)
    error = (EXACT if maps[0].dtype == np.float32 else HALF) * max(
        (np.ptp(m) for m in maps if m.size), default=0
    )
    for index, run in enumerate(runs):
        pooled = run(found, maps, a)
        assert pooled.dtype == maps[0].dtype
        assert_padding_is_zero(pooled, found)
        what = f"run {index} with {a}"
        np.testing.assert_allclose(
            pooled.astype(np.float32), wanted, rtol=0, atol=error, err_msg=what
        )


# --- the same in every form --------------------------------------------------------------------


@pytest.mark.parametrize("attributes", ATTRIBUTES)
def test_every_form_is_torchvisions_roi_align(attributes: dict[str, Any]) -> None:
    found = plugin_cases.regions(len(attributes), 27, 5, SIZE)
    assert_close(every_form(), found, features(1, 27, complete(attributes)), **attributes)


@pytest.mark.parametrize("attributes", ATTRIBUTES)
def test_every_form_takes_half_precision(attributes: dict[str, Any]) -> None:
    found = plugin_cases.regions(7, 9, 3, SIZE)
    maps = [m.astype(np.float16) for m in features(2, 9, complete(attributes))]
    assert_close(every_form(), found, maps, **attributes)


@pytest.mark.parametrize("attributes", [ATTRIBUTES[2], ATTRIBUTES[5]])
def test_the_kernels_give_the_same_bits_with_any_threads_in_any_order(
    attributes: dict[str, Any],
) -> None:
    a, found = complete(attributes), plugin_cases.regions(3, 9, 2, SIZE)
    maps = features(3, 9, a, channels=35)  # more than one block takes
    assert_close([Host()], found, maps, **attributes)
    wanted = Host()(found, maps, a)
    for threads in (1, 32, 0):
        for order in host_build.ORDERS:
            pooled = Host(order, threads)(found, maps, a)
            np.testing.assert_array_equal(pooled, wanted, strict=True)


@pytest.mark.parametrize("attributes", ATTRIBUTES)
def test_the_kernels_pool_int8_within_one_step(attributes: dict[str, Any]) -> None:
    a, found = complete(attributes), plugin_cases.regions(4, 9, 3, SIZE)
    scales = {"input_scale": 0.0213, "output_scale": 0.0171}
    real = features(4, 9, a)
    stored = [np.clip(np.rint(m / scales["input_scale"]), -128, 127).astype(np.int8) for m in real]
    meant = [m.astype(np.float32) * np.float32(scales["input_scale"]) for m in stored]
    wanted = np.clip(expected(found, meant, a) / scales["output_scale"], -128, 127)
    pooled = Host()(found, stored, a | scales)
    assert np.abs(pooled - np.rint(wanted)).max() <= 1
    assert np.abs(pooled - wanted).max() < 0.51  # rounded, not cut
    assert_padding_is_zero(pooled, found)


@pytest.mark.parametrize("aligned", [0, 1])
def test_of_many_samples_none_on_the_map_is_left_out(aligned: int) -> None:
    """The kernels skip what lies outside where a bin has more than a few samples."""
    rng = np.random.default_rng(5)
    boxes = inside(rng, 8, SIZE) + rng.random((8, 1)) * [-900, -700, 1500, 900]
    found = Regions(boxes[None].astype(np.float32), np.array([8], np.int32))
    options = {"sampling_ratio": 0, "aligned": aligned, "output_height": 3, "output_width": 4}
    assert_close([in_torch, Host()], found, features(5, 1, complete(options), 1), **options)


def test_no_image_and_no_valid_row_give_no_values() -> None:
    a = complete({"spatial_scales": FPN})
    maps = features(5, 2, a)
    nothing = Regions(np.zeros((0, 4, 4), np.float32), np.zeros(0, np.int32))
    assert_close(every_form(), nothing, [m[:0] for m in maps], **a)
    boxes = plugin_cases.regions(5, 2, 4, SIZE).boxes
    for count in (0, -3):
        assert_close(every_form(), Regions(boxes, np.full(2, count, np.int32)), maps, **a)


def test_no_row_at_all_is_fine_in_torch_and_in_the_kernels() -> None:
    a = complete({})
    nothing = Regions(np.zeros((2, 0, 4), np.float32), np.zeros(2, np.int32))
    for run in (in_torch, Host()):
        assert run(nothing, features(5, 2, a), a).shape == (0, 2, 7, 7)


# --- levels ------------------------------------------------------------------------------------


def flat_maps(count: int) -> Maps:
    """Return a pyramid whose level l is l everywhere."""
    return [
        np.full((1, 1, 128 >> level, 128 >> level), level, np.float32) for level in range(count)
    ]


def found_levels(run: Run, boxes: Array, attributes: Mapping[str, Any]) -> list[int]:
    """Return the level that each box is read from; boxes are moved where all levels reach."""
    a = complete({"spatial_scales": FPN, "output_height": 1, "output_width": 1, **attributes})
    found = Regions(boxes[None].astype(np.float32), np.array([len(boxes)], np.int32))
    pooled = run(found, flat_maps(len(a["spatial_scales"])), a)
    return [round(float(value)) for value in pooled[:, 0, 0, 0]]


SIDES = [1.0, 55.9, 56.0, 56.1, 111.99, 112.0, 112.01, 223.98, 224.0, 224.02, 447.9, 448.0, 448.1]


def squares(sides: Sequence[float]) -> Array:
    ends = np.array(sides)[:, None]
    return np.concatenate([ends * 0, ends * 0, ends, ends], 1)


@pytest.mark.parametrize("run", every_form())
def test_boxes_at_the_limits_are_read_from_torchvisions_level(run: Run) -> None:
    wanted = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert found_levels(run, squares(SIDES), {}) == wanted
    mapped = LevelMapper(2, 5)([torch.from_numpy(squares(SIDES).astype(np.float32))])
    assert mapped.tolist() == wanted


@pytest.mark.parametrize("run", every_form())
def test_boxes_at_the_limits_are_read_from_detectron2s_and_mmcvs_level(run: Run) -> None:
    """floor(4 + log2(side / 224 + 1e-8)) - 2, and floor(log2(side / 56 + 1e-6))."""
    sides = np.array(SIDES)
    wanted = np.clip(np.floor(4 + np.log2(sides / 224 + 1e-8)), 2, 5) - 2
    assert found_levels(run, squares(SIDES), DETECTRON2) == wanted.tolist()
    wanted = np.clip(np.floor(np.log2(sides / 56 + 1e-6)), 0, 3)
    assert found_levels(run, squares(SIDES), MMCV) == wanted.tolist()


@pytest.mark.parametrize("run", every_form())
def test_boxes_at_the_limits_are_read_from_maskrcnn_benchmarks_level(run: Run) -> None:
    """floor(4 + log2((side + 1) / 224 + 1e-6)) - 2."""
    wanted = np.clip(np.floor(4 + np.log2(np.array(SIDES) / 224 + 1e-6)), 2, 5) - 2
    ends = [side - 1 for side in SIDES]
    assert found_levels(run, squares(ends), BENCHMARK) == wanted.tolist()


@pytest.mark.parametrize("run", every_form())
def test_boxes_without_area_are_read_from_the_first_level(run: Run) -> None:
    boxes = np.array([[9, 9, 9, 99], [9, 99, 200, 9], [200, 9, 9, 99], [9, 9, 9, 9], [0, 0, 0, 0]])
    assert found_levels(run, boxes, {"canonical_size": 20.0}) == [0] * 5
    both_inverted = np.array([[200, 200, 9, 9]])  # its area is positive
    assert found_levels(run, both_inverted, {"canonical_size": 20.0}) == [3]


def test_it_is_torchvisions_pooler_with_its_own_scales() -> None:
    """The whole of MultiScaleRoIAlign, whose scales come from the sizes of maps and images."""
    a = complete({"spatial_scales": FPN, "canonical_size": 224.0})
    rng, image = np.random.default_rng(6), (448, 640)
    boxes = np.stack([inside(rng, 40, image) for _ in range(2)]).astype(np.float32)
    found = Regions(boxes, np.full(2, 40, np.int32))
    sizes = [(int(image[0] * scale), int(image[1] * scale)) for scale in FPN]
    maps = [rng.standard_normal((2, 3, *size)).astype(np.float32) for size in sizes]
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    inputs = {str(k): torch.from_numpy(m) for k, m in enumerate(maps)}
    wanted = pooler(inputs, list(torch.from_numpy(boxes)), [image] * 2).numpy()
    assert len(set(levels(found.by_image()[:, 1:], a).tolist())) >= 3
    for run in every_form():
        np.testing.assert_allclose(run(found, maps, a), wanted, rtol=0, atol=EXACT * 8)


# --- whatever the numbers are ------------------------------------------------------------------

COORDINATES = st.one_of(
    st.integers(-60, 400).map(lambda half: half / 2),
    st.floats(-100, 400, width=32),
    st.sampled_from([0.0, -0.0, 1e-30, float("nan"), float("inf"), -float("inf")]),
)


@st.composite
def anything(draw: st.DrawFn) -> tuple[Regions, Maps, dict[str, Any]]:
    """Return boxes, maps and attributes, none of them large."""
    found = draw(plugin_cases.few_regions(COORDINATES))
    scales = draw(st.lists(st.sampled_from([0.01, 0.1, 0.25, 1 / 16]), min_size=1, max_size=5))
    sizes = [draw(st.tuples(st.integers(1, 9), st.integers(1, 9))) for _ in scales]
    mode = draw(st.sampled_from(["avg", "avg", "max"]))
    attributes = {
        "spatial_scales": tuple(scales),
        "output_height": draw(st.integers(1, 8)),
        "output_width": draw(st.integers(1, 8)),
        "sampling_ratio": draw(st.integers(1 if mode == "max" else 0, 3)),
        "aligned": draw(st.integers(0, 1)),
        "mode": mode,
        "canonical_size": draw(st.sampled_from([1.0, 30.0, 224.0])),
        "canonical_level": draw(st.integers(0, 10)),
        "first_level": draw(st.integers(0, 10)),
        "level_epsilon": draw(st.sampled_from([0.0, 1e-6, 0.01])),
        "epsilon_inside": draw(st.integers(0, 1)),
        "inclusive": draw(st.integers(0, 1)),
    }
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    maps = [rng.standard_normal((len(found.boxes), 2, *size)) for size in sizes]
    maps = [m.astype(np.float32) for m in maps]
    return found, maps, attributes


SHIFTS = np.array([[0, 0], [1, 1], [-1, -1], [1, -1], [-1, 1]], np.float32) * np.float32(1e-3)
"""Pixels, across and down."""


def assert_alike(runs: Sequence[Run], case: tuple[Regions, Maps, dict[str, Any]]) -> None:
    """Check that every run gives what the reference gives, of boxes a hair to any side.

    A sample that lies just a cell outside the map counts or not by its last digit.
    """
    found, maps, attributes = case
    a = complete(attributes)
    moved = [Regions(found.boxes + np.tile(shift, 2), found.count) for shift in SHIFTS]
    wanted = np.stack([in_torch(regions, maps, a) for regions in moved])
    assert np.isfinite(wanted).all()
    for run in runs:
        pooled = run(found, maps, a)
        assert_padding_is_zero(pooled, found)
        assert (pooled >= wanted.min(0) - 1e-4).all(), a
        assert (pooled <= wanted.max(0) + 1e-4).all(), a


@settings(deadline=None, max_examples=250)
@given(anything(), st.sampled_from(host_build.ORDERS))
def test_kernels_and_reference_agree_whatever_the_numbers_are(
    case: tuple[Regions, Maps, dict[str, Any]], order: Order
) -> None:
    assert_alike([Host(order, 5)], case)


@settings(deadline=None, max_examples=80)
@given(anything(), st.sampled_from(sorted(FORMS)))
def test_bodies_and_reference_agree_whatever_the_numbers_are(
    case: tuple[Regions, Maps, dict[str, Any]], form: str
) -> None:
    assert_alike([in_onnx(form)], case)


def test_boxes_without_bounds_crash_nothing() -> None:
    rng = np.random.default_rng(7)
    boxes = rng.choice(np.append(SPECIAL, [3e9, -1e5, 4.0, 160.0]), (9, 20, 4)).astype(np.float32)
    found = Regions(boxes, np.full(9, 20, np.int32))
    for options in ({}, {"aligned": 1}, {"mode": "max"}):
        a = complete({"spatial_scales": FPN[:3], **options})
        maps = features(7, 9, a)
        wanted = in_torch(found, maps, a)
        for run in every_form()[1:]:
            pooled = run(found, maps, a)
            assert_padding_is_zero(pooled, found)
            assert np.isfinite(pooled).all()
            np.testing.assert_allclose(pooled, wanted, rtol=0, atol=1e-4)


# --- what is refused ---------------------------------------------------------------------------

INVALID = [
    ({"output_height": 0}, "output_height is 0\nexpected: 1 to 64"),
    ({"output_width": 65}, "output_width is 65\nexpected: 1 to 64"),
    ({"sampling_ratio": -1}, r"sampling_ratio is -1\nexpected: 0 \(adaptive\) to 16"),
    ({"sampling_ratio": 17}, "sampling_ratio is 17"),
    ({"sampling_ratio": 2.0}, "sampling_ratio is 2.0"),
    ({"aligned": 2}, "aligned is 2\nexpected: 0 or 1"),
    ({"mode": "median"}, "mode is 'median'\nexpected: avg or max"),
    ({"spatial_scales": (0.25, 0.0)}, "expected: 1 to 5 numbers above 0"),
    ({"spatial_scales": (0.5,) * 6}, "expected: 1 to 5 numbers above 0"),
    ({"spatial_scales": (float("inf"),)}, "expected: 1 to 5 numbers above 0"),
    ({"canonical_size": 0.0}, "canonical_size is 0.0\nexpected: above 0"),
    ({"canonical_level": 11}, "canonical_level is 11\nexpected: 0 to 10"),
    ({"first_level": -1}, "first_level is -1\nexpected: 0 to 10"),
    ({"level_epsilon": 0.1}, "level_epsilon is 0.1"),
    ({"level_epsilon": float("nan")}, "level_epsilon is nan"),
    ({"epsilon_inside": -1}, "epsilon_inside is -1\nexpected: 0 or 1"),
    ({"spatial_scale": 0.25}, "has no attribute 'spatial_scale'\nexpected: output_height"),
]
SIZES: tuple[list[int], ...] = ([2, 4], [], [3, 5, 6])


@pytest.mark.parametrize(("attributes", "message"), INVALID)
def test_attributes_that_are_not_valid_are_refused(
    attributes: dict[str, Any], message: str
) -> None:
    found, a = plugin_cases.regions(8, 1, 2, SIZE), complete({})
    maps = list(map(torch.from_numpy, features(8, 1, a)))
    with pytest.raises(OptionError, match=message):
        ops.torch_op("multiscale_roi_align")(
            torch.from_numpy(found.boxes), torch.from_numpy(found.count), maps, **attributes
        )
    for form in FORMS.values():
        with pytest.raises(ModelError, match=message):
            form(plugin_cases.node_model(PLUGIN, SIZES, attributes, np.float32))


@pytest.mark.parametrize(
    ("sizes", "attributes", "message"),
    [
        (([2, 5], *SIZES[1:]), {}, r"boxes are \[B, 2, 5\], expected \[B, R, 4\], R > 0"),
        (([0, 4], *SIZES[1:]), {}, r"boxes are \[B, 0, 4\], expected"),
        ((SIZES[0], [2], SIZES[2]), {}, r"count is \[B, 2\], expected \[B\]"),
        ((*SIZES[:2], [5, 6]), {}, r"features are \[B, 5, 6\], expected \[B, C, H, W\]"),
        (
            (*SIZES, [4, 5, 6]),
            {"spatial_scales": FPN[:2]},
            r"features are \[B, 4, 5, 6\], expected \[B, C, H, W\] with one C",
        ),
        ((*SIZES, SIZES[2]), {}, "1 spatial_scales for 2 levels"),
        (SIZES, {"mode": "max", "sampling_ratio": 0}, "mode 'max' needs a sampling_ratio of 1"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_inputs_that_do_not_fit_are_refused(
    form: str, sizes: Any, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        FORMS[form](plugin_cases.node_model(PLUGIN, sizes, attributes, np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": -1},
        {"rows": -1},
        {"channels": -1},
        {"levels": 0},
        {"levels": 6},
        {"heights": (ctypes.c_int * 5)(0)},
        {"widths": (ctypes.c_int * 5)(-2)},
        {"spatial_scales": (ctypes.c_float * 5)(float("nan"))},
        {"output_height": 65},
        {"output_width": 0},
        {"sampling_ratio": -1},
        {"maximum": 1, "sampling_ratio": 0},
        {"canonical_size": float("nan")},
    ],
)
def test_the_launcher_refuses_them_too(wrong: dict[str, Any]) -> None:
    a, found = complete({}), plugin_cases.regions(8, 1, 2, SIZE)
    maps = features(8, 1, a)
    call = params(found, maps, a)
    for name, value in wrong.items():
        setattr(call, name, value)
    assert Host().launch(call, found, maps, np.zeros(999, np.float32), 0) == 1


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_int8_without_scales_and_unknown_types_are_refused(scale: float) -> None:
    a, found = complete({}), plugin_cases.regions(8, 1, 2, SIZE)
    maps = features(8, 1, a)
    pooled = np.zeros(999, np.float32)
    for scales in ({"input_scale": scale}, {"output_scale": scale}):
        call = params(found, maps, a | {"input_scale": 1.0, "output_scale": 1.0} | scales)
        assert Host().launch(call, found, maps, pooled, 2) == 1
    for element in (-1, 3):
        assert Host().launch(params(found, maps, a), found, maps, pooled, element) == 1


# --- torch and TensorRT ------------------------------------------------------------------------


def test_torch_accepts_the_op_and_its_shapes() -> None:
    ops.torch_op("multiscale_roi_align")
    a, found = complete({"spatial_scales": FPN}), plugin_cases.regions(9, 2, 3, SIZE)
    maps = list(map(torch.from_numpy, features(9, 2, a)))
    inputs = (torch.from_numpy(found.boxes), torch.from_numpy(found.count), maps)
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.deploykit.multiscale_roi_align.default
    options = a | {"spatial_scales": list(FPN)}
    torch.library.opcheck(op, inputs, options, test_utils=checks)


@pytest.mark.skipif(not BUILDER.builds, reason=BUILDER.reason)
@pytest.mark.parametrize("sm", ["75", "86"])
@pytest.mark.parametrize(
    ("element", "attributes"),
    [
        (np.float32, {"spatial_scales": FPN}),
        (np.float16, {"spatial_scales": FPN}),
        (np.float32, {"spatial_scales": FPN, **DETECTRON2}),
        (np.float16, {"spatial_scales": FPN[:1], "mode": "max"}),
    ],
)
def test_an_engine_is_built_from_the_portable_body(
    tmp_path: Path, element: Any, attributes: dict[str, Any], sm: str
) -> None:
    levels_of = [[16, 64 >> k, 80 >> k] for k in range(len(attributes["spatial_scales"]))]
    model = plugin_cases.node_model(PLUGIN, ([100, 4], [], *levels_of), attributes, element)
    assert 20_000 < plugin_cases.engine_size(model, tmp_path / "align.onnx", sm) < 5_000_000


def test_the_source_compiles_for_a_gpu(tmp_path: Path) -> None:
    assert plugin_cases.object_size(PLUGIN.source, tmp_path / "align.o") > 5_000
