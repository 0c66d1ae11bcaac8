"""DKRoiPool against torchvision: the torch reference, both ONNX bodies, the CUDA source."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import host_build
import numpy as np
import plugin_cases
import pytest
import torch
import torchvision
from gpu_regions import Regions
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_cases import FORMS, SPECIAL

from deploykit import ops
from deploykit.backends import tensorrt_rtx
from deploykit.errors import ModelError, OptionError
from deploykit.ops.plugin import OPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from host_build import Order
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Run = Callable[[Regions, Array, Mapping[str, Any]], Array]

PLUGIN = OPS.load("roi_pool")
DEFAULTS = {a.name: a.default for a in PLUGIN.attributes}
BUILDER = tensorrt_rtx.availability()
ATTRIBUTES: tuple[dict[str, Any], ...] = (
    {},
    {"spatial_scale": 0.25},
    {"spatial_scale": 0.1},
    {"output_height": 1, "output_width": 1},
    {"output_height": 3, "output_width": 14},
    {"output_height": 14, "output_width": 2, "spatial_scale": 0.3},
    {"output_height": 64, "output_width": 5},
    {"spatial_scale": 1.0, "output_width": 6},
    {"spatial_scale": 3.0},
)
MAPS = ((13, 9), (4, 21), (1, 1), (1, 8), (16, 3), (7, 7), (32, 5), (17, 33), (2, 2))


def features(seed: int, images: int, size: tuple[int, int], channels: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((images, channels, *size)).astype(np.float32)


def expected(found: Regions, maps: Array, a: Mapping[str, Any]) -> Array:
    """Return what torchvision gives for the valid rows, and zeros for the others."""
    size = a["output_height"], a["output_width"]
    pooled = np.zeros((*found.boxes.shape[:2], maps.shape[1], *size), maps.dtype)
    rows, whole = torch.from_numpy(found.by_image()), torch.from_numpy(maps).float()
    if len(rows):
        values = torchvision.ops.roi_pool(whole, rows, size, a["spatial_scale"]).numpy()
        with np.errstate(over="ignore"):  # the lowest float32 is -inf in FP16
            pooled[found.valid()] = values.astype(maps.dtype)
    return pooled.reshape(-1, *pooled.shape[2:])


def in_torch(found: Regions, maps: Array, a: Mapping[str, Any]) -> Array:
    tensors = map(torch.from_numpy, (found.boxes, found.count, maps))
    pooled: Array = PLUGIN.reference(*tensors, **a).numpy()
    return pooled


def in_onnx(form: str) -> Run:
    return lambda found, maps, a: plugin_cases.in_onnx(PLUGIN, form, found, [maps], a)


def every_form() -> list[Run]:
    return [in_torch, Host(), *map(in_onnx, FORMS)]


class Params(ctypes.Structure):
    """RoiPoolParams."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "rows", "channels", "height", "width")),
        ("output_height", ctypes.c_int),
        ("output_width", ctypes.c_int),
        ("spatial_scale", ctypes.c_float),
    )


class Host:
    """The CUDA source, compiled for the CPU."""

    def __init__(self, order: Order = "forward", threads: int = 32) -> None:
        self.library = host_build.compiled(PLUGIN.source)
        self.order, self.threads = order, threads

    def launch(self, params: Params, arrays: list[Array], element: int) -> int:
        host_build.arrange(self.library, order=self.order, threads=self.threads)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        return int(self.library.deploykit_roi_pool(ctypes.byref(params), *pointers, element, None))

    def __call__(self, found: Regions, maps: Array, a: Mapping[str, Any]) -> Array:
        """Return the output, which starts dirty; nothing is written beyond."""
        sizes = (*found.boxes.shape[:2], *maps.shape[1:])
        options = ("output_height", "output_width", "spatial_scale")
        params = Params(*sizes, *(a[name] for name in options))
        shape = (sizes[0] * sizes[1], sizes[2], a["output_height"], a["output_width"])
        memory = np.full(int(np.prod(shape)) + 64, 77, maps.dtype)
        arrays = [found.boxes, found.count, maps, memory]
        assert self.launch(params, arrays, int(maps.dtype == np.float16)) == 0
        assert (memory[-64:] == 77).all()
        return memory[:-64].reshape(shape)


def assert_same(runs: list[Run], found: Regions, maps: Array, **attributes: Any) -> None:
    """Check that every run gives what torchvision gives, bit by bit."""
    a = DEFAULTS | attributes
    wanted = expected(found, maps, a)
    for run in runs:
        np.testing.assert_array_equal(run(found, maps, a), wanted, err_msg=str(a), strict=True)


# --- the same in every form --------------------------------------------------------------------


