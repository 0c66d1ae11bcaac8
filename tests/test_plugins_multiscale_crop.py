"""DKMultiscaleCrop against crop_and_resize told anew: the torch reference, both bodies, CUDA."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import host_build
import numpy as np
import plugin_cases
import pytest
import torch
from gpu_regions import Regions
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_cases import FORMS

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
    Run = Callable[[Regions, list[Array], Mapping[str, Any]], Array]

PLUGIN = OPS.load("multiscale_crop")
DEFAULTS = {a.name: a.default for a in PLUGIN.attributes}
BUILDER = tensorrt_rtx.availability()
SIZES = ((16, 12), (8, 6), (4, 3), (2, 2))
"""Height and width of the levels that most cases have."""


# --- the formulas, one number after the other ----------------------------------------------------


def level_of(box: Array, count: int, a: Mapping[str, Any]) -> int:
    """Return the level of a box as the Keras network finds it, 0 the finest."""
    share = float(np.float32(np.float32(box[2] - box[0]) * np.float32(box[3] - box[1])))
    if not share > 0:
        return 0
    power = math.log2(math.sqrt(share) / (a["canonical_size"] / math.sqrt(a["image_area"])))
    return int(min(max(a["canonical_level"] + round(power) - a["first_level"], 0), count - 1))


def places(low: Any, high: Any, bins: int, cells: int) -> list[Any]:
    """Return where crop_and_resize samples along an axis, in float32 as it does."""
    last, one = np.float32(cells - 1), np.float32
    if bins == 1:
        return [one(0.5) * (one(low) + one(high)) * last]
    step = (one(high) - one(low)) * last / one(bins - 1)
    return [one(low) * last + one(i) * step for i in range(bins)]


def sampled(plane: Array, y: Any, x: Any) -> float:
    """Return one bilinear sample of plane [H, W], zero outside of it but for a rounding."""
    height, width = plane.shape
    near = 1e-3
    if not (-near <= y <= height - 1 + near and -near <= x <= width - 1 + near):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = float(y) - top, float(x) - left
    return float(
        plane[top, left] * (1 - down) * (1 - along)
        + plane[top, right] * (1 - down) * along
        + plane[bottom, left] * down * (1 - along)
        + plane[bottom, right] * down * along
    )


def expected(found: Regions, maps: list[Array], a: Mapping[str, Any]) -> Array:
    size = a["output_height"], a["output_width"]
    pooled = np.zeros((*found.boxes.shape[:2], maps[0].shape[1], *size))
    for image, row in zip(*found.valid().nonzero(), strict=True):
        box = found.boxes[image, row]
        level = maps[level_of(box, len(maps), a)][image].astype(np.float64)
        y, x = (places(box[k], box[k + 2], size[1 - k], level.shape[2 - k]) for k in (1, 0))
        for channel, plane in enumerate(level):
            pooled[image, row, channel] = [[sampled(plane, i, j) for j in x] for i in y]
    return pooled.reshape(-1, *pooled.shape[2:])


# --- every form of the op ------------------------------------------------------------------------


def in_torch(found: Regions, maps: list[Array], a: Mapping[str, Any]) -> Array:
    tensors = [torch.from_numpy(each) for each in maps]
    boxes, count = torch.from_numpy(found.boxes), torch.from_numpy(found.count)
    pooled: Array = PLUGIN.reference(boxes, count, tensors, **a).numpy()
    return pooled


def in_onnx(form: str) -> Run:
    return lambda found, maps, a: plugin_cases.in_onnx(PLUGIN, form, found, maps, a)


class Host:
    """The CUDA source, compiled for the CPU."""

    def __init__(self, order: Order = "forward", threads: int = 32) -> None:
        self.library = host_build.compiled(PLUGIN.source)
        self.order, self.threads = order, threads

    def __call__(self, found: Regions, maps: list[Array], a: Mapping[str, Any]) -> Array:
        """Return the output, which starts dirty; nothing is written beyond."""
        assert PLUGIN.launcher is not None
        shapes = [found.boxes.shape, found.count.shape, *(each.shape for each in maps)]
        params = PLUGIN.launcher.params(a, shapes)
        shape = (math.prod(shapes[0][:2]), maps[0].shape[1], a["output_height"], a["output_width"])
        memory = np.full(math.prod(shape) + 64, 77, maps[0].dtype)
        assert self.launch(params, [found.boxes, found.count], maps, memory) == 0
        assert (memory[-64:] == 77).all()
        return memory[:-64].reshape(shape)

    def launch(self, params: Any, before: list[Array], maps: list[Array], memory: Array) -> int:
        host_build.arrange(self.library, order=self.order, threads=self.threads)
        levels = (ctypes.c_void_p * len(maps))(*(each.ctypes.data for each in maps))
        inputs = [ctypes.c_void_p(each.ctypes.data) for each in before]
        element = int(memory.dtype == np.float16)
        out = ctypes.c_void_p(memory.ctypes.data)
        call = self.library.deploykit_multiscale_crop
        return int(call(ctypes.byref(params), *inputs, levels, out, element, None))


def every_form() -> list[Run]:
    return [in_torch, Host(), *map(in_onnx, FORMS)]


def pyramid(seed: int, images: int, sizes: Any = SIZES, element: Any = np.float32) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((images, 3, *size)).astype(element) for size in sizes]


def assert_same(runs: list[Run], found: Regions, maps: list[Array], **attributes: Any) -> None:
    """Check that every run gives what the formulas do."""
    a = DEFAULTS | {"levels": len(maps)} | attributes
    wanted = expected(found, maps, a)
    near = 4e-3 if maps[0].dtype == np.float16 else 2e-5
    near += moved(found, maps)
    for run in runs:
        np.testing.assert_allclose(run(found, maps, a), wanted, atol=near, err_msg=str(a))


def moved(found: Regions, maps: list[Array]) -> float:
    """Return by how much a sample changes where its place is rounded otherwise, by one step.

    Places are summed in float32 from where a box begins: far outside, steps are wide.
    """
    numbers = np.abs(found.boxes[np.isfinite(found.boxes)])
    far = numbers.max(initial=0) * max(max(each.shape[2:]) - 1 for each in maps)
    slope = max((float(np.ptp(each.astype(np.float64))) for each in maps if each.size), default=0.0)
    return float(np.finfo(np.float32).eps * far * slope)


ATTRIBUTES: tuple[dict[str, Any], ...] = (
    {"image_area": 65536.0},
    {"image_area": 262144.0, "output_height": 14, "output_width": 14},
    {"image_area": 262144.0, "output_height": 1, "output_width": 1},
    {"image_area": 1e6, "canonical_size": 100.0, "output_width": 3},
    {"image_area": 1e6, "canonical_level": 3, "first_level": 3},
)


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("element", [np.float32, np.float16])
def test_every_form_crops_as_the_formulas_do(attributes: dict[str, Any], element: Any) -> None:
    """Boxes of every kind: inside, across the border, outside, inverted, empty, not finite."""
    found = plugin_cases.regions(len(attributes), 9, 4, (1.0, 1.0))
    assert_same(every_form(), found, pyramid(1, 9, element=element), **attributes)


@pytest.mark.parametrize("threads", [1, 0])
@pytest.mark.parametrize("order", host_build.ORDERS)
def test_the_kernels_are_right_with_any_threads_in_any_order(order: Order, threads: int) -> None:
    found = plugin_cases.regions(threads, 9, 2, (1.0, 1.0))
    assert_same([Host(order, threads)], found, pyramid(2, 9))


def test_a_box_goes_to_the_level_that_the_logarithm_says() -> None:
    """At the shares themselves a half goes to the even level; all forms read the same one."""
    sides = [2.0**power * 224 / 1024 for power in (-1.5, -0.5, 0.5, 1.5)]
    near = [side * factor for side in sides for factor in (0.9999, 1.0001)]
    boxes = np.array([[0.0, 0, side, side] for side in near if side < 1], np.float32)
    found = Regions(boxes[None], np.array([len(boxes)], np.int32))
    maps = [np.full((1, 1, *size), 1.0 + i, np.float32) for i, size in enumerate(SIZES)]
    a = DEFAULTS | {"levels": 4}
    wanted = [1.0 + level_of(box, 4, a) for box in boxes]
    assert len(set(wanted)) == 4
    for run in every_form():
        assert run(found, maps, a)[:, 0, 0, 0].tolist() == wanted


def test_no_image_and_no_valid_row_give_no_values() -> None:
    nothing = Regions(np.zeros((0, 4, 4), np.float32), np.zeros(0, np.int32))
    boxes = plugin_cases.regions(4, 2, 4, (1.0, 1.0)).boxes
    for run in every_form():
        a = DEFAULTS | {"levels": 4}
        assert run(nothing, pyramid(4, 0), a).shape == (0, 3, 7, 7)
        for count in (0, -3):
            found = Regions(boxes, np.full(2, count, np.int32))
            assert not run(found, pyramid(4, 2), a).any()


COORDINATES = st.one_of(
    st.integers(-4, 12).map(lambda eighth: eighth / 8),
    st.floats(-0.5, 1.5, width=32),
    st.sampled_from([1.0, 0.0, -1e-7, 1.0000001, float("nan"), float("inf"), 30.0]),
)


@st.composite
def anything(draw: st.DrawFn) -> tuple[Regions, list[Array], dict[str, Any]]:
    """Return boxes, maps and attributes, none of them large."""
    found = draw(plugin_cases.few_regions(COORDINATES))
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
    attributes = {
        "output_height": draw(st.integers(1, 5)),
        "output_width": draw(st.integers(1, 5)),
        "image_area": draw(st.sampled_from([4096.0, 65536.0, 1048576.0])),
        "canonical_level": draw(st.integers(2, 5)),
        "levels": len(sizes),
    }
    maps = pyramid(draw(st.integers(0, 9)), len(found.boxes), sizes)
    return found, maps, attributes


@settings(deadline=None, max_examples=500)
@given(anything(), st.sampled_from(host_build.ORDERS))
def test_reference_and_kernels_are_the_formulas_whatever_the_numbers_are(
    case: tuple[Regions, list[Array], dict[str, Any]], order: Order
) -> None:
    found, maps, attributes = case
    assert_same([in_torch, Host(order, 5)], found, maps, **attributes)


def test_a_box_that_begins_far_outside_is_read_where_it_ends() -> None:
    boxes = np.array([[[30.0, 0.0, 0.36916775, 0.0]]], np.float32)
    found = Regions(boxes, np.array([1], np.int32))
    for form in sorted(FORMS):
        assert_same(
            [in_onnx(form)], found, pyramid(0, 1, [(5, 6)]), output_height=1, output_width=2
        )


@settings(deadline=None, max_examples=60)
@given(anything(), st.sampled_from(sorted(FORMS)))
def test_the_bodies_are_the_formulas_whatever_the_numbers_are(
    case: tuple[Regions, list[Array], dict[str, Any]], form: str
) -> None:
    found, maps, attributes = case
    assert_same([in_onnx(form)], found, maps, **attributes)


INVALID = [
    ({"output_height": 0}, "output_height is 0\nexpected: 1 to 64"),
    ({"levels": 6}, "levels is 6\nexpected: 1 to 5"),
    ({"image_area": 0.0}, "image_area is 0.0\nexpected: above 0"),
    ({"canonical_size": float("inf")}, "canonical_size is inf"),
    ({"first_level": 11}, "first_level is 11\nexpected: 0 to 10"),
]


@pytest.mark.parametrize(("attributes", "message"), INVALID)
def test_attributes_that_are_not_valid_are_refused(
    attributes: dict[str, Any], message: str
) -> None:
    found = plugin_cases.regions(8, 1, 2, (1.0, 1.0))
    boxes, count = torch.from_numpy(found.boxes), torch.from_numpy(found.count)
    with pytest.raises(OptionError, match=message):
        ops.torch_op("multiscale_crop")(boxes, count, [torch.zeros(1, 3, 4, 4)], **attributes)


def test_as_many_maps_as_levels_are_wanted() -> None:
    model = plugin_cases.node_model(PLUGIN, ([2, 4], [], [3, 5, 6]), {"levels": 2}, np.float32)
    with pytest.raises(ModelError, match="levels is 2 for 1 maps"):
        ops.inline(model)


@pytest.mark.parametrize(
    "wrong",
    [{"batch": -1}, {"levels": 0}, {"levels": 6}, {"output_width": 65}, {"image_area": 0.0}],
)
def test_the_launcher_refuses_them_too(wrong: dict[str, Any]) -> None:
    assert PLUGIN.launcher is not None
    params: Any = PLUGIN.launcher.params(DEFAULTS, [(1, 1, 4), (1,), (1, 1, 1, 1)])
    for name, value in wrong.items():
        setattr(params, name, value)
    some = np.zeros(64, np.float32)
    assert Host().launch(params, [some, some], [some], some) == 1


def test_torch_accepts_the_op_and_its_shapes() -> None:
    ops.torch_op("multiscale_crop")
    found = plugin_cases.regions(9, 2, 3, (1.0, 1.0))
    boxes, count = torch.from_numpy(found.boxes), torch.from_numpy(found.count)
    maps = [torch.from_numpy(each) for each in pyramid(9, 2)]
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.deploykit.multiscale_crop.default
    torch.library.opcheck(op, (boxes, count, maps), DEFAULTS | {"levels": 4}, test_utils=checks)


@pytest.mark.skipif(not BUILDER.builds, reason=BUILDER.reason)
@pytest.mark.parametrize("sm", ["75", "86"])
def test_an_engine_is_built_from_the_portable_body(tmp_path: Path, sm: str) -> None:
    sizes: tuple[list[int], ...] = ([100, 4], [], *([8, 64 >> i, 64 >> i] for i in range(4)))
    model = plugin_cases.node_model(PLUGIN, sizes, {"levels": 4}, np.float32)
    assert 20_000 < plugin_cases.engine_size(model, tmp_path / "crop.onnx", sm) < 5_000_000


def test_the_source_compiles_for_a_gpu(tmp_path: Path) -> None:
    assert plugin_cases.object_size(PLUGIN.source, tmp_path / "crop.o") > 5_000
