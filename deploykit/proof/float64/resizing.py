"""ONNX's Resize in numpy: nearest and linear, one axis after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Doubles: TypeAlias = NDArray[np.float64]
    Attributes: TypeAlias = Mapping[str, Any]

_PLACES: Mapping[str, Callable[[NDArray[Any], Any, int, int], NDArray[Any]]] = {
    "half_pixel": lambda i, scale, *_: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, _, n: (i + 0.5) / scale - 0.5 if n > 1 else 0 * i,
    "asymmetric": lambda i, scale, *_: i / scale,
    "align_corners": lambda i, _, size, n: i * ((size - 1) / max(n - 1, 1)),
}
"""Coordinate mode -> (output places, scale, input size, output size) -> input places."""
_NEAREST: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "round_prefer_floor": lambda place: np.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: np.floor(place + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(
    attributes: Attributes,
    x: Doubles,
    _: NDArray[Any] | None = None,
    scales: NDArray[Any] | None = None,
    sizes: NDArray[Any] | None = None,
) -> Doubles:
    """Return x at the size asked for. Raises: NotImplementedError for cubic and rarer modes."""
    mode, places = (
        _text(attributes, name, default)
        for name, default in (("mode", "nearest"), ("coordinate_transformation_mode", "half_pixel"))
    )
    policy = _text(attributes, "keep_aspect_ratio_policy", "stretch")
    odd = attributes.get("axes") or attributes.get("antialias") or policy != "stretch"
    if odd or mode not in ("nearest", "linear") or places not in _PLACES:
        raise NotImplementedError
    for axis, (n, scale) in enumerate(_targets(x.shape, scales, sizes)):
        if n != x.shape[axis]:
            step = _nearest if mode == "nearest" else _linear
            x = step(attributes, x, axis, n, scale)
    return x


def _targets(
    shape: Sequence[int], scales: NDArray[Any] | None, sizes: NDArray[Any] | None
) -> list[tuple[int, float]]:
    """Return each axis' output size and scale."""
    if sizes is not None and sizes.size:
        return [(int(n), n / size) for n, size in zip(sizes.tolist(), shape, strict=True)]
    assert scales is not None  # ONNX asks for one of the two
    given = zip(scales.tolist(), shape, strict=True)
    return [(int(np.floor(scale * size)), scale) for scale, size in given]


def _nearest(attributes: Attributes, x: Doubles, axis: int, n: int, scale: float) -> Doubles:
    """Return the nearest values, their places rounded to float32 as the runtimes compute them."""
    place = _at(attributes, x.shape[axis], n, np.float32(scale))
    chosen = _NEAREST[_text(attributes, "nearest_mode", "round_prefer_floor")](place)
    index = np.clip(chosen, 0, x.shape[axis] - 1).astype(np.int64)
    taken: Doubles = x.take(index, axis)
    return taken


def _linear(attributes: Attributes, x: Doubles, axis: int, n: int, scale: float) -> Doubles:
    """Return the mean of the two nearest values, weighted by their nearness."""
    size = x.shape[axis]
    place = np.clip(_at(attributes, size, n, np.float64(scale)), 0, size - 1)
    low = np.floor(place).astype(np.int64)
    part = (place - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    near, far = x.take(low, axis), x.take(np.minimum(low + 1, size - 1), axis)
    mixed: Doubles = near + (far - near) * part
    return mixed


def _at(
    attributes: Attributes, size: int, n: int, scale: np.floating[Any]
) -> NDArray[np.floating[Any]]:
    mode = _text(attributes, "coordinate_transformation_mode", "half_pixel")
    return _PLACES[mode](np.arange(n, dtype=scale.dtype), scale, size, n)


def _text(attributes: Attributes, name: str, default: str) -> str:
    value = attributes.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)
