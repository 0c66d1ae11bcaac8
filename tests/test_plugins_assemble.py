"""DKAssemble against its definition, pixel by pixel: reference, bodies, the CUDA source."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import host_build
import numpy as np
import onnx_ir as ir
import onnxruntime
import plugin_cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_cases import FORMS, TAGS

from deploykit import ops
from deploykit.backends import tensorrt_rtx
from deploykit.errors import ModelError, OptionError
from deploykit.ops.plugin import OPS

if TYPE_CHECKING:
    from pathlib import Path

    from host_build import Order
    from numpy.typing import NDArray

    Array = NDArray[Any]

PLUGIN = OPS.load("assemble")
BUILDER = tensorrt_rtx.availability()


def expected(maps: Array, positions: Array, bins: int, window: int) -> Array:
    """Return the windows as the paper describes them, one pixel after the other."""
    height, width = maps.shape[2:]
    found = np.zeros((*positions.shape, window, window), maps.dtype)
    for image, row in np.ndindex(*positions.shape):
        middle = int(positions[image, row])
        if not 0 <= middle < height * width:
            continue
        for v, u in np.ndindex(window, window):
            y, x = middle // width + v - window // 2, middle % width + u - window // 2
            if 0 <= y < height and 0 <= x < width:
                part = math.floor(v * bins / window) * bins + math.floor(u * bins / window)
                found[image, row, v, u] = maps[image, part, y, x]
    return found


def in_torch(maps: Array, positions: Array, bins: int, window: int) -> Array:
    tensors = torch.from_numpy(maps), torch.from_numpy(positions)
    found: Array = PLUGIN.reference(*tensors, bins=bins, window=window).numpy()
    return found


def on_host(
    maps: Array, positions: Array, bins: int, window: int, order: Order = "forward"
) -> Array:
    """Return what the CUDA source gives on the CPU: it starts dirty, nothing is written beyond."""
    assert PLUGIN.launcher is not None
    values = {"bins": bins, "window": window}
    params = PLUGIN.launcher.params(values, [maps.shape, positions.shape])
    shape = (*positions.shape, window, window)
    memory = np.full(math.prod(shape) + 64, 77, maps.dtype)
    assert launch(params, [maps, positions, memory], order) == 0
    assert (memory[-64:] == 77).all()
    return memory[:-64].reshape(shape)


def launch(params: Any, arrays: list[Array], order: Order = "forward") -> int:
    library = host_build.compiled(PLUGIN.source)
    host_build.arrange(library, order=order, threads=5)
    pointers = [ctypes.c_void_p(each.ctypes.data) for each in arrays]
    element = int(arrays[0].dtype == np.float16)
    return int(library.deploykit_assemble(ctypes.byref(params), *pointers, element, None))


def model(sizes: tuple[list[int], list[int]], element: Any, **attributes: int) -> ir.Model:
    """Return a model of one node; sizes: of maps and positions, after the batch."""
    kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(element)))
    types = kind, ir.TensorType(ir.DataType.INT32)
    inputs = [
        ir.Value(name=f"in{i}", type=of, shape=ir.Shape(["batch", *size]))
        for i, (of, size) in enumerate(zip(types, sizes, strict=True))
    ]
    side = attributes.get("window", 21)
    shape = ir.Shape(["batch", *sizes[1], side, side])
    output = ir.Value(name="windows", type=kind, shape=shape)
    node = ir.node(
        PLUGIN.name, inputs, {**attributes, **TAGS}, domain="deploykit", outputs=[output]
    )
    graph = ir.Graph(
        inputs, [output], nodes=[node], opset_imports={"": 19, "deploykit": 1}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def in_onnx(form: str, maps: Array, positions: Array, bins: int, window: int) -> Array:
    sizes = list(maps.shape[1:]), list(positions.shape[1:])
    made = model(sizes, maps.dtype, bins=bins, window=window)
    FORMS[form](made)
    session = onnxruntime.InferenceSession(
        ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, {"in0": maps, "in1": positions})[0]
    return found


def case(seed: int, images: int, size: tuple[int, int], bins: int, element: Any) -> list[Array]:
    random = np.random.default_rng(seed)
    maps = random.standard_normal((images, bins * bins, *size)).astype(element)
    middle = random.integers(-3, math.prod(size) + 3, (images, 4)).astype(np.int32)
    return [maps, middle]


@pytest.mark.parametrize("element", [np.float32, np.float16])
@pytest.mark.parametrize(("bins", "window"), [(5, 21), (3, 7), (1, 1), (4, 6), (7, 3)])
def test_every_form_puts_windows_together_as_defined(bins: int, window: int, element: Any) -> None:
    maps, positions = case(bins, 2, (9, 13), bins, element)
    wanted = expected(maps, positions, bins, window)
    for found in (
        in_torch(maps, positions, bins, window),
        *(in_onnx(form, maps, positions, bins, window) for form in FORMS),
        *(on_host(maps, positions, bins, window, order) for order in host_build.ORDERS),
    ):
        np.testing.assert_array_equal(found, wanted, strict=True)


@settings(deadline=None, max_examples=500)
@given(
    st.integers(0, 99),
    st.integers(1, 2),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_reference_and_kernel_are_the_definition_whatever_the_sizes_are(
    seed: int, images: int, size: tuple[int, int], bins: int, window: int
) -> None:
    maps, positions = case(seed, images, size, bins, np.float32)
    wanted = expected(maps, positions, bins, window)
    for run in (in_torch, on_host):
        found = run(maps, positions, bins, window)
        np.testing.assert_array_equal(found, wanted, strict=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.integers(0, 2), st.integers(1, 4), st.sampled_from(sorted(FORMS)))
def test_the_bodies_are_the_definition_for_any_batch(
    seed: int, images: int, bins: int, form: str
) -> None:
    maps, positions = case(seed, images, (5, 8), bins, np.float32)
    found = in_onnx(form, maps, positions, bins, 6)
    np.testing.assert_array_equal(found, expected(maps, positions, bins, 6), strict=True)


@pytest.mark.parametrize(
    ("sizes", "attributes", "message"),
    [
        (([24, 4, 4], [3]), {}, r"maps are \[B, 24, 4, 4\], expected \[B, 25, H, W\]"),
        (([25, 4, 4], [3, 2]), {}, r"positions are \[B, 3, 2\], expected \[B, N\], N > 0"),
        (([25, 4, 4], [3]), {"window": 65}, "window is 65\nexpected: 1 to 64"),
    ],
)
def test_what_does_not_fit_is_refused(sizes: Any, attributes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ops.inline(model(sizes, np.float32, **attributes))


def test_attributes_and_parameters_out_of_range_are_refused() -> None:
    maps, positions = (torch.from_numpy(each) for each in case(0, 1, (3, 3), 2, np.float32))
    with pytest.raises(OptionError, match="bins is 17\nexpected: 1 to 16"):
        ops.torch_op("assemble")(maps, positions, bins=17)
    assert PLUGIN.launcher is not None
    params: Any = PLUGIN.launcher.params({"bins": 2, "window": 65}, [(1, 4, 3, 3), (1, 1)])
    assert launch(params, [np.zeros(64, np.float32)] * 3) == 1


@pytest.mark.skipif(not BUILDER.builds, reason=BUILDER.reason)
def test_an_engine_is_built_from_the_body(tmp_path: Path) -> None:
    made = model(([25, 75, 100], [200]), np.float32)
    assert 10_000 < plugin_cases.engine_size(made, tmp_path / "assemble.onnx", "86") < 5_000_000


def test_the_source_compiles_for_a_gpu(tmp_path: Path) -> None:
    assert plugin_cases.object_size(PLUGIN.source, tmp_path / "assemble.o") > 3_000
