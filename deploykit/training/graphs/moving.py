"""Operators that move values: shapes, slices, joints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor

from deploykit.training.graphs.node import axes_of, numbers, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.training.graphs.node import Node, Ops


def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = numbers(shape) or []
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(tuple(wanted))  # an empty list is none to torch


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm") or list(reversed(range(x.ndim))))


def _concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, node.get("axis"))


def _slice(
    _: Node,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begins, stops = numbers(starts) or [], numbers(ends) or []
    along = numbers(axes) or list(range(len(begins)))
    strides = numbers(steps) or [1] * len(begins)
    for begin, stop, axis, stride in zip(begins, stops, along, strides, strict=True):
        part = range(*slice(begin, stop, stride).indices(x.shape[axis]))
        if stride > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(part.start, max(part.start, part.stop), stride)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(part), dtype=torch.int64, device=x.device))
    return x


def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis, parts = node.get("axis", 0), numbers(sizes)
    if parts is None:
        each = -(-x.shape[axis] // node.outputs)
        return torch.split(x, each, axis)
    return torch.split(x, parts, axis)


def _gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = positive(node.get("axis", 0), x.ndim)
    flat = index.reshape(-1).long().to(x.device)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = positive(node.get("axis", 0), x.ndim)
    index = torch.where(index < 0, index + x.shape[axis], index).long().to(x.device)
    return x.gather(axis, index)


def _expand(_: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = torch.broadcast_shapes(x.shape, tuple(numbers(shape) or ()))  # type: ignore[no-untyped-call]  # torch leaves it bare
    return x.broadcast_to(wanted)


def _tile(_: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(numbers(repeats) or [])


def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = axes_of(node, axes) or []
    for axis in sorted(positive(axis, x.ndim + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = axes_of(node, axes)
    return x.squeeze() if wanted is None else x.squeeze(tuple(wanted))


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = positive(node.get("axis", 1), x.ndim)
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)[node.get("start", 0) : node.get("end")]


def _size(_: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _filled(node: Node, shape: Tensor) -> Tensor:
    value = node.get("value", torch.zeros(1))
    return torch.full(tuple(numbers(shape) or ()), value.reshape(()).item(), dtype=value.dtype)


def _range(_: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _pad(
    node: Node,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    along = [positive(axis, x.ndim) for axis in numbers(axes) or range(x.ndim)]
    sides = numbers(pads) or []
    pairs = dict(
        zip(along, zip(sides[: len(along)], sides[len(along) :], strict=True), strict=True)
    )
    mode = node.get("mode", "constant")
    if mode == "constant":
        flat = [side for axis in reversed(range(x.ndim)) for side in pairs.get(axis, (0, 0))]
        return F.pad(x, flat, value=0.0 if value is None else value.item())
    for axis, (before, after) in pairs.items():
        if before or after:
            places = torch.arange(-before, x.shape[axis] + after)
            x = x.index_select(axis, _inside(mode, places, x.shape[axis]).to(x.device))
    return x


def _inside(mode: str, places: Tensor, n: int) -> Tensor:
    """Return the position of the data that each place beside it repeats."""
    if mode == "edge":
        return places.clamp(0, n - 1)
    if mode == "wrap":
        return places % n
    turn = max(1, 2 * (n - 1))
    places = places % turn
    return torch.minimum(places, turn - places)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        parts = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, node.get("blocksize")
    parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * b**2, h // b, w // b)


def _trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


def _identity(_: Node, x: Tensor, *rest: Tensor | None) -> Tensor:
    """Return x: Identity, and Dropout, which does nothing outside of its own training."""
    del rest
    return x


OPS: Ops = {
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "DepthToSpace": _depth_to_space,
    "Dropout": _identity,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Identity": _identity,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
