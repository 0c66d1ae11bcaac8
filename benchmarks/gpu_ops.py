"""The launchers of plugins/*.cu on PyTorch's CUDA tensors; inputs, bytes and comparisons.

`plugins_gpu.py` compiles the library, calls and times it.
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import ops
from deploykit.ops.launching import ELEMENTS, launcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]

Tensor: TypeAlias = Any
"""A torch tensor; torch is imported late, for `--help` and for the message where it is absent."""

STRIDES = (4, 8, 16, 32)
CANONICAL_SIZE, CANONICAL_LEVEL, FIRST_LEVEL = 224.0, 4, 2
BINS, SAMPLES = 7, 2
ALIGNMENT = {
    "output_height": BINS,
    "output_width": BINS,
    "sampling_ratio": SAMPLES,
    "canonical_size": CANONICAL_SIZE,
    "canonical_level": CANONICAL_LEVEL,
    "first_level": FIRST_LEVEL,
    "level_epsilon": 1e-6,
}
"""torchvision's settings, as far as they are not 0."""
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}
"""Of the largest absolute output."""


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


def levels(boxes: NDArray[np.float32], last: int) -> NDArray[np.int64]:
    """Return the pyramid level of each box, 0 to `last`."""
    area = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(1)
    found = np.floor(CANONICAL_LEVEL + np.log2(np.sqrt(area) / CANONICAL_SIZE) + 1e-6)
    chosen: NDArray[np.int64] = np.clip(found - FIRST_LEVEL, 0, last).astype(np.int64)
    return chosen


def align_bytes(given: Scene, channels: int, width: int) -> int:
    """Return the bytes that RoIAlign must move at least: each read and written once.

    Boxes and outputs, and the feature elements of `width` bytes inside the boxes, each once
    however many boxes share it.
    """
    chosen = levels(given.boxes, len(given.sizes) - 1)
    cells = 0
    for level, (size, stride) in enumerate(zip(given.sizes, STRIDES, strict=False)):
        touched = np.zeros(size, bool)
        for x1, y1, x2, y2 in given.boxes[chosen == level] / stride:
            touched[int(y1) : int(np.ceil(y2)) + 1, int(x1) : int(np.ceil(x2)) + 1] = True
        cells += int(touched.sum())
    outputs = len(given.boxes) * BINS * BINS
    return channels * width * (cells + outputs) + given.boxes.nbytes


