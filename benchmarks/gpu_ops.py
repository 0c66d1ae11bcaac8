"""The launchers of plugins/*.cu on PyTorch's tensors; inputs, and the bytes that ops must move.

`plugins_gpu.py` compiles the library, calls and times it.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import ops
from deploykit.ops import launching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.ops.plugin import Plugin, Shapes, Size

    Make: TypeAlias = Callable[[tuple[int, ...], Any], Any]
    """(shape, torch's type) -> a tensor."""
    Arrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]

Tensor: TypeAlias = Any
"""A torch tensor; torch is imported late, for `--help` and for the message where it is absent."""

STRIDES = (4, 8, 16, 32)
CANONICAL_SIZE, CANONICAL_LEVEL, FIRST_LEVEL = 224.0, 4, 2
BINS, SAMPLES = 7, 2
ALIGNMENT: dict[str, Any] = {
    "output_height": BINS,
    "output_width": BINS,
    "sampling_ratio": SAMPLES,
    "canonical_size": CANONICAL_SIZE,
    "canonical_level": CANONICAL_LEVEL,
    "first_level": FIRST_LEVEL,
    "level_epsilon": 1e-6,
}
"""torchvision's settings, as far as they are not 0."""

# --- inputs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Boxes on an image, and its feature pyramid."""

    boxes: NDArray[np.float32]
    """float32[R, 4], xyxy in pixels."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each level."""


