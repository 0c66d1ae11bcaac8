"""Operators that look at a window: convolutions and pools.

Source: the ONNX operator specification; a window that would begin behind the data and its first
padding is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.training.graphs.node import Node, Ops

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BACK = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True)
class _Window:
    """How a window moves over the axes behind the channels."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begin: Sequence[int]
    end: Sequence[int]

    @property
    def even(self) -> bool:
        """Return whether both ends are padded alike."""
        return list(self.begin) == list(self.end)


def _window(node: Node, kernel: Sequence[int], sizes: Sequence[int]) -> _Window:
    rank = len(kernel)
    strides = node.get("strides") or [1] * rank
    dilations = node.get("dilations") or [1] * rank
    pads = node.get("pads") or [0] * (2 * rank)
    mode = node.get("auto_pad", "NOTSET")
    begin, end = pads[:rank], pads[rank:]
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        reach = zip(sizes, kernel, strides, dilations, strict=True)
        totals = [max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n) for n, k, s, d in reach]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        begin, end = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode == "VALID":
        begin = end = [0] * rank
    return _Window(kernel, strides, dilations, begin, end)


def _padded(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Return x with its last axes longer; a negative number cuts."""
    pairs = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return F.pad(x, pairs, value=value) if any(pairs) else x


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = _window(node, weight.shape[2:], x.shape[2:])
    padding = list(window.begin)
    if not window.even:
        x, padding = _padded(x, window.begin, window.end), [0] * len(padding)
    group = node.get("group", 1)
    run = _CONV[len(padding)]
    return run(x, weight, bias, list(window.strides), padding, list(window.dilations), group)


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel, sizes = weight.shape[2:], x.shape[2:]
    window = _window(node, kernel, sizes)
    more = node.get("output_padding") or [0] * len(kernel)
    reach = zip(sizes, kernel, window.strides, window.dilations, more, strict=True)
    whole = [(n - 1) * s + (k - 1) * d + 1 + extra for n, k, s, d, extra in reach]
    begin, end = list(window.begin), list(window.end)
    wanted = node.get("output_shape")
    if wanted is None and str(node.get("auto_pad", "NOTSET")).startswith("SAME"):
        wanted = [n * s for n, s in zip(sizes, window.strides, strict=True)]
    if wanted is not None:
        totals = [has - want for has, want in zip(whole, wanted[-len(whole) :], strict=True)]
        less, rest = [t // 2 for t in totals], [t - t // 2 for t in totals]
        upper = node.get("auto_pad", "NOTSET") == "SAME_UPPER"
        begin, end = (less, rest) if upper else (rest, less)
    run, group = _BACK[len(kernel)], node.get("group", 1)
    strides, dilations = list(window.strides), list(window.dilations)
    if begin == end and min(begin) >= 0:
        return run(x, weight, bias, strides, begin, more, group, dilations)
    found = run(x, weight, bias, strides, [0] * len(kernel), more, group, dilations)
    return _padded(found, [-cut for cut in begin], [-cut for cut in end])


def _reach(node: Node, window: _Window, sizes: Sequence[int]) -> list[int]:
    """Return how far behind the data its windows reach; a negative number: not to its end."""
    found = []
    for i, n in enumerate(sizes):
        span = (window.kernel[i] - 1) * window.dilations[i] + 1
        stride, before = window.strides[i], window.begin[i]
        steps = (n + before + window.end[i] - span) / stride
        count = (math.ceil if node.get("ceil_mode", 0) else math.floor)(steps) + 1
        if node.get("ceil_mode", 0) and (count - 1) * stride >= n + before:
            count -= 1
        found.append((count - 1) * stride + span - n - before)
    return found


def _max_pool(node: Node, x: Tensor) -> Tensor:
    if node.outputs > 1:
        raise node.refuse("with indices")
    window = _window(node, node.get("kernel_shape"), x.shape[2:])
    padding, kernel = list(window.begin), list(window.kernel)
    plain = window.even and not node.get("ceil_mode", 0)
    if not plain or any(2 * pad > side for pad, side in zip(padding, kernel, strict=True)):
        x = _padded(x, padding, _reach(node, window, x.shape[2:]), -math.inf)
        padding = [0] * len(padding)
    return _MAX[len(kernel)](x, kernel, list(window.strides), padding, list(window.dilations))


def _average_pool(node: Node, x: Tensor) -> Tensor:
    window = _window(node, node.get("kernel_shape"), x.shape[2:])
    end = _reach(node, window, x.shape[2:])
    run = _CONV[len(window.kernel)]
    one = torch.ones((1, 1, *window.kernel), dtype=x.dtype, device=x.device)

    def sums(data: Tensor) -> Tensor:
        found = run(
            data.reshape(-1, 1, *data.shape[2:]),
            one,
            None,
            list(window.strides),
            0,
            list(window.dilations),
        )
        return found.reshape(*data.shape[:2], *found.shape[2:])

    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    rest = end
    if node.get("count_include_pad", 0):
        inside = _padded(inside, window.begin, window.end, 1.0)
        rest = [far - pad for far, pad in zip(end, window.end, strict=True)]
        counts = sums(_padded(inside, [0] * len(rest), rest))
    else:
        counts = sums(_padded(inside, window.begin, end))
    return sums(_padded(x, window.begin, end)) / counts


def _global(node: Node, x: Tensor) -> Tensor:
    axes = tuple(range(2, x.ndim))
    if node.op == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    return x.mean(axes, keepdim=True)


OPS: Ops = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global,
    "GlobalMaxPool": _global,
    "MaxPool": _max_pool,
}