def nms_bytes(count: int, kept: int) -> int:
    """Return the bytes that NMS with a bit mask must move at least: each read and written once.

    N boxes with score and class, the upper triangle of the N x N bits written and read, and the
    outputs: box, score, class and index. The work is N^2 / 2 overlaps, so a small share of the
    bandwidth is no fault of the kernels.
    """
    return 24 * count + 2 * (count * count // 2 // 8) + 28 * kept


# --- the library ------------------------------------------------------------------------------


class Library:
    """The launchers of shared libraries, each a function of tensors on its device."""

    def __init__(self, *paths: Path, device: str = "cuda") -> None:
        """Load the libraries; `cpu` is for such as the host's compiler made."""
        self.device = device
        self._libraries = [ctypes.CDLL(str(path)) for path in paths]

    def batched_nms(
        self,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        *,
        kept: int,
        offset: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes, indices and count, as the op does, IoU threshold 0.5.

        Every box is a candidate, whatever its score.
        """
        import torch  # noqa: PLC0415 - `--help` is instant

        batch, count = scores.shape
        params = _params(
            "DKBatchedNms",
            [tuple(boxes.shape)],
            candidates=count,
            max_detections=kept,
            iou_threshold=0.5,
            score_threshold=-1.0,
            grouping="offset" if offset else "mask",
        )
        measure = self._function("batched_nms_workspace")
        measure.restype = ctypes.c_size_t
        size = measure(ctypes.byref(params))
        workspace = torch.empty(size, dtype=torch.uint8, device=boxes.device)
        found = (
            boxes.new_empty(batch, kept, 4),
            scores.new_empty(batch, kept),
            classes.new_empty(batch, kept),
            classes.new_empty(batch, kept),
            classes.new_empty(batch),
        )
        self._run("batched_nms", params, boxes, scores, classes, *found, workspace)
        return found

    def multiscale_roi_align(
        self, boxes: Tensor, count: Tensor, features: Sequence[Tensor]
    ) -> Tensor:
        """Return T[B * R, C, 7, 7] as the op does with torchvision's settings, strides 4, 8 ..."""
        batch, rows = boxes.shape[:2]
        params = _params(
            "DKMultiscaleRoiAlign",
            [tuple(boxes.shape), tuple(count.shape), *(tuple(maps.shape) for maps in features)],
            **ALIGNMENT,
            spatial_scales=tuple(1 / stride for stride in STRIDES[: len(features)]),
        )
        pooled = features[0].new_empty(batch * rows, features[0].shape[1], BINS, BINS)
        pointers = (ctypes.c_void_p * len(features))(*(maps.data_ptr() for maps in features))
        element = ELEMENTS.index(str(features[0].dtype).removeprefix("torch."))
        self._run("multiscale_roi_align", params, boxes, count, pointers, pooled, element)
        return pooled

    def _function(self, name: str) -> Any:  # noqa: ANN401 - ctypes makes its type at run time
        """Return a launcher of whichever library has it. Raises: AttributeError."""
        symbol = f"deploykit_{name}"
        holders = [library for library in self._libraries if hasattr(library, symbol)]
        if not holders:
            raise AttributeError(f"no library defines {symbol}")
        return getattr(holders[0], symbol)

    def _run(self, op: str, params: ctypes.Structure, *arguments: object) -> None:
        """Launch on PyTorch's stream. Raises: RuntimeError with the CUDA error's number."""
        import torch  # noqa: PLC0415 - `--help` is instant

        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else None
        values = [
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments
        ]
        status = self._function(op)(ctypes.byref(params), *values, ctypes.c_void_p(stream))
        if status:
            raise RuntimeError(f"deploykit_{op} returned CUDA error {status}")


def _params(name: str, shapes: list[tuple[int, ...]], **attributes: Any) -> ctypes.Structure:  # noqa: ANN401 - as the op declares
    """Return the launcher's parameters of one of our ops, also beyond the op's own limits."""
    plugin = ops.shipped()[name]
    values = {attribute.name: attribute.default for attribute in plugin.attributes} | attributes
    return launcher(plugin).params(values, shapes)


# --- comparisons ------------------------------------------------------------------------------


def check(library: Library, rounds: int) -> list[str]:
    """Return what differs from torchvision on the CPU, each in one sentence."""
    found = itertools.chain.from_iterable(
        comparison(library, seed)
        for seed in range(rounds)
        for comparison in (_check_align, _check_nms)
    )
    return list(found)


def _check_align(library: Library, seed: int) -> Iterator[str]:
    import torch  # noqa: PLC0415 - `--help` is instant
    from torchvision.ops import MultiScaleRoIAlign  # noqa: PLC0415 - likewise

    torch.manual_seed(seed)
    given = scene(int(np.random.default_rng(seed).integers(1, 40)), (256, 320), seed)
    boxes = torch.from_numpy(given.boxes)
    pool = MultiScaleRoIAlign([str(k) for k in range(len(given.sizes))], BINS, SAMPLES)
    for name, tolerance in TOLERANCE.items():
        dtype = getattr(torch, name)
        features = [torch.randn(1, 5, *size).to(dtype) for size in given.sizes]
        named = {str(k): maps.float() for k, maps in enumerate(features)}
        wanted = pool(named, [boxes], [(256, 320)])
        there = [maps.to(library.device) for maps in features]
        count = torch.tensor([len(boxes)], dtype=torch.int32, device=library.device)
        found = library.multiscale_roi_align(boxes[None].to(library.device), count, there)
        error = float((found.cpu().float() - wanted).abs().max() / wanted.abs().max())
        if not error <= tolerance:
            yield f"multiscale_roi_align, {len(boxes)} boxes, {name}, seed {seed}: {error:.0e} off"


def _check_nms(library: Library, seed: int) -> Iterator[str]:
    import torch  # noqa: PLC0415 - `--help` is instant
    from torchvision.ops import batched_nms  # noqa: PLC0415 - likewise

    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 2, 63, 64, 65, 300, 1000, 3840, 5000]))
    boxes, scores, classes = map(torch.from_numpy, objects(count, int(rng.integers(1, 10)), seed))
    # torchvision's form per class is taken above 4000 coordinates on a CPU, the trick below.
    trick = boxes.numel() <= 4000
    wanted = batched_nms(boxes, scores, classes.long(), 0.5)
    _, _, _, indices, number = (
        value[0].cpu()
        for value in library.batched_nms(
            *(v[None].to(library.device) for v in (boxes, scores, classes)),
            kept=count,
            offset=trick,
        )
    )
    if indices[: int(number)].tolist() != wanted.tolist():
        yield f"batched_nms of {count} boxes, seed {seed}: {int(number)} kept, not {len(wanted)}"
