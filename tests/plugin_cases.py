"""What the tests of the ops that pool regions share: boxes of every kind, and one-node models.

regions = plugin_cases.regions(seed=0, images=12, rows=8, size=(64, 80))
model = plugin_cases.node_model(plugin, regions, maps, {"sampling_ratio": 2})
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from gpu_regions import Regions, inside, inverted, wide
from hypothesis import strategies as st

from deploykit import ops
from deploykit.backends import BuildOptions, tensorrt_rtx
from deploykit.ops.plugin import OPS
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.ops.plugin import Plugin

    Array = NDArray[Any]
    Pixels = tuple[float, float]

SPECIAL = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e9, -0.0, 1e-40], np.float32)
FORMS = {"runtime": ops.attach, "portable": ops.inline}
TAGS = {"plugin_namespace": "deploykit", "plugin_version": "1"}


# --- kinds of boxes: each returns float64[n, 4] for an image of `size` (H, W) pixels ------------


def small(rng: np.random.Generator, n: int, size: Pixels) -> Array:
    boxes = inside(rng, n, size)
    boxes[:, 2:] = boxes[:, :2] + rng.random((n, 2)) * 4
    return boxes


def outside(rng: np.random.Generator, n: int, size: Pixels) -> Array:
    away = rng.choice([-1.0, 1.0], (n, 2)) * (rng.random((n, 2)) + 0.4) * [size[1], size[0]] * 2
    return np.asarray(inside(rng, n, size) + np.tile(away, 2))


def at_the_edge(rng: np.random.Generator, n: int, size: Pixels) -> Array:
    return np.asarray(inside(rng, n, size) + rng.choice([-1.0, 1.0], (n, 1)) * max(size) / 2)


def in_quarters(rng: np.random.Generator, n: int, size: Pixels) -> Array:
    """Coordinates with which halves of a cell are exact."""
    return np.asarray(np.round(at_the_edge(rng, n, size) / 2) * 2)


def empty(rng: np.random.Generator, n: int, size: Pixels) -> Array:
    boxes = inside(rng, n, size)
    boxes[:, 2] = boxes[:, 0]
    return boxes


def strange(rng: np.random.Generator, n: int, size: Pixels) -> Array:
    """Some rows have a coordinate that is NaN or infinite."""
    unknown = np.array([np.nan, np.inf, -np.inf])
    boxes = inside(rng, n, size)
    return np.where(rng.random((n, 4)) < 0.15, rng.choice(unknown, (n, 4)), boxes)


KINDS: tuple[Callable[[np.random.Generator, int, Pixels], Array], ...] = (
    inside,
    small,
    wide,
    outside,
    at_the_edge,
    in_quarters,
    empty,
    inverted,
    strange,
)


def regions(seed: int, images: int, rows: int, size: Pixels) -> Regions:
    """Return boxes of every kind in turn, an image each; some rows are padding."""
    rng = np.random.default_rng(seed)
    boxes = [KINDS[i % len(KINDS)](rng, rows, size) for i in range(images)]
    count = rng.integers(0, rows + 2, images).astype(np.int32)
    return Regions(np.reshape(boxes, (images, rows, 4)).astype(np.float32), count)


@st.composite
def few_regions(draw: st.DrawFn, coordinates: st.SearchStrategy[float]) -> Regions:
    """Return up to 4 boxes of up to 2 images, of such coordinates."""
    images, rows = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    boxes = draw(st.lists(coordinates, min_size=images * rows * 4, max_size=images * rows * 4))
    count = draw(st.lists(st.integers(-1, 5), min_size=images, max_size=images))
    return Regions(
        np.reshape(boxes, (images, rows, 4)).astype(np.float32), np.array(count, np.int32)
    )


# --- models of one node ------------------------------------------------------------------------


def node_model(
    plugin: Plugin, sizes: Sequence[Sequence[int]], attributes: Mapping[str, Any], element: Any
) -> ir.Model:
    """Return a model of one node; sizes: of boxes, count and each level, after the batch."""
    of_maps = ir.TensorType(ir.DataType.from_numpy(np.dtype(element)))
    types = [ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT32)]
    types += [of_maps] * (len(sizes) - 2)
    inputs = [
        ir.Value(name=f"in{i}", type=kind, shape=ir.Shape(["batch", *size]))
        for i, (kind, size) in enumerate(zip(types, sizes, strict=True))
    ]
    side = {"output_height": 7, "output_width": 7} | dict(attributes)
    pooled = ir.Shape([None, *sizes[2][:1], side["output_height"], side["output_width"]])
    node = ir.node(
        plugin.name,
        inputs,
        {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()} | TAGS,
        domain="deploykit",
        outputs=[ir.Value(name="pooled", type=of_maps, shape=pooled)],
        name="pool",
    )
    graph = ir.Graph(
        inputs, node.outputs, nodes=[node], opset_imports={"": 19, "deploykit": 1}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def in_onnx(
    plugin: Plugin, form: str, found: Regions, maps: Sequence[Array], attributes: Mapping[str, Any]
) -> Array:
    """Return what ONNX Runtime gives for one of the bodies."""
    arrays = [found.boxes, found.count, *maps]
    model = node_model(plugin, [a.shape[1:] for a in arrays], attributes, maps[0].dtype)
    FORMS[form](model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    pooled: Array = session.run(None, {f"in{i}": array for i, array in enumerate(arrays)})[0]
    return pooled


# --- what is built -----------------------------------------------------------------------------


def engine_size(model: ir.Model, path: Path, sm: str) -> int:
    """Return the bytes of the engine that TensorRT-RTX builds of the portable body."""
    ops.inline(model)
    path.write_bytes(ir.to_proto(model).SerializeToString())
    engine = path.with_suffix(".engine")
    tensorrt_rtx.build(opened.read(path), engine, BuildOptions(sms=(sm,)))
    return engine.stat().st_size


def object_size(source: str, path: Path) -> int:
    """Return the bytes of the CUDA source compiled for a GPU. Skips where there is no nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    folder = OPS.folder()
    flags = ["-arch=sm_75", "-Werror=all-warnings", f"-I{folder}", "-c"]
    subprocess.run([nvcc, *flags, folder / source, "-o", path], check=True)
    return path.stat().st_size