@pytest.mark.parametrize(("attributes", "size"), list(zip(ATTRIBUTES, MAPS, strict=True)))
@pytest.mark.parametrize("element", [np.float32, np.float16])
def test_every_form_is_torchvisions_roi_pool(
    attributes: dict[str, Any], size: tuple[int, int], element: Any
) -> None:
    scale = (DEFAULTS | attributes)["spatial_scale"]
    runs = every_form()
    pixels = (size[0] / scale, size[1] / scale)
    found = plugin_cases.regions(int(100 * scale), 36, 9, pixels)
    assert_same(runs, found, features(1, 36, size).astype(element), **attributes)


@pytest.mark.parametrize("threads", [1, 3, 0])
@pytest.mark.parametrize("order", host_build.ORDERS)
def test_the_kernels_are_right_with_any_threads_in_any_order(order: Order, threads: int) -> None:
    found = plugin_cases.regions(threads, 9, 3, (96, 128))
    assert_same([Host(order, threads)], found, features(2, 9, (6, 8), channels=35))


def test_the_sizes_of_a_real_detector_are_right() -> None:
    found = plugin_cases.regions(3, 2, 300, (600, 1000))
    runs = every_form()
    assert_same(runs, found, features(3, 2, (38, 63), channels=8))


def test_no_image_and_no_valid_row_give_no_values() -> None:
    runs = every_form()
    maps = features(4, 2, (5, 6))
    nothing = Regions(np.zeros((0, 4, 4), np.float32), np.zeros(0, np.int32))
    assert_same(runs, nothing, maps[:0])
    boxes = plugin_cases.regions(4, 2, 4, (80, 96)).boxes
    for count in (0, -3):
        assert_same(runs, Regions(boxes, np.full(2, count, np.int32)), maps)


def test_padding_is_zero_whatever_it_holds() -> None:
    boxes = np.tile(SPECIAL[:4], (2, 5, 1))
    boxes[:, :2] = plugin_cases.regions(5, 2, 2, (80, 96)).boxes
    found, maps = Regions(boxes, np.array([1, 2], np.int32)), features(5, 2, (5, 6)) + 10
    for run in every_form():
        rows = run(found, maps, DEFAULTS).reshape(2, 5, -1)
        assert (rows[0, 1:] == 0).all()
        assert (rows[1, 2:] == 0).all()
        assert (rows[:, 0] != 0).any()


@pytest.mark.parametrize("element", [np.float32, np.float16])
def test_nan_is_never_the_largest(element: Any) -> None:
    """And a bin of nothing but NaN gives the lowest float."""
    rng = np.random.default_rng(6)
    maps = features(6, 18, (9, 8)).astype(element)
    odd = np.array([np.nan, np.inf, -np.inf, np.nan], element)
    maps = np.where(rng.random(maps.shape) < 0.5, rng.choice(odd, maps.shape), maps)
    maps[:9] = np.nan
    runs = every_form()
    assert_same(runs, plugin_cases.regions(6, 18, 8, (144, 128)), maps)


# --- whatever the numbers are ------------------------------------------------------------------

COORDINATES = st.one_of(
    st.integers(-40, 200).map(lambda quarter: quarter / 4),
    st.floats(-100, 1000, width=32),
    st.sampled_from([7.9999995, 8.0, 24.0, -8.0, -7.9999995, 40.0, float("nan"), float("inf")]),
)


@st.composite
def anything(draw: st.DrawFn) -> tuple[Regions, Array, dict[str, Any]]:
    """Return boxes, maps and attributes, none of them large."""
    found = draw(plugin_cases.few_regions(COORDINATES))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    attributes = {
        "output_height": draw(st.integers(1, 9)),
        "output_width": draw(st.integers(1, 9)),
        "spatial_scale": draw(st.sampled_from([1 / 16, 0.125, 0.3, 1.0, 2.5, 1e-9])),
    }
    maps = features(draw(st.integers(0, 9)), len(found.boxes), size, 2)
    return found, maps, attributes


@settings(deadline=None, max_examples=250)
@given(anything(), st.sampled_from(host_build.ORDERS))
def test_reference_and_kernels_are_torchvisions_whatever_the_numbers_are(
    case: tuple[Regions, Array, dict[str, Any]], order: Order
) -> None:
    found, maps, attributes = case
    assert_same([in_torch, Host(order, 5)], found, maps, **attributes)


@settings(deadline=None, max_examples=60)
@given(anything(), st.sampled_from(sorted(FORMS)))
def test_the_bodies_are_torchvisions_whatever_the_numbers_are(
    case: tuple[Regions, Array, dict[str, Any]], form: str
) -> None:
    found, maps, attributes = case
    assert_same([in_onnx(form)], found, maps, **attributes)


