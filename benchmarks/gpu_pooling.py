"""RoIAlign, RoIPool and crops on random and hostile boxes, against torchvision and formulas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu_compare import ELEMENTS, apart, launched
from gpu_regions import CHANNELS, KINDS, SPECIAL, Regions, inside, maps_of, padded, regions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpu_ops import Library
    from gpu_regions import Array
    from numpy.random import Generator

NEAR = {np.float32: 1e-5, np.float16: 2e-3}
"""How far RoIAlign and crops may be off, of the largest feature."""
ENDLESS = float(1 << 29)
"""Cells beyond which RoIPool cuts a box, where torchvision's integers overflow."""

# --- RoIAlign -------------------------------------------------------------------------------------

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
STEPS = {"input_scale": 0.0213, "output_scale": 0.0171}
"""Of INT8 features, and of what is pooled from them."""


def check_roi_align(library: Library, seed: int) -> Iterator[str]:
    """Yield what differs from torchvision: FP32, FP16 and INT8."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(8, 200)), int(rng.integers(8, 300))
    found, options = regions(rng, seed, size), align_options(rng, seed)
    channels, scales = int(rng.choice(CHANNELS)), options["spatial_scales"]
    sizes = [(max(1, round(size[0] * s)), max(1, round(size[1] * s))) for s in scales]
    maps = [maps_of(rng, len(found.boxes), channels, each) for each in sizes]
    most = max((float(np.abs(each).max(initial=0)) for each in maps), default=0.0)
    op = "multiscale_roi_align"
    for element in ELEMENTS:
        given = [each.astype(element) for each in maps]
        wanted = aligned(found, given, options)
        (pooled,), wrong = launched(library, op, [found.boxes, found.count, *given], **options)
        if wrong := wrong or apart(pooled, wanted, NEAR[element] * most):
            yield f"{op}, seed {seed}, {np.dtype(element)}: {wrong}"
    into, out = map(np.float32, STEPS.values())
    stored = [np.clip(np.rint(each / into), -128, 127).astype(np.int8) for each in maps]
    wanted = aligned(found, [each * into for each in stored], options) / out
    inputs = [found.boxes, found.count, *stored]
    (pooled,), wrong = launched(library, op, inputs, scales=STEPS, **options)
    # half a step, as it is rounded to the nearest, and the rounding of float32
    if wrong := wrong or apart(pooled, np.clip(wanted, -128, 127), 0.501):
        yield f"{op}, seed {seed}, int8: {wrong}"


def align_options(rng: Generator, seed: int) -> dict[str, Any]:
    """Return attributes; as many samples as cells only where no box is huge or inverted."""
    adaptive = KINDS[seed % len(KINDS)] is inside
    return {
        "output_height": int(rng.integers(1, 9)),
        "output_width": int(rng.choice([1, 2, 7, 14])),
        "sampling_ratio": int(rng.integers(0 if adaptive else 1, 4)),
        "aligned": int(rng.integers(2)),
        "canonical_size": float(rng.choice([224, 56, 64])),
        "spatial_scales": SCALES[: int(rng.integers(1, 5))],
    }


def aligned(found: Regions, maps: Sequence[Array], a: Mapping[str, Any]) -> Array:
    """Return what torchvision gives for the valid rows, zeros for the others."""
    import torch  # noqa: PLC0415 - `--help` is instant
    from torchvision.ops import poolers, roi_align  # noqa: PLC0415 - likewise

    size = a["output_height"], a["output_width"]
    rows = found.by_image()
    values = np.zeros((len(rows), maps[0].shape[1], *size), np.float32)
    sides = rows[:, 3:] - rows[:, 1:3]
    real = sides[:, :1] * sides[:, 1:] > 0  # the others have no logarithm
    measured = np.where(real, rows[:, 1:], np.array([0, 0, 1e-6, 1e-6], np.float32))
    mapper = poolers.LevelMapper(2, 1 + len(maps), a["canonical_size"], 4, 1e-6)
    level = mapper([torch.from_numpy(measured)]).numpy()
    for index, (each, scale) in enumerate(zip(maps, a["spatial_scales"], strict=True)):
        chosen = torch.from_numpy(rows[level == index])
        if len(chosen):
            more = size, scale, a["sampling_ratio"], bool(a["aligned"])
            plane = torch.from_numpy(each).float()
            values[level == index] = roi_align(plane, chosen, *more).numpy()
    return padded(found, values)


# --- RoIPool --------------------------------------------------------------------------------------


def check_roi_pool(library: Library, seed: int) -> Iterator[str]:
    """Yield what differs from torchvision, bit by bit."""
    import torch  # noqa: PLC0415 - `--help` is instant
    from torchvision.ops import roi_pool  # noqa: PLC0415 - likewise

    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 40, 2))
    scale = float(np.float32(rng.choice([1 / 16, 0.25, 0.1, 1.0, 3.0, 1e-9])))
    found = regions(rng, seed, (height / scale, width / scale))
    maps = maps_of(rng, len(found.boxes), int(rng.choice(CHANNELS)), (height, width))
    if seed % 7 == 0:
        odd = rng.choice(SPECIAL[:3], maps.shape)
        maps = np.where(rng.random(maps.shape) < rng.choice([0.3, 1.0]), odd, maps)
    size = int(rng.choice([1, 2, 7, 9, 64])), int(rng.integers(1, 9))
    options = {"output_height": size[0], "output_width": size[1], "spatial_scale": scale}
    farthest = ENDLESS / scale
    rows = torch.from_numpy(np.clip(found.by_image(), -farthest, farthest))
    for element in ELEMENTS:
        given = maps.astype(element)
        whole = torch.from_numpy(given).float()
        values = roi_pool(whole, rows, size, scale).numpy()
        with np.errstate(over="ignore"):  # the lowest float32 is -inf in FP16
            wanted = padded(found, values.astype(element))
        (pooled,), wrong = launched(
            library, "roi_pool", [found.boxes, found.count, given], **options
        )
        if wrong := wrong or apart(pooled, wanted, 0):
            yield f"roi_pool, seed {seed}, {np.dtype(element)}: {wrong}"


# --- crops ----------------------------------------------------------------------------------------


def check_crop(library: Library, seed: int) -> Iterator[str]:
    """Yield what differs from the formulas of crop_and_resize."""
    rng = np.random.default_rng(seed)
    found = regions(rng, seed, (1.0, 1.0))
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 40, (int(rng.integers(1, 6)), 2))]
    channels = int(rng.choice(CHANNELS))
    maps = [maps_of(rng, len(found.boxes), channels, size) for size in sizes]
    options = {
        "output_height": int(rng.choice([1, 2, 7, 14, 64])),
        "output_width": int(rng.integers(1, 9)),
        "levels": len(sizes),
        "image_area": float(rng.choice([4096, 65536, 1048576, 1e6])),
        "canonical_size": float(rng.choice([224, 100])),
        "canonical_level": int(rng.integers(2, 6)),
    }
    for element in ELEMENTS:
        given = [each.astype(element) for each in maps]
        wanted = crops(found, given, options)
        inputs = [found.boxes, found.count, *given]
        (pooled,), wrong = launched(library, "multiscale_crop", inputs, **options)
        most = max((float(np.abs(each).max(initial=0)) for each in maps), default=0.0)
        if wrong := wrong or apart(pooled, wanted, NEAR[element] * most):
            yield f"multiscale_crop, seed {seed}, {np.dtype(element)}: {wrong}"


def crops(found: Regions, maps: Sequence[Array], a: Mapping[str, Any]) -> Array:
    """Return float64[B * R, C, PH, PW]: places in float32, as TensorFlow's, values in float64."""
    size = a["output_height"], a["output_width"]
    image, row = found.valid().nonzero()
    values = np.zeros((len(image), maps[0].shape[1], *size))
    for place, (i, box) in enumerate(zip(image, found.boxes[image, row], strict=True)):
        plane = maps[crop_level(box, len(maps), a)][i].astype(np.float64)
        (y, beyond_y), (x, beyond_x) = (
            samples(box[k], box[k + 2], size[1 - k], plane.shape[2 - k]) for k in (1, 0)
        )
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        bottom, right = np.ceil(y).astype(int), np.ceil(x).astype(int)
        down, along = (y - top)[:, None], x - left
        upper = plane[:, top][..., left] * (1 - along) + plane[:, top][..., right] * along
        lower = plane[:, bottom][..., left] * (1 - along) + plane[:, bottom][..., right] * along
        values[place] = upper * (1 - down) + lower * down
        values[place][:, beyond_y] = values[place][..., beyond_x] = 0
    return padded(found, values)


def crop_level(box: Array, count: int, a: Mapping[str, Any]) -> int:
    """Return the level of a box as the Keras network finds it, 0 the finest."""
    share = float((box[2] - box[0]) * (box[3] - box[1]))
    if not share > 0:
        return 0
    power = math.log2(math.sqrt(share * a["image_area"]) / a["canonical_size"])
    return int(min(max(a["canonical_level"] + round(power) - 2, 0), count - 1))


def samples(low: Any, high: Any, bins: int, cells: int) -> tuple[Array, Array]:  # noqa: ANN401 - numpy's
    """Return where a side is sampled, float64[bins] in cells, and which places are no cell's."""
    last = np.float32(cells - 1)
    if bins == 1:
        place = np.array([(low + high) * np.float32(0.5) * last])
    else:
        place = low * last + np.arange(bins, dtype=np.float32) * (
            (high - low) * last / np.float32(bins - 1)
        )
    near = np.float32(1e-3)  # a rounding that lies beyond the last cell is on it
    on_map = (place >= -near) & (place - last <= near)
    return np.clip(np.where(on_map, place, 0), 0, last).astype(np.float64), ~on_map