def scene(count: int, image: tuple[int, int], seed: int = 0) -> Scene:
    """Return proposals as a detector makes them: sides of 16 to 600 pixels, evenly by logarithm."""
    rng = np.random.default_rng(seed)
    height, width = image
    sides = np.exp(rng.uniform(np.log(16), np.log(600), (count, 1))) * rng.uniform(
        0.7, 1.4, (count, 2)
    )
    sides = np.minimum(sides, (width, height))
    corners = rng.random((count, 2)) * ((width, height) - sides)
    boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
    return Scene(boxes, tuple((height // stride, width // stride) for stride in STRIDES))


def objects(count: int, classes: int, seed: int = 0) -> Arrays:
    """Return boxes float32[N, 4], distinct scores float32[N] and classes int32[N], overlapping."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1000, (max(1, count // 20), 2))
    corners = centres[rng.integers(len(centres), size=count)] + rng.normal(0, 12, (count, 2))
    sides = rng.uniform(20, 200, (count, 2))
    boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
    scores = ((rng.permutation(count) + 1) / (count + 1)).astype(np.float32)
    return boxes, scores, rng.integers(0, classes, count, np.int32)


# --- what must be moved -----------------------------------------------------------------------


def levels(boxes: NDArray[np.float32], last: int, *, rounded: bool = False) -> NDArray[np.int64]:
    """Return the pyramid level of each box, 0 to `last`; rounded: to the nearest, not down."""
    area = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(1)
    power = CANONICAL_LEVEL + np.log2(np.sqrt(area) / CANONICAL_SIZE)
    found = np.round(power) if rounded else np.floor(power + 1e-6)
    chosen: NDArray[np.int64] = np.clip(found - FIRST_LEVEL, 0, last).astype(np.int64)
    return chosen


def touched(boxes: NDArray[Any], size: tuple[int, int]) -> int:
    """Return how many cells of a map lie in boxes of cells [n, 4], each once; ends are inside."""
    cells = np.zeros(size, bool)
    for x1, y1, x2, y2 in boxes:
        cells[int(y1) : int(np.ceil(y2)) + 1, int(x1) : int(np.ceil(x2)) + 1] = True
    return int(cells.sum())


def align_bytes(given: Scene, channels: int, width: int) -> int:
    """Return the bytes that RoIAlign must move at least: each read and written once.

    Boxes and outputs, and the feature elements of `width` bytes inside the boxes, each once
    however many boxes share it.
    """
    chosen = levels(given.boxes, len(given.sizes) - 1)
    cells = sum(
        touched(given.boxes[chosen == level] / stride, size)
        for level, (size, stride) in enumerate(zip(given.sizes, STRIDES, strict=False))
    )
    return channels * width * (cells + len(given.boxes) * BINS * BINS) + given.boxes.nbytes


def crop_bytes(given: Scene, image: tuple[int, int], bins: int, channels: int, width: int) -> int:
    """Return the bytes that crops of bins x bins must move at least, counted as RoIAlign's."""
    chosen = levels(given.boxes, len(given.sizes) - 1, rounded=True)
    shares = given.boxes / np.array([*image[::-1], *image[::-1]])
    cells = sum(
        touched(shares[chosen == level] * np.tile([size[1] - 1, size[0] - 1], 2), size)
        for level, size in enumerate(given.sizes)
    )
    return channels * width * (cells + len(given.boxes) * bins * bins) + given.boxes.nbytes


def pool_bytes(boxes: NDArray[Any], size: tuple[int, int], channels: int, width: int) -> int:
    """Return the bytes that RoIPool must move at least, counted as RoIAlign's.

    boxes: in cells of the map.
    """
    cells = touched(np.round(boxes), size)
    return channels * width * (cells + len(boxes) * BINS * BINS) + 16 * len(boxes)


def assemble_bytes(
    positions: NDArray[Any], size: tuple[int, int], window: int, width: int, bins: int
) -> int:
    """Return the bytes that assembling must move at least: what windows share is read once."""
    place = np.arange(window)
    part, away = place * bins // window, place - window // 2
    row = (positions // size[1])[:, None, None] + away[:, None]
    column = (positions % size[1])[:, None, None] + away
    inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    cell = ((part[:, None] * bins + part) * size[0] + row) * size[1] + column
    read = len(np.unique(cell[inside]))
    return width * (read + len(positions) * window**2) + 4 * len(positions)


def nms_bytes(count: int, kept: int) -> int:
    """Return the bytes that NMS with a bit mask must move at least: each read and written once.

    N boxes with score and class, the upper triangle of the N x N bits written and read, and the
    outputs: box, score, class and index. The work is N^2 / 2 overlaps, so a small share of the
    bandwidth is no fault of the kernels.
    """
    return 24 * count + 2 * (count * count // 2 // 8) + 28 * kept


# --- the library ------------------------------------------------------------------------------


class Library:
    """The kernels of shared libraries, each op a function of tensors on its device."""

    def __init__(self, libraries: Iterable[ctypes.CDLL], device: str = "cuda") -> None:
        """Keep the libraries; `cpu` is for such as the host's compiler made."""
        self.device, self._libraries = device, list(libraries)
        self._plugins = {plugin.op: plugin for plugin in ops.shipped().values()}

    def __call__(
        self,
        op: str,
        inputs: Sequence[Tensor],
        *,
        make: Make | None = None,
        scales: Mapping[str, float] | None = None,
        **attributes: Any,  # noqa: ANN401 - as the op declares
    ) -> list[Tensor]:
        """Return the op's outputs, on PyTorch's stream; attributes may go beyond its limits.

        make: memory for an output. scales: fields of the parameters that are no attributes.
        Raises: BackendError with the CUDA error.
        """
        plugin = self._plugins[op]
        values = {each.name: each.default for each in plugin.attributes} | attributes
        shapes = [tuple(each.shape) for each in inputs]
        how = launching.launcher(plugin)
        params = how.params(values, shapes)
        for name, value in (scales or {}).items():
            setattr(params, name, value)
        outputs = [
            (make or self._empty)(shape, _dtype(plugin, place, inputs))
            for place, shape in enumerate(_shapes(how.shapes, values, shapes))
        ]
        size = how.workspace(values, shapes) if how.workspace else 0
        workspace = self._empty((size,), _torch().uint8)
        buffers = launching.Buffers(
            [each.data_ptr() for each in inputs],
            [each.data_ptr() for each in outputs],
            workspace.data_ptr(),
            _torch().cuda.current_stream().cuda_stream if self.device == "cuda" else 0,
        )
        element = str(inputs[plugin.features or 0].dtype).removeprefix("torch.")
        launching.launch(self._holder(plugin.op), plugin, params, buffers, element)
        return outputs

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:  # noqa: ANN401 - torch's
        return _torch().empty(shape, dtype=dtype, device=self.device)

    def _holder(self, op: str) -> ctypes.CDLL:
        """Return whichever library has an op's launcher. Raises: AttributeError."""
        for library in self._libraries:
            if hasattr(library, f"deploykit_{op}"):
                return library
        raise AttributeError(f"no library defines deploykit_{op}")


def opened(folder: Path) -> Library:
    """Return the kernels that are compiled in a folder."""
    return Library(ctypes.CDLL(str(path)) for path in sorted(folder.glob("*.so")))


def _torch() -> Any:  # noqa: ANN401 - a module
    import torch  # noqa: PLC0415 - `--help` is instant

    return torch


def _dtype(plugin: Plugin, place: int, inputs: Sequence[Tensor]) -> Any:  # noqa: ANN401 - torch's
    """Return torch's type of an output."""
    dtype = plugin.outputs[place].dtype
    return inputs[plugin.names.index(dtype)].dtype if dtype in plugin.names else _named(dtype)


def _named(dtype: str) -> Any:  # noqa: ANN401 - torch's
    return getattr(_torch(), dtype)


def _shapes(
    sizes: tuple[tuple[tuple[Size, ...], ...], ...], values: Mapping[str, Any], shapes: Shapes
) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs: see `Launcher.shapes`."""

    def number(size: Size) -> int:
        if isinstance(size, tuple):
            return shapes[size[0]][size[1]]
        return size if isinstance(size, int) else int(values[size])

    return [tuple(math.prod(map(number, dim)) for dim in dims) for dims in sizes]
