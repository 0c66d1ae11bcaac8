"""One file for several sizes of image: each gives what a file of its own gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from deploykit import ops
from deploykit.backends.sizes import Sizes
from deploykit.errors import ModelError, OptionError
from deploykit.files import onnxfile
from deploykit.graph import canvases, fusion
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

WIDE, HIGH = (32, 64), (64, 32)
TAGS = 'plugin_namespace = "deploykit", plugin_version = "1"'


def detector(size: tuple[int, int], *, extra: str = "") -> ir.Model:
    """Return a small network as a trace at `size` would be: its constants follow from the size."""
    height, width = size
    rng = np.random.default_rng(0)
    text = f"""<ir_version: 10, opset_import: ["" : 19, "deploykit" : 1]>
    net (float[N, 3, {height}, {width}] images) => (float[N, M] flat, float[P, 8, 2, 2] pooled) {{
        maps = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (images, weight)
        large = Resize <mode = "nearest"> (maps, , , large_size)
        placed = Add (large, places)
        flat = Reshape (placed, flat_shape)
        mean = GlobalAveragePool (maps)
        sides = Reshape (mean, box_shape)
        size = Abs (sides)
        boxes = Mul (size, limit)
        all = ReduceSum <keepdims = 0> (boxes, axes)
        none = Mul (all, zero)
        some = Add (none, two)
        count = Cast <to = 6> (some)
        {extra}
        pooled = deploykit.DKMultiscaleRoiAlign <output_height = 2, output_width = 2,
            spatial_scales = [0.5], first_level = 1, {TAGS}> (boxes, count, maps)
    }}"""
    constants = {
        "weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "large_size": np.array([2, 8, height, width]),
        "places": np.arange(height * width, dtype=np.float32).reshape(1, 1, height, width),
        "flat_shape": np.array([-1, 8 * height * width]),
        "box_shape": np.array([-1, 2, 4]),
        "limit": np.array([0, 0, width, height], np.float32),
        "axes": np.array([1, 2]),
        "zero": np.zeros(1, np.float32),
        "two": np.array([2], np.float32),
    }
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    ops.attach(model)
    return model


def run(model: ir.Model, images: Array) -> list[Array]:
    data = ir.to_proto(model).SerializeToString()
    found: list[Array] = onnxruntime.InferenceSession(data).run(None, {"images": images})
    return found


def images(size: tuple[int, int]) -> Array:
    return np.random.default_rng(1).normal(size=(2, 3, *size)).astype(np.float32)


@pytest.fixture
def both(tmp_path: Path) -> ir.Model:
    path = tmp_path / "both.onnx"
    onnxfile.write_model(canvases.merged([detector(WIDE), detector(HIGH)]), path)
    onnx.checker.check_model(path, full_check=True)
    return onnxfile.read_model(path)


def test_each_size_gives_what_a_file_of_its_own_gives(both: ir.Model) -> None:
    assert canvases.sizes(both) == (WIDE, HIGH)
    for size, model in canvases.split(both).items():
        assert size is not None
        for found, expected in zip(
            run(model, images(size)), run(detector(size), images(size)), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_who_knows_nothing_of_sizes_reads_a_model_of_the_first(both: ir.Model) -> None:
    expected = run(detector(WIDE), images(WIDE))
    np.testing.assert_array_equal(run(both, images(WIDE))[0], expected[0])


def test_weights_are_there_once(both: ir.Model) -> None:
    (function,) = (f for key, f in both.functions.items() if key[0] == canvases.DOMAIN)
    assert {v.name for v in function.outputs} == {"large_size", "places", "limit"}


def test_shapes_follow_the_size(both: ir.Model) -> None:
    high = canvases.split(both)[HIGH]
    shapes = {v.name: list(v.shape or ()) for node in high.graph for v in node.outputs}
    assert shapes["maps"][1:] == [8, 32, 16]
    assert shapes["placed"][1:] == [8, 64, 32]
    assert shapes["pooled"][1:] == [8, 2, 2]


def test_a_rewrite_reaches_every_size(both: ir.Model) -> None:
    def fused(model: ir.Model) -> ir.Model:
        fusion.fuse(model)
        ops.attach(model)
        return model

    rewritten = canvases.each(both, fused)
    assert canvases.sizes(rewritten) == (WIDE, HIGH)
    high = canvases.split(rewritten)[HIGH]
    expected = run(detector(HIGH), images(HIGH))
    np.testing.assert_allclose(run(high, images(HIGH))[0], expected[0], rtol=1e-6)


def test_a_model_of_one_size_stays_itself() -> None:
    model = detector(WIDE)
    assert canvases.split(model) == {WIDE: model}
    assert canvases.each(model, lambda one: one) is model


def test_a_network_that_differs_by_size_is_refused_with_the_node() -> None:
    other = detector(HIGH, extra="other = Abs (mean)")
    with pytest.raises(OptionError, match=r"64x32: 14 nodes instead of 13") as caught:
        canvases.merged([detector(WIDE), other])
    assert "only constants differ" in caught.value.expected


def test_sizes_that_belong_to_another_graph_are_refused(both: ir.Model) -> None:
    both.graph.initializers["limit"].name = "bound"
    with pytest.raises(ModelError, match="'limit' for images of 64x32 is not in its graph"):
        canvases.split(both)


@pytest.mark.parametrize("name", ["portrait", "64x", "-1x32", "64x32x3"])
def test_a_size_that_is_none_is_refused(name: str) -> None:
    model = detector(WIDE)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 19})
    function = ir.Function(canvases.DOMAIN, name, "", graph=graph, attributes=[])
    model.functions[function.identifier()] = function
    with pytest.raises(ModelError, match="names no size"):
        canvases.split(model)


# --- sessions -----------------------------------------------------------------------------------


class Fixed:
    """A session that takes one size and says which."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.inputs = (TensorSpec("images", "float32", ("batch", 3, *size)),)
        self.outputs: tuple[TensorSpec, ...] = ()

    def run(self, feeds: Any) -> dict[str, Any]:
        return {"size": (self.size, feeds["images"].shape)}

    def stepper(self, feeds: Any, **_: bool) -> Any:
        return lambda: self.run(feeds)


def test_a_batch_runs_in_the_session_of_its_size_and_others_open_late() -> None:
    opened: list[tuple[int, int]] = []

    def opener(size: tuple[int, int]) -> Any:
        def open_() -> Fixed:
            opened.append(size)
            return Fixed(size)

        return open_

    session = Sizes({size: opener(size) for size in (WIDE, HIGH)})
    assert opened == [WIDE]
    assert session.run({"images": images(WIDE)})["size"][0] == WIDE
    assert opened == [WIDE]
    for _ in range(2):
        assert session.run({"images": images(HIGH)})["size"][0] == HIGH
    assert opened == [WIDE, HIGH]
    step: Any = session.stepper({"images": images(HIGH)}, transfers=True, cuda_graph=False)
    assert step()["size"][0] == HIGH
    with pytest.raises(ModelError, match="images of 32x32 pixels") as caught:
        session.run({"images": images((32, 32))})
    assert caught.value.expected == "one of 32x64, 64x32"
