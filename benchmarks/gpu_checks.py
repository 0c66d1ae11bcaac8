"""Random and hostile cases of every op that has a kernel, against references on the CPU.

RoIAlign, RoIPool and NMS are compared with torchvision; crops and assembled windows with their
formulas in numpy. `plugins_gpu.py --check` runs them.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from gpu_compare import ELEMENTS, apart, launched
from gpu_pooling import check_crop, check_roi_align, check_roi_pool
from gpu_regions import SPECIAL, maps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from gpu_ops import Library
    from gpu_regions import Array
    from numpy.random import Generator

# --- assembling -----------------------------------------------------------------------------------


def check_assemble(library: Library, seed: int) -> Iterator[str]:
    """Yield what differs from the definition, bit by bit."""
    rng = np.random.default_rng(seed)
    bins, window = int(rng.integers(1, 8)), int(rng.choice([1, 2, 3, 7, 20, 21, 64]))
    images, count, height, width = (int(n) for n in rng.integers([0, 0, 1, 1], [4, 9, 40, 40]))
    maps = maps_of(rng, images, bins * bins, (height, width))
    positions = rng.integers(-3, height * width + 3, (images, count)).astype(np.int32)
    far = rng.choice(np.array([-(2**31), 2**31 - 1], np.int32), positions.shape)
    positions = np.where(rng.random(positions.shape) < 0.1, far, positions)
    for element in ELEMENTS:
        given = maps.astype(element)
        (found,), wrong = launched(
            library, "assemble", [given, positions], bins=bins, window=window
        )
        if wrong := wrong or apart(found, assembled(given, positions, bins, window), 0):
            yield f"assemble, seed {seed}, {np.dtype(element)}: {wrong}"


def assembled(maps: Array, positions: Array, bins: int, window: int) -> Array:
    """Return T[B, N, window, window]: of every pixel the cell under it, in the map of its part."""
    height, width = maps.shape[2:]
    found = np.zeros((*positions.shape, window, window), maps.dtype)
    v, u = np.mgrid[:window, :window]
    part = v * bins // window * bins + u * bins // window
    for image, row in np.ndindex(*positions.shape):
        middle = int(positions[image, row])
        y, x = middle // width + v - window // 2, middle % width + u - window // 2
        there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        if 0 <= middle < height * width:
            found[image, row][there] = maps[image, part[there], y[there], x[there]]
    return found


# --- NMS ------------------------------------------------------------------------------------------

OUTPUTS = ("boxes", "scores", "classes", "indices", "count")
NUMBERS = (0, 1, 2, 63, 64, 65, 300, 300, 1000, 3840, 5000)
"""Of boxes; a word of the mask is 64, a tile of the sort 4096."""
FEW = 300
"""The most boxes of a small comparison."""


def check_nms(library: Library, seed: int, most: int = NUMBERS[-1]) -> Iterator[str]:
    """Yield what differs from torchvision, bit by bit."""
    rng = np.random.default_rng(seed)
    images, count = int(rng.integers(0, 4)), int(rng.choice(NUMBERS))
    count = count if count <= most else count % most
    a = {
        "iou_threshold": float(rng.choice([0.5, 0.6, 0.3, 0.0, 1.0])),
        "score_threshold": float(rng.choice([-1.0, 0.05, 0.3, -1e30])),
        "candidates": int(rng.choice([1, 20, 64, 1000, 5000])),
        "max_detections": int(rng.choice([1, 7, 100, 300])),
        "class_agnostic": int(rng.integers(2)),
        "grouping": str(rng.choice(["mask", "offset"])),
    }
    cases = [CROWDS[(seed + image) % len(CROWDS)](rng, count) for image in range(images)]
    empty = np.zeros((0, count, 4), np.float32), np.zeros((0, count), np.float32)
    shapes = [*empty, np.zeros((0, count), np.int32)]
    inputs = [np.stack(each) for each in zip(*cases, strict=True)] or shapes
    found, wrong = launched(library, "batched_nms", inputs, **a)
    if wrong:
        yield f"batched_nms, seed {seed}: {wrong}"
    for name, values, wanted in zip(OUTPUTS, found, suppressed(inputs, a), strict=True):
        if wrong := apart(values, wanted, 0):
            yield f"batched_nms of {images} x {count} boxes, seed {seed}, {name}: {wrong}"


def suppressed(inputs: Sequence[Array], a: Mapping[str, Any]) -> list[Array]:
    """Return the op's outputs as torchvision has them, padded."""
    images, most = len(inputs[1]), a["max_detections"]
    boxes, scores = np.zeros((images, most, 4), np.float32), np.zeros((images, most), np.float32)
    classes, indices = (np.full((images, most), -1, np.int32) for _ in range(2))
    count = np.zeros(images, np.int32)
    for image, case in enumerate(zip(*inputs, strict=True)):
        kept = chosen(case, a)[:most]
        count[image] = len(kept)
        for value, source in zip((boxes, scores, classes), case, strict=True):
            value[image, : len(kept)] = source[kept]
        indices[image, : len(kept)] = kept
    return [boxes, scores, classes, indices, count]


