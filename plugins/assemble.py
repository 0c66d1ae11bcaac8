"""Instance-sensitive score maps put together: a window's pixels, each from the map of its part.

Source: Dai et al., Instance-sensitive Fully Convolutional Networks (arXiv 1603.08678, section 3.1).
The paper leaves open which part a pixel is of where the parts do not divide the window: pixel u of
m is of part floor(u * k / m) of k.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.ops.plugin import Attribute, Call, Input, Launcher, Output, Plugin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch import Tensor

    from deploykit.ops.tape import Tape

INT32 = 6
"""ONNX's number of the type."""


def offsets(attributes: Mapping[str, Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return for each of the m pixels along a side its part, and how far it is from the middle."""
    bins, window = attributes["bins"], attributes["window"]
    place = np.arange(window, dtype=np.int32)
    return place * np.int32(bins) // np.int32(window), place - np.int32(window // 2)


# --- the meaning, in torch -------------------------------------------------------------------


def reference(
    maps: Tensor,
    positions: Tensor,
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> Tensor:
    """Return T[B, N, window, window]: the windows around cells of the maps, zero beside the maps.

    maps: T[B, bins * bins, H, W], the first row of parts first. positions: int32[B, N], y * W + x
    of the middle of each window; one that is no cell of the maps gives zeros.
    """
    import torch  # noqa: PLC0415 - quantize, bench and inspect read this file without torch

    height, width = maps.shape[2:]
    part, away = (torch.from_numpy(each).long() for each in offsets(attributes))
    middle = positions.long()[:, :, None, None]
    row = torch.div(middle, width, rounding_mode="floor") + away[:, None]
    column = middle % width + away
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside &= (middle >= 0) & (middle < height * width)
    channel = part[:, None] * attributes["bins"] + part
    cell = (channel * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1)
    found = maps.flatten(1).gather(1, cell.flatten(1)).reshape(cell.shape)
    return torch.where(inside, found, 0.0).to(maps.dtype)


def fake(
    maps: Tensor,
    positions: Tensor,
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> Tensor:
    """Return a tensor of the right shape and type."""
    return maps.new_empty(*positions.shape, attributes["window"], attributes["window"])


# --- standard ops, in every runtime --------------------------------------------------------------


def body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the op as one Gather at places that are sums of constants and the positions."""
    maps, positions = call.inputs
    channels, height, width = call.dims(0)
    part, away = offsets(call.attributes)
    middle = op.Unsqueeze(positions, [2, 3])
    known = op.And(
        op.GreaterOrEqual(middle, np.int32(0)), op.Less(middle, np.int32(height * width))
    )
    middle = op.Where(known, middle, np.int32(0))
    first = op.Div(middle, np.int32(width))
    row = op.Add(first, away[:, None])
    column = op.Add(op.Sub(middle, op.Mul(first, np.int32(width))), away)
    inside = op.And(known, op.And(_within(op, row, height), _within(op, column, width)))
    channel = (part[:, None] * np.int32(call.attributes["bins"]) + part) * np.int32(height)
    cell = op.Add(op.Mul(op.Add(row, channel), np.int32(width)), column)
    images = op.Squeeze(op.Shape(maps, start=0, end=1))
    image = op.Cast(op.Mul(op.Range(0, images, 1), channels * height * width), to=INT32)
    place = op.Where(inside, op.Add(cell, op.Unsqueeze(image, [1, 2, 3])), np.int32(0))
    found = op.Gather(op.Reshape(maps, [-1]), place)
    return [op.Where(inside, found, op.CastLike(0.0, maps))]


def _within(op: Tape, place: ir.Value, size: int) -> ir.Value:
    found: ir.Value = op.And(op.GreaterOrEqual(place, np.int32(0)), op.Less(place, np.int32(size)))
    return found


# --- the kernel and the plugin -------------------------------------------------------------------


class Params(ctypes.Structure):
    """`AssembleParams` of assemble.cuh."""

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("batch", "count", "height", "width", "bins", "window")
    )


def params(values: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> Params:
    """Return the launcher's parameters."""
    (batch, _, height, width), (_, count) = shapes
    return Params(batch, count, height, width, values["bins"], values["window"])


def check(attributes: Mapping[str, Any], sizes: Sequence[tuple[int, ...]]) -> str:
    """Return what is wrong between attributes and inputs, "" where nothing is."""
    maps, positions = (f"[{', '.join(map(str, ('B', *size)))}]" for size in sizes)
    channels = attributes["bins"] ** 2
    if len(sizes[0]) != 3 or sizes[0][0] != channels or 0 in sizes[0]:
        return f"maps are {maps}, expected [B, {channels}, H, W]"
    if len(sizes[1]) != 1 or sizes[1][0] == 0:
        return f"positions are {positions}, expected [B, N], N > 0"
    return ""


plugin = Plugin(
    name="DKAssemble",
    version="1",
    inputs=(Input("maps"), Input("positions", "int32")),
    outputs=(Output("windows", "maps"),),
    attributes=(
        Attribute("bins", 5, "1 to 16", lambda v: 1 <= v <= 16),
        Attribute("window", 21, "1 to 64", lambda v: 1 <= v <= 64),
    ),
    reference=reference,
    fake=fake,
    runtime_body=body,
    portable_body=body,
    source="assemble.cu",
    launcher=Launcher(params, ((((0, 0),), ((1, 1),), ("window",), ("window",)),)),
    why_float="moves numbers only: whoever reads them rounds them",
    check=check,
)
