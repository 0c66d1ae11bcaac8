"""Which way weights are rounded, where that was learnt: kept in tables, and put into levels.

A weight goes up, down, or to the nearest level. Up and down are the levels above and below it by
whatever steps it is stored with: those in FP16 are a little wider than those in FP32.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.errors import InputError
from deploykit.graph.editing import WAYS, constant
from deploykit.precision.quantization.arithmetic import along, quantized

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    Ways: TypeAlias = NDArray[np.int8]
    """int8 of the shape of the weights: 1 up, -1 down, 0 to the nearest level."""
    Written: TypeAlias = tuple[str, str]
    """Base64 of one bit per weight, in order: which go up, and which go down."""


def written(ways: Ways) -> Written:
    """Return ways as a table keeps them."""
    up, down = (np.packbits(ways.reshape(-1) == way).tobytes() for way in (1, -1))
    return base64.b64encode(up).decode(), base64.b64encode(down).decode()


def remember(graph: ir.Graph, given: Mapping[str, Written]) -> None:
    """Let weights, by the name of the tensor, know their ways.

    Raises: InputError where these do not fit the model.
    """
    for name, texts in given.items():
        value = graph.initializers.get(name)
        array = constant(value)
        ways = None if array is None else _ways(texts, array.shape)
        if value is None or ways is None:
            raise InputError(
                f"ways to round the weights {name!r} do not fit the model",
                expected="two bits for each weight, of which at most one is set",
                fix="use the table with the file that it was made for",
            )
        value.meta[WAYS] = ways


def _ways(texts: Written, shape: tuple[int, ...]) -> Ways | None:
    """Return the ways of weights of such a shape; None where there are not as many."""
    size = int(np.prod(shape))
    bits = []
    for text in texts:
        try:
            held = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        except (binascii.Error, ValueError):
            return None
        if held.size != -(-size // 8):
            return None
        bits.append(np.unpackbits(held, count=size).astype(np.int8))
    if len(bits) != 2 or (bits[0] & bits[1]).any():
        return None
    found: Ways = (bits[0] - bits[1]).reshape(shape)
    return found


def levels(
    weights: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None, ways: Ways | None
) -> NDArray[np.int8]:
    """Return the levels of weights, to the nearest one where nothing is said. -127 to 127."""
    nearest = quantized(weights, scales, axis)
    if ways is None:
        return nearest
    exact = weights / along(scales, weights.ndim, axis)
    found = np.where(ways > 0, np.ceil(exact), np.where(ways < 0, np.floor(exact), nearest))
    kept: NDArray[np.int8] = found.clip(-127, 127).astype(np.int8)
    return kept


def ways_of(value: ir.Value) -> Ways | None:
    """Return what a weight knows of its ways."""
    found: Ways | None = value.meta.get(WAYS)
    return found