def chosen(case: Sequence[Array], a: Mapping[str, Any]) -> Array:
    """Return the indices that torchvision.ops.nms keeps, best first, ties by index."""
    import torch  # noqa: PLC0415 - `--help` is instant
    from torchvision.ops import nms  # noqa: PLC0415 - likewise

    boxes, scores, classes = case
    entering = np.flatnonzero(scores > np.float32(a["score_threshold"]))
    order = entering[np.argsort(-scores[entering], kind="stable")][: a["candidates"]]
    b, s = torch.from_numpy(boxes[order]), torch.from_numpy(scores[order])
    groups = torch.from_numpy(classes[order])
    if a["class_agnostic"]:
        groups = torch.zeros_like(groups)
    elif a["grouping"] == "offset" and len(order):
        b += groups.float()[:, None] * (b.max() + 1)
        groups = torch.zeros_like(groups)
    kept = np.zeros(len(order), bool)
    for label in np.unique(groups.numpy()):
        (own,) = torch.where(groups == int(label))
        kept[own[nms(b[own], s[own], a["iou_threshold"])].numpy()] = True
    return np.asarray(order[kept])


Crowd: TypeAlias = "tuple[Array, Array, Array]"


def scattered(rng: Generator, n: int) -> Crowd:
    """Return boxes that overlap here and there, with scores and classes of their own."""
    corner, side = rng.random((n, 2)) * rng.choice([25.0, 300.0]), rng.random((n, 2)) * 100 + 1
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    return boxes, rng.random(n, np.float32), rng.integers(0, 5, n).astype(np.int32)


def on_a_grid(rng: Generator, n: int) -> Crowd:
    """Return boxes whose overlaps are often exactly a threshold, with few different scores."""
    boxes, _, classes = scattered(rng, n)
    return boxes // 32, rng.choice([0.05, 0.25, 0.3, 1.0], n).astype(np.float32), classes


def in_one_place(rng: Generator, n: int) -> Crowd:
    """Return one box, n times."""
    boxes, scores, classes = scattered(rng, n)
    return np.tile(boxes[:1], (n, 1)), scores, classes


def hostile(rng: Generator, n: int) -> Crowd:
    """Return NaN, infinite, inverted and empty boxes; odd scores and numbers of classes."""
    boxes, scores, classes = scattered(rng, n)
    boxes = np.where(rng.random((n, 4)) < 0.15, rng.choice(SPECIAL, (n, 4)), boxes)
    boxes = np.where(rng.random((n, 1)) < 0.2, boxes[:, [2, 1, 0, 3]], boxes)
    scores = np.where(rng.random(n) < 0.3, rng.choice(SPECIAL, n), scores)
    odd = rng.choice(np.array([-1, -(2**31), 2**31 - 1, 2**24 + 1], np.int32), n)
    return boxes, scores, np.where(rng.random(n) < 0.1, odd, classes)


def worthless(rng: Generator, n: int) -> Crowd:
    """Return boxes with scores that no threshold lets in."""
    boxes, scores, classes = scattered(rng, n)
    return boxes, np.full_like(scores, rng.choice([np.nan, -np.inf, -1e38])), classes


CROWDS: tuple[Callable[[Generator, int], Crowd], ...] = (
    *(scattered, on_a_grid, in_one_place, hostile, worthless, hostile),
)


# --- all of them ----------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[Library, int], Iterator[str]]] = {
    "multiscale_roi_align": check_roi_align,
    "roi_pool": check_roi_pool,
    "multiscale_crop": check_crop,
    "assemble": check_assemble,
    "batched_nms": check_nms,
}
"""By op: every one that has a kernel."""
MOST_TOLD = 20
"""Sentences about one op."""


def check(library: Library, ops: Iterable[str], cases: int, *, small: bool = False) -> list[str]:
    """Print and return what is wrong in so many cases of each op, each in one sentence."""
    found: list[str] = []
    checks = CHECKS | ({"batched_nms": functools.partial(check_nms, most=FEW)} if small else {})
    for op in ops:
        start = time.perf_counter()
        wrong = [line for seed in range(cases) for line in checks[op](library, seed)]
        print(*wrong[:MOST_TOLD], sep="\n", end="\n" if wrong else "")
        seconds = time.perf_counter() - start
        print(f"{op}: {cases} cases, {len(wrong)} wrong, {seconds:.1f} s", flush=True)
        found += wrong
    return found
