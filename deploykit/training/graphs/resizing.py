"""Resize, one axis after the other: which positions of the input make each of the output.

Source: the ONNX operator specification, Resize-19.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deploykit.training.graphs.node import axes_of, positive

if TYPE_CHECKING:
    from deploykit.training.graphs.node import Node, Ops


def _resize(
    node: Node,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    del roi  # is for crops alone, which are refused
    axes = [positive(axis, x.ndim) for axis in axes_of(node, None) or range(x.ndim)]
    if node.get("antialias", 0) or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("with antialias or a kept aspect ratio")
    if sizes is not None and sizes.numel():
        wanted = [int(size) for size in sizes.tolist()]
        factors = [size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
    else:
        assert scales is not None  # ONNX requires one of them
        factors = [float(scale) for scale in scales.tolist()]
        wanted = [int(x.shape[axis] * f) for axis, f in zip(axes, factors, strict=True)]
    for axis, factor, size in zip(axes, factors, wanted, strict=True):
        if factor != 1 or size != x.shape[axis]:
            x = _along(node, x, axis, factor, size)
    return x


def _along(node: Node, x: Tensor, axis: int, factor: float, size: int) -> Tensor:
    """Return x with one axis of another size."""
    n = x.shape[axis]
    places = _places(node, n, factor, size)
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        return _picked(x, axis, _nearest(node, places).clamp(0, n - 1))
    if mode == "linear":
        places = places.clamp(0, n - 1)
        low = places.floor()
        taps, shares = [low, low + 1], [1 - (places - low), places - low]
    else:
        taps, shares = _cubic(node, places, n)
    total: Tensor | None = None
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    for tap, share in zip(taps, shares, strict=True):
        part = _picked(x, axis, tap.long().clamp(0, n - 1)) * share.to(x).reshape(shape)
        total = part if total is None else total + part
    assert total is not None  # there are two taps at least
    return total


def _places(node: Node, n: int, factor: float, size: int) -> Tensor:
    """Return float64[size]: where each output position lies among the input's."""
    out = torch.arange(size, dtype=torch.float64)
    match node.get("coordinate_transformation_mode", "half_pixel"):
        case "half_pixel":
            return (out + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            return (out + 0.5) / factor - 0.5 if size > 1 else out * 0
        case "asymmetric":
            return out / factor
        case "align_corners":
            return out * (n - 1) / (size - 1) if size > 1 else out * 0
        case "half_pixel_symmetric":
            offset = n / 2 * (1 - size / (factor * n))
            return offset + (out + 0.5) / factor - 0.5
        case other:
            raise node.refuse(f"with coordinates by {other}")


def _nearest(node: Node, places: Tensor) -> Tensor:
    """Return int64 positions."""
    match node.get("nearest_mode", "round_prefer_floor"):
        case "round_prefer_floor":
            return (places - 0.5).ceil().long()
        case "round_prefer_ceil":
            return (places + 0.5).floor().long()
        case "floor":
            return places.floor().long()
        case _:
            return places.ceil().long()


def _cubic(node: Node, places: Tensor, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the positions of four taps, and their shares."""
    a = node.get("cubic_coeff_a", -0.75)
    low = places.floor()
    far = places - low
    near = [1 + far, far, 1 - far, 2 - far]
    shares = [
        ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        if i in (0, 3)
        else ((a + 2) * d - (a + 3)) * d * d + 1
        for i, d in enumerate(near)
    ]
    taps = [low - 1, low, low + 1, low + 2]
    if node.get("exclude_outside", 0):
        shares = [s * ((t >= 0) & (t < n)) for s, t in zip(shares, taps, strict=True)]
        total = sum(shares[1:], shares[0])
        shares = [share / total for share in shares]
    return taps, shares


def _picked(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Return the positions of an axis; whole multiples by repetition, whose gradient is fast."""
    n = x.shape[axis]
    times = len(index) // n
    if len(index) == n * times and torch.equal(index, torch.arange(n).repeat_interleave(times)):
        wide = x.unsqueeze(axis + 1)
        wide = wide.expand(*wide.shape[: axis + 1], times, *wide.shape[axis + 2 :])
        return wide.flatten(axis, axis + 1)
    return x.index_select(axis, index.to(x.device))


OPS: Ops = {"Resize": _resize}
