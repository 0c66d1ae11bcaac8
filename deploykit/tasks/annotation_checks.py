"""What the entries of a COCO file must be."""

from __future__ import annotations

from typing import Any

from deploykit.data import images
from deploykit.files import schema
from deploykit.files.schema import many, numbers, record, whole

_FAR = 1e5
"""Pixels: no coordinate is farther from an image; a drawer of masks takes memory by it."""


def _run_lengths(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for a mask as run lengths, plain or packed, that fill an image of `size` exactly."""
    _RUNS(value)
    height, width = value["size"]
    counts = value["counts"]
    runs = counts if isinstance(counts, list) else _unpacked(counts)
    if height * width > images.PIXELS or min(runs, default=0) < 0 or sum(runs) != height * width:
        raise schema.MisfitError("are run lengths of another size", f"{height} x {width} pixels")


def _unpacked(text: str) -> list[int]:
    """Return the run lengths in COCO's text: 5 bits a letter, from the fourth on as differences."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise schema.MisfitError("are no packed run lengths", "text as COCO packs it")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _counts(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for run lengths as numbers or as text."""
    if isinstance(value, str):
        schema.text()(value)
    else:
        many(whole(0, images.PIXELS))(value)


def _segmentation(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for polygons (x, y, x, y, ...) or run lengths."""
    if isinstance(value, dict):
        _run_lengths(value)
    else:
        _POLYGONS(value)


def _sized(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for an image of no more pixels than are read."""
    _IMAGE(value)
    if value.get("height", 1) * value.get("width", 1) > images.PIXELS:
        raise schema.MisfitError("has too many pixels", f"at most {images.PIXELS}")


def _box(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for [x, y, width, height]; x and y may lie outside the image."""
    numbers(-_FAR, _FAR)(value)
    if len(value) != 4 or min(value[2:]) < 0:
        raise schema.MisfitError(f"is {value[:5]}", "[x, y, width, height]")


_ID = whole(-(2**53), 2**53)
_SIDE = whole(1, images.PIXELS)
_NAME = schema.text(least=1, most=4096)
_RUNS = record({"size": schema.row(_SIDE, _SIDE), "counts": _counts}, others=True)
_POLYGONS = many(numbers(-_FAR, _FAR, least=6, multiple=2))
_IMAGE = record({"id": _ID, "file_name": _NAME}, {"height": _SIDE, "width": _SIDE}, others=True)
COCO = {
    "images": _sized,
    "annotations": record(
        {"image_id": _ID, "category_id": _ID, "bbox": _box},
        {
            "area": schema.number(0, _FAR * _FAR),
            "iscrowd": schema.one_of(0, 1),
            "segmentation": _segmentation,
            "keypoints": numbers(-_FAR, _FAR, multiple=3),
            "num_keypoints": whole(0, 1 << 16),
        },
        others=True,
    ),
    "categories": record({"id": _ID, "name": _NAME}, others=True),
}
"""List of a COCO file -> what its entries must be; other keys are let through, for every tool adds
some of its own."""
PANOPTIC = {
    "images": COCO["images"],
    "annotations": record(
        {
            "image_id": _ID,
            "file_name": _NAME,
            "segments_info": many(
                record(
                    {"id": whole(1, (1 << 24) - 1), "category_id": _ID},
                    {"iscrowd": schema.one_of(0, 1)},
                    others=True,
                )
            ),
        },
        others=True,
    ),
    "categories": record({"id": _ID, "name": _NAME, "isthing": schema.one_of(0, 1)}, others=True),
}
"""The same of a panoptic file, whose entry of an image lists the segments in a file of colours."""
