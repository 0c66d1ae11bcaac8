"""ONNX ops in numpy, in the precision of their inputs: those that need one written for float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from deploykit.proof.float64.resizing import resize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Doubles: TypeAlias = NDArray[np.float64]
    Attributes: TypeAlias = Mapping[str, Any]
    Kernel: TypeAlias = Callable[..., NDArray[Any]]
    """(attributes, *inputs) -> the op's only output. Raises: NotImplementedError for a use of the
    op that it does not know."""

_TINY = 1e-9
"""What ONNX adds to the deviation in MeanVarianceNormalization."""
_COLUMNS = 1 << 20
"""Numbers in the matrix that a part of a convolution is written out as: 8 MB."""


def conv(attributes: Attributes, x: Doubles, w: Doubles, b: Doubles | None = None) -> Doubles:
    """Return the convolution of x [N, C, *size] with w [M, C / groups, *kernel]."""
    seen = _windows(attributes, x, w.shape[2:])
    groups, sizes = attributes.get("group", 1), seen.shape[2 : w.ndim]
    result = np.zeros((len(x), len(w), *sizes))
    if w.shape[1] == 1 and groups > 1:
        _depthwise(seen, w, result)
    else:
        for image in range(len(x)):
            for part, weights, out in zip(
                np.split(seen[image], groups),
                np.split(w, groups),
                np.split(result[image], groups),
                strict=True,
            ):
                _grouped(part, weights.reshape(len(weights), -1), out)
    return result if b is None else result + b.reshape(-1, *[1] * len(sizes))


def _grouped(seen: Doubles, weights: Doubles, out: Doubles) -> None:
    """Write weights [M, K] times the windows [C, *sizes, *kernel], K = C * kernel, to `out`."""
    spatial = out.ndim - 1
    order = (0, *range(1 + spatial, seen.ndim), *range(1, 1 + spatial))
    rows = max(1, _COLUMNS // (weights.shape[1] * math.prod(out.shape[2:])))
    for start in range(0, out.shape[1], rows):
        columns = seen[:, start : start + rows].transpose(order).reshape(weights.shape[1], -1)
        target = out[:, start : start + rows]
        target[...] = (weights @ columns).reshape(target.shape)


def _depthwise(seen: Doubles, w: Doubles, out: Doubles) -> None:
    """Write each channel's own convolution to `out`: windows [N, C, *sizes, *kernel]."""
    spatial = w.ndim - 2
    if out.shape[1] != seen.shape[1]:
        seen = seen.repeat(out.shape[1] // seen.shape[1], axis=1)
    for tap in np.ndindex(w.shape[2:]):
        weights = w[(slice(None), 0, *tap)].reshape(-1, *[1] * spatial)
        out += seen[(..., *tap)] * weights


def conv_transpose(
    attributes: Attributes, x: Doubles, w: Doubles, b: Doubles | None = None
) -> Doubles:
    """Return the transposed convolution of x [N, C, *size] with w [C, M / groups, *kernel]."""
    if _padding(attributes) not in ("NOTSET", "VALID") or attributes.get("output_shape"):
        raise NotImplementedError
    spatial, groups = w.ndim - 2, attributes.get("group", 1)
    ones, zeros = [1] * spatial, [0] * spatial
    steps, gaps = attributes.get("strides", ones), attributes.get("dilations", ones)
    more, pads = attributes.get("output_padding", zeros), attributes.get("pads", zeros * 2)
    full = [
        step * (size - 1) + gap * (kernel - 1) + 1 + extra
        for size, kernel, step, gap, extra in zip(
            x.shape[2:], w.shape[2:], steps, gaps, more, strict=True
        )
    ]
    result = np.zeros((len(x), w.shape[1] * groups, *full))
    columns = x.reshape(len(x), groups, x.shape[1] // groups, -1)
    weights = w.reshape(groups, -1, *w.shape[1:])
    for tap in np.ndindex(w.shape[2:]):
        place = tuple(
            slice(t * gap, t * gap + step * (size - 1) + 1, step)
            for t, gap, step, size in zip(tap, gaps, steps, x.shape[2:], strict=True)
        )
        target: Doubles = result[(slice(None), slice(None), *place)]
        target += (weights[(..., *tap)].swapaxes(1, 2) @ columns).reshape(target.shape)
    ends = zip(pads[:spatial], pads[spatial:], full, strict=True)
    kept = (slice(before, size - after) for before, after, size in ends)
    result = result[(slice(None), slice(None), *kept)]
    return result if b is None else result + b.reshape(-1, *[1] * spatial)


def average_pool(attributes: Attributes, x: Doubles) -> Doubles:
    """Return the mean of each window, over what lies in x unless the padding counts."""
    if attributes.get("ceil_mode"):
        raise NotImplementedError
    kernel = attributes["kernel_shape"]
    axes = tuple(range(-len(kernel), 0))
    there = np.ones((1, 1, *x.shape[2:]))
    counted = 1.0 if attributes.get("count_include_pad") else 0.0
    total: Doubles = _windows(attributes, x, kernel).sum(axes)
    count: Doubles = _windows(attributes, there, kernel, counted).sum(axes)
    return total / count


def global_average_pool(_: Attributes, x: Doubles) -> Doubles:
    """Return the mean of each channel."""
    mean: Doubles = x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)
    return mean


def global_lp_pool(attributes: Attributes, x: Doubles) -> Doubles:
    """Return the norm of each channel."""
    p = attributes.get("p", 2)
    norm: Doubles = (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p)
    return norm


def lrn(attributes: Attributes, x: Doubles) -> Doubles:
    """Return x over a power of the mean square of the channels around each."""
    size = attributes["size"]
    before = (size - 1) // 2
    padded = np.pad(x**2, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
    total = sliding_window_view(padded, size, axis=1).sum(-1)
    alpha, beta = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75)
    found: Doubles = x / (attributes.get("bias", 1.0) + alpha / size * total) ** beta
    return found


def mean_variance(attributes: Attributes, x: Doubles) -> Doubles:
    """Return x less its mean over its deviation, along the axes that are given."""
    axes = tuple(attributes.get("axes", (0, 2, 3)))
    off = x - x.mean(axes, keepdims=True)
    found: Doubles = off / (np.sqrt((off**2).mean(axes, keepdims=True)) + _TINY)
    return found


def hard_sigmoid(attributes: Attributes, x: Doubles) -> Doubles:
    """Return x * alpha + beta within 0 and 1; an alpha of 1/6 is that, not its float32."""
    alpha = attributes.get("alpha", 0.2)
    alpha = 1 / 6 if np.float32(alpha) == np.float32(1 / 6) else alpha
    found: Doubles = np.clip(x * alpha + attributes.get("beta", 0.5), 0, 1)
    return found


def hard_swish(_: Attributes, x: Doubles) -> Doubles:
    """Return x times its hard sigmoid."""
    return x * hard_sigmoid({"alpha": 1 / 6}, x)


def selu(_: Attributes, x: Doubles) -> Doubles:
    """Return SELU with its numbers as they are meant (Source: arXiv 1706.02515), not in float32."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _windows(
    attributes: Attributes, x: Doubles, kernel: Sequence[int], padding: float = 0.0
) -> Doubles:
    """Return what a sliding kernel sees of x [N, C, *size]: [N, C, *sizes, *kernel], a view."""
    ones = [1] * len(kernel)
    steps, gaps = attributes.get("strides", ones), attributes.get("dilations", ones)
    spans = [gap * (size - 1) + 1 for size, gap in zip(kernel, gaps, strict=True)]
    pads = _pads(attributes, x.shape[2:], spans, steps)
    if any(map(any, pads)):
        x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=padding)
    seen = sliding_window_view(x, spans, tuple(range(2, x.ndim)))
    strides = (slice(None, None, step) for step in (*steps, *gaps))
    view: Doubles = seen[(slice(None), slice(None), *strides)]
    return view


def _pads(
    attributes: Attributes, sizes: Sequence[int], spans: Sequence[int], steps: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the padding (before, after) of each axis."""
    mode = _padding(attributes)
    if mode == "NOTSET":
        given = attributes.get("pads", [0] * 2 * len(spans))
        return list(zip(given[: len(spans)], given[len(spans) :], strict=True))
    if mode == "VALID":
        return [(0, 0)] * len(spans)
    found = []
    for size, span, step in zip(sizes, spans, steps, strict=True):
        total = max(0, (-(-size // step) - 1) * step + span - size)
        less, more = total // 2, total - total // 2
        found.append((more, less) if mode == "SAME_LOWER" else (less, more))
    return found


def _padding(attributes: Attributes) -> str:
    mode = attributes.get("auto_pad", b"NOTSET")
    return mode.decode() if isinstance(mode, bytes) else str(mode)


def non_max_suppression(
    attributes: Attributes, boxes: Doubles, scores: Doubles, *limits: NDArray[Any] | None
) -> NDArray[np.int64]:
    """Return int64[n, 3]: image, class and box of what greedy suppression keeps, class by class.

    limits: the most boxes of a class, the largest IoU, the score that kept ones are above.
    """
    if attributes.get("center_point_box"):
        raise NotImplementedError
    most, iou, least = (
        default if i >= len(limits) or (given := limits[i]) is None else float(given.item())
        for i, default in enumerate((0.0, 0.0, -math.inf))
    )
    found = [
        (image, kind, row)
        for image, kind in np.ndindex(scores.shape[:2])
        for row in _kept(boxes[image], scores[image, kind], most, (iou, least))
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def _kept(
    boxes: Doubles, scores: Doubles, most: float, thresholds: tuple[float, float]
) -> list[int]:
    iou, least = thresholds
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    areas = (high - low).prod(1)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > least]
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        shared = np.minimum(high[best], high[order]) - np.maximum(low[best], low[order])
        inter = np.maximum(shared, 0).prod(1)
        union = areas[best] + areas[order] - inter
        real = (areas[best] > 0) & (areas[order] > 0)
        over = np.divide(inter, union, out=np.zeros_like(inter), where=real)
        order = order[over <= iou]
    return kept


KERNELS: Mapping[str, Kernel] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LRN": lrn,
    "MeanVarianceNormalization": mean_variance,
    "NonMaxSuppression": non_max_suppression,
    "Resize": resize,
    "Selu": selu,
}
"""Op -> its kernel."""
