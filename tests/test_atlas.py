"""The levels of a pyramid as one map, read in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from deploykit.ops.atlas import Atlas, Axis
from deploykit.ops.tape import Tape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]


def read(maps: Sequence[Array], level: int, x: Sequence[float], y: Sequence[float]) -> Array:
    """Return T[C, Y, X]: what is read in one level at the cells `x` and `y`."""
    op = Tape()
    features = [
        ir.Value(name=f"level{i}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(m.shape))
        for i, m in enumerate(maps)
    ]
    atlas = Atlas(op, features, [m.shape[2:] for m in maps])
    found = []
    for places, limits, starts, cells in (
        (x, atlas.widths, [0] * len(maps), atlas.width),
        (y, atlas.heights, atlas.starts, atlas.height),
    ):
        start, side, limit, offset = (
            op.Constant(value=ir.tensor(np.full((1, 1, 1), number, np.float32)))
            for number in (0.0, 1.0, limits[level], starts[level])
        )
        axis = Axis(start, side, limit, offset, cells)
        wanted = op.Constant(value=ir.tensor(np.ones((1, 1, 1), bool)))
        found.append(axis.places(op, np.asarray(places, np.float32)[None, None], wanted))
    across, down = op.Unsqueeze(found[0], [2]), op.Unsqueeze(found[1], [3])
    result = atlas.read(op, across, down, (len(y), len(x)))
    result.type, result.shape = features[0].type, ir.Shape([1, maps[0].shape[1], None, None])
    graph = ir.Graph(features, [result], nodes=op.nodes, opset_imports={"": 19})
    data = ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    values: Array = session.run(None, {f"level{i}": m for i, m in enumerate(maps)})[0]
    first: Array = values[0]
    return first


def pyramid(*sizes: tuple[int, int]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, *size)).astype(np.float32) for size in sizes]


@pytest.mark.parametrize("sizes", [[(8, 10), (4, 5), (2, 3), (1, 1)], [(3, 7)], [(1, 1)], [(1, 6)]])
def test_every_cell_of_every_level_is_read_as_it_is(sizes: list[tuple[int, int]]) -> None:
    maps = pyramid(*sizes)
    for level, (height, width) in enumerate(sizes):
        found = read(maps, level, range(width), range(height))
        np.testing.assert_allclose(found, maps[level][0], atol=2e-5)


def test_between_cells_the_levels_do_not_mix() -> None:
    maps = pyramid((4, 6), (2, 3))
    found = read(maps, 0, [1.5], [3.0, 3.75])  # below the last row lies the other level
    expected = maps[0][0, :, 3, 1:3].mean(1)
    np.testing.assert_allclose(found[:, 0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(found[:, 1, 0], expected, atol=1e-5)
    found = read(maps, 1, [0.5], [-0.75, 0.0])  # and above the first row the first one
    expected = maps[1][0, :, 0, :2].mean(1)
    np.testing.assert_allclose(found[:, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("place", [-1.5, 6.5, np.inf, -np.inf, np.nan])
def test_more_than_a_cell_outside_there_is_nothing(place: float) -> None:
    assert not read(pyramid((6, 6), (3, 3)), 0, [place], [2.0]).any()