def test_boxes_that_no_integer_holds_are_cut_alike_in_every_form() -> None:
    """torchvision converts them to an int that they do not fit, which means nothing."""
    rng = np.random.default_rng(7)
    for scale in (1 / 16, 1.0, 1e-30, 1e30):
        boxes = rng.choice(np.append(SPECIAL[3:], [3e9, -3e9, 4.0, 60.0]), (6, 20, 4))
        found = Regions(boxes.astype(np.float32), np.full(6, 20, np.int32))
        maps, a = features(7, 6, (5, 6)), DEFAULTS | {"spatial_scale": scale}
        wanted = in_torch(found, maps, a)
        assert np.isfinite(wanted).all()
        for run in every_form()[1:]:
            np.testing.assert_array_equal(run(found, maps, a), wanted, strict=True)


# --- what is refused ---------------------------------------------------------------------------

INVALID = [
    ({"output_height": 0}, "output_height is 0\nexpected: 1 to 64"),
    ({"output_width": 65}, "output_width is 65\nexpected: 1 to 64"),
    ({"output_width": 2.5}, "output_width is 2.5"),
    ({"spatial_scale": 0.0}, "spatial_scale is 0.0\nexpected: a finite number above 0"),
    ({"spatial_scale": -1.0}, "spatial_scale is -1.0"),
    ({"spatial_scale": float("nan")}, "spatial_scale is nan"),
    ({"spatial_scale": float("inf")}, "spatial_scale is inf"),
    ({"sampling_ratio": 2}, "has no attribute 'sampling_ratio'\nexpected: output_height"),
]


@pytest.mark.parametrize(("attributes", "message"), INVALID)
def test_attributes_that_are_not_valid_are_refused(
    attributes: dict[str, Any], message: str
) -> None:
    found = plugin_cases.regions(8, 1, 2, (80, 96))
    tensors = map(torch.from_numpy, (found.boxes, found.count, features(8, 1, (5, 6))))
    with pytest.raises(OptionError, match=message):
        ops.torch_op("roi_pool")(*tensors, **attributes)
    for form in FORMS.values():
        with pytest.raises(ModelError, match=message):
            form(plugin_cases.node_model(PLUGIN, SIZES, attributes, np.float32))


SIZES: tuple[list[int], ...] = ([2, 4], [], [3, 5, 6])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (([2, 5], *SIZES[1:]), r"boxes are \[B, 2, 5\], expected \[B, R, 4\], R > 0"),
        (([0, 4], *SIZES[1:]), r"boxes are \[B, 0, 4\], expected"),
        (([2], *SIZES[1:]), r"boxes are \[B, 2\], expected"),
        ((SIZES[0], [2], SIZES[2]), r"count is \[B, 2\], expected \[B\]"),
        ((*SIZES[:2], [3, 5]), r"features are \[B, 3, 5\], expected \[B, C, H, W\] with one C"),
        ((*SIZES[:2], [3, 0, 5]), r"features are \[B, 3, 0, 5\], expected"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_shapes_that_do_not_fit_are_refused(form: str, sizes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        FORMS[form](plugin_cases.node_model(PLUGIN, sizes, {}, np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": -1},
        {"rows": -1},
        {"channels": -1},
        {"height": 0},
        {"width": -5},
        {"output_height": 0},
        {"output_width": 65},
        {"spatial_scale": 0.0},
        {"spatial_scale": float("nan")},
        {"spatial_scale": float("inf")},
        {"element": 2},
        {"element": -1},
    ],
)
def test_the_launcher_refuses_them_too(wrong: dict[str, Any]) -> None:
    element = wrong.pop("element", 0)
    params = Params(1, 1, 1, 1, 1, 1, 1, 1.0)
    for name, value in wrong.items():
        setattr(params, name, value)
    assert Host().launch(params, [np.zeros(64, np.float32)] * 4, element) == 1


# --- torch and TensorRT ------------------------------------------------------------------------


def test_torch_accepts_the_op_and_its_shapes() -> None:
    ops.torch_op("roi_pool")
    found = plugin_cases.regions(9, 2, 3, (80, 96))
    tensors = tuple(map(torch.from_numpy, (found.boxes, found.count, features(9, 2, (5, 6)))))
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.deploykit.roi_pool.default
    torch.library.opcheck(op, tensors, DEFAULTS, test_utils=checks)


@pytest.mark.skipif(not BUILDER.builds, reason=BUILDER.reason)
@pytest.mark.parametrize("sm", ["75", "86"])
@pytest.mark.parametrize("element", [np.float32, np.float16])
def test_an_engine_is_built_from_the_portable_body(tmp_path: Path, sm: str, element: Any) -> None:
    sizes: tuple[list[int], ...] = ([300, 4], [], [16, 38, 63])
    model = plugin_cases.node_model(PLUGIN, sizes, {}, element)
    assert 50_000 < plugin_cases.engine_size(model, tmp_path / "pool.onnx", sm) < 5_000_000


def test_the_source_compiles_for_a_gpu(tmp_path: Path) -> None:
    assert plugin_cases.object_size(PLUGIN.source, tmp_path / "pool.o") > 5_000
