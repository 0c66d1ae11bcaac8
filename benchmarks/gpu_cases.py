"""What is timed: every op that has a kernel, beside what PyTorch has for it on the same GPU.

RoIAlign, RoIPool and NMS stand beside torchvision's ops. Crops stand beside `grid_sample`, level by
level, and assembled windows beside one `gather`: the usual ways in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gpu_ops
import numpy as np
from gpu_checks import chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gpu_ops import Library, Tensor

    Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]

TORCHVISION, GRID_SAMPLE, GATHER = "torchvision.ops", "torch grid_sample", "torch gather"
NEAR = {"float32": 1e-4, "float16": 1e-3}
"""How far ours may be off the reference, on average, of features about 1."""


@dataclass(frozen=True)
class Case:
    """One op on inputs of one size, done by both sides."""

    name: str
    beside: str
    """What the other side is."""
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    bytes: int
    """That the op must at least read and write."""
    reference: Callable[[], Tensor]
    """What ours must give: in FP32, as the other sides take the boxes of FP16 features in FP16."""
    near: float = 0.0

    def apart(self) -> str:
        """Return how ours differs from the reference, "" where it does not."""
        ours, wanted = self.ours().cpu(), self.reference().cpu()
        if ours.shape != wanted.shape:
            return f"{self.name}: {tuple(ours.shape)}, not {tuple(wanted.shape)}"
        error = float((ours.float() - wanted.float()).abs().mean())
        return "" if error <= self.near else f"{self.name}: {error:.0e} off on average"


# --- beside torchvision ---------------------------------------------------------------------------


def align_case(library: Library, *, boxes: int, channels: int, half: bool) -> Case:
    """Return MultiScaleRoIAlign over the pyramid of an 800x1344 image."""
    from torchvision.ops import MultiScaleRoIAlign  # noqa: PLC0415 - `--help` comes first

    scene = gpu_ops.scene(boxes, (800, 1344))
    features = pyramid(library, scene, channels, half=half)
    rois, count = on_device(library, scene.boxes, np.array([boxes], np.int32))
    pool = MultiScaleRoIAlign([str(k) for k in range(len(features))], 7, 2)
    named = {str(k): level for k, level in enumerate(features)}
    floats = {name: level.float() for name, level in named.items()}
    typed, dtype = rois.to(features[0].dtype), type_name(features[0])
    scales = tuple(1 / stride for stride in gpu_ops.STRIDES)
    inputs, options = [rois[None], count, *features], gpu_ops.ALIGNMENT
    return Case(
        f"multiscale_roi_align {boxes}x{len(features)}x{channels} {dtype}",
        TORCHVISION,
        lambda: library("multiscale_roi_align", inputs, spatial_scales=scales, **options)[0],
        lambda: pool(named, [typed], [(800, 1344)]),
        gpu_ops.align_bytes(scene, channels, features[0].element_size()),
        lambda: pool(floats, [rois], [(800, 1344)]),
        NEAR[dtype],
    )


def nms_case(library: Library, count: int) -> Case:
    """Return batched NMS that keeps everything that survives, 90 classes."""
    import torch  # noqa: PLC0415 - `--help` comes first
    from torchvision.ops import batched_nms  # noqa: PLC0415 - likewise

    arrays = gpu_ops.objects(count, 90)
    boxes, scores, classes = on_device(library, *arrays)
    numbers = classes.long()
    inputs = [boxes[None], scores[None], classes[None]]
    options: dict[str, Any] = {
        "candidates": count,
        "max_detections": count,
        "iou_threshold": 0.5,
        "score_threshold": -1.0,
    }

    def kept() -> Tensor:
        found = chosen(arrays, options | {"class_agnostic": 0, "grouping": "mask"})
        return torch.from_numpy(np.pad(found, (0, count - len(found)), constant_values=-1))

    return Case(
        f"batched_nms {count}",
        TORCHVISION,
        lambda: library("batched_nms", inputs, **options)[3][0],
        lambda: batched_nms(boxes, scores, numbers, 0.5),
        gpu_ops.nms_bytes(count, count),
        kept,
    )


def pool_case(library: Library, *, boxes: int, channels: int, half: bool) -> Case:
    """Return RoIPool on the map of VGG-16 for a 608x1008 image."""
    import torch  # noqa: PLC0415 - `--help` comes first
    from torchvision.ops import roi_pool  # noqa: PLC0415 - likewise

    scene, scale = gpu_ops.scene(boxes, (608, 1008)), 1 / 16
    rois, count = on_device(library, scene.boxes, np.array([boxes], np.int32))
    maps = features_of(library, (1, channels, 38, 63), half=half)
    rows = torch.cat([torch.zeros_like(rois[:, :1]), rois], 1)
    typed, floats = rows.to(maps.dtype), maps.float()
    inputs = [rois[None], count, maps]
    return Case(
        f"roi_pool {boxes}x{channels} {type_name(maps)}",
        TORCHVISION,
        lambda: library("roi_pool", inputs, spatial_scale=scale)[0],
        lambda: roi_pool(maps, typed, 7, scale),
        gpu_ops.pool_bytes(scene.boxes * scale, (38, 63), channels, maps.element_size()),
        lambda: roi_pool(floats, rows, 7, scale),
    )


# --- beside the usual ways in PyTorch -------------------------------------------------------------


def crop_case(library: Library, *, boxes: int, bins: int, channels: int, half: bool) -> Case:
    """Return crops of the pyramid of a 1024x1024 image."""
    scene = gpu_ops.scene(boxes, (1024, 1024))
    features = pyramid(library, scene, channels, half=half)
    shares, count = on_device(library, scene.boxes / 1024, np.array([boxes], np.int32))
    options: dict[str, Any] = {
        "output_height": bins,
        "output_width": bins,
        "levels": len(features),
        "image_area": 1024.0**2,
    }
    inputs, dtype = [shares[None], count, *features], type_name(features[0])
    floats = [level.float() for level in features]
    return Case(
        f"multiscale_crop {boxes}x{len(features)}x{channels}x{bins}x{bins} {dtype}",
        GRID_SAMPLE,
        lambda: library("multiscale_crop", inputs, **options)[0],
        lambda: sampled(shares, features, bins),
        gpu_ops.crop_bytes(scene, (1024, 1024), bins, channels, features[0].element_size()),
        lambda: sampled(shares, floats, bins),
        NEAR[dtype],
    )


def sampled(boxes: Tensor, features: Sequence[Tensor], bins: int) -> Tensor:
    """Return T[n, C, bins, bins] of boxes float32[n, 4] within a 1024x1024 image."""
    import torch  # noqa: PLC0415 - `--help` comes first
    from torch.nn.functional import grid_sample  # noqa: PLC0415 - likewise

    sides = boxes[:, 2:] - boxes[:, :2]
    power = torch.log2(torch.sqrt(sides[:, 0] * sides[:, 1]) * (1024 / gpu_ops.CANONICAL_SIZE))
    level = (gpu_ops.CANONICAL_LEVEL + power.round()).clamp(2, 1 + len(features)) - 2
    steps = torch.arange(bins, device=boxes.device, dtype=boxes.dtype) / (bins - 1)
    places = (boxes[:, None, :2] + steps[:, None] * sides[:, None]) * 2 - 1
    x, y = places[..., 0], places[..., 1]
    across, down = x[:, None].expand(-1, bins, -1), y[:, :, None].expand(-1, -1, bins)
    grid = torch.stack([across, down], -1).to(features[0].dtype)
    found = features[0].new_empty(len(boxes), features[0].shape[1], bins, bins)
    for index, maps in enumerate(features):
        (chosen,) = torch.where(level == index)
        own = grid[chosen].reshape(1, -1, bins, 2)
        values = grid_sample(maps, own, align_corners=True)
        found[chosen] = values.reshape(-1, len(chosen), bins, bins).transpose(0, 1)
    return found


def assemble_case(library: Library, *, windows: int, half: bool) -> Case:
    """Return windows of 21x21 of the 5x5 maps of a 600x800 image."""
    size, bins, window = (75, 100), 5, 21
    places = np.random.default_rng(0).permutation(size[0] * size[1])[:windows].astype(np.int32)
    (positions,) = on_device(library, places)
    maps = features_of(library, (1, bins * bins, *size), half=half)
    along = np.arange(window)
    part, away = on_device(library, along * bins // window, along - window // 2)
    inputs = [maps, positions[None]]
    return Case(
        f"assemble {windows}x{window}x{window} {type_name(maps)}",
        GATHER,
        lambda: library("assemble", inputs, bins=bins, window=window)[0],
        lambda: gathered(maps, positions[None], part, away),
        gpu_ops.assemble_bytes(places, size, window, maps.element_size(), bins),
        lambda: gathered(maps, positions[None], part, away),
    )


def gathered(maps: Tensor, positions: Tensor, part: Tensor, away: Tensor) -> Tensor:
    """Return T[B, N, m, m]; part, away: int64[m], of each pixel along a side."""
    height, width = maps.shape[2:]
    middle = positions.long()[:, :, None, None]
    row, column = middle // width + away[:, None], middle % width + away
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    bins = int(maps.shape[1] ** 0.5)
    channel = part[:, None] * bins + part
    cell = (channel * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1)
    found = maps.flatten(1).gather(1, cell.flatten(1)).reshape(cell.shape)
    return found * inside


# --- tensors --------------------------------------------------------------------------------------


def on_device(library: Library, *arrays: Any) -> list[Tensor]:  # noqa: ANN401 - of any type
    """Return arrays as tensors where the library runs."""
    import torch  # noqa: PLC0415 - `--help` comes first

    return [torch.from_numpy(each).to(library.device) for each in arrays]


def features_of(library: Library, shape: tuple[int, ...], *, half: bool) -> Tensor:
    """Return random features of a shape."""
    import torch  # noqa: PLC0415 - `--help` comes first

    dtype = torch.float16 if half else torch.float32
    return torch.randn(shape, device=library.device).to(dtype)


def pyramid(library: Library, scene: gpu_ops.Scene, channels: int, *, half: bool) -> list[Tensor]:
    """Return random features of every level."""
    return [features_of(library, (1, channels, *size), half=half) for size in scene.sizes]


def type_name(tensor: Tensor) -> str:
    """Return float32 or float16."""
    return str(tensor.dtype).removeprefix("torch.")


# --- by op ----------------------------------------------------------------------------------------


def align_cases(library: Library) -> Iterator[Case]:
    """Yield the cases of RoIAlign; all are of the sizes of real detectors."""
    for half in (False, True):
        yield align_case(library, boxes=1000, channels=256, half=half)


def nms_cases(library: Library) -> Iterator[Case]:
    """Yield the cases of NMS."""
    for count in (1000, 4000, 20000):
        yield nms_case(library, count)


def pool_cases(library: Library) -> Iterator[Case]:
    """Yield the cases of RoIPool."""
    for boxes, half in ((300, False), (2000, False), (2000, True)):
        yield pool_case(library, boxes=boxes, channels=512, half=half)


def crop_cases(library: Library) -> Iterator[Case]:
    """Yield the cases of crops."""
    for boxes, bins, half in ((1000, 7, False), (1000, 7, True), (100, 14, False)):
        yield crop_case(library, boxes=boxes, bins=bins, channels=256, half=half)


def assemble_cases(library: Library) -> Iterator[Case]:
    """Yield the cases of assembled windows."""
    for windows, half in ((1000, False), (4000, False), (4000, True)):
        yield assemble_case(library, windows=windows, half=half)


CASES: dict[str, Callable[[Library], Iterator[Case]]] = {
    "multiscale_roi_align": align_cases,
    "batched_nms": nms_cases,
    "roi_pool": pool_cases,
    "multiscale_crop": crop_cases,
    "assemble": assemble_cases,
}
