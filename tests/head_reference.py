"""What detectors' rows mean, from their definitions, in torchvision and pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.ops import batched_nms

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = (64, 96)
"""Of the input."""
STRIDES = (8, 16, 32)
HEIGHT, WIDTH = 128, 160
"""Of the images: they fill the input's height, half as large."""
GAIN = 0.5


def cells() -> NDArray[Any]:
    """Column, row and stride of each cell, in the order of the levels and of the pixels."""
    return np.array(
        [
            (column, row, stride)
            for stride in STRIDES
            for row in range(SIZE[0] // stride)
            for column in range(SIZE[1] // stride)
        ],
        np.float64,
    )


def expected(family: str, output: NDArray[Any], offset: tuple[float, float]) -> NDArray[Any]:
    """Rows x1, y1, x2, y2, score, class in pixels of an image that lies at `offset`, best first."""
    rows = torch.from_numpy(output[0]).double()
    threshold, overlap, most = {
        "yolov8": (0.001, 0.7, 300),
        "yolov5": (0.001, 0.6, 300),
        "yolox": (0.01, 0.65, 10_000),
        "none": (0.03, 0.65, 300),
    }[family]
    if family == "yolov8":
        rows = rows.T
        xywh, found = rows[:, :4], rows[:, 4:]
    else:
        xywh, found = rows[:, :4], rows[:, 5:] * rows[:, 4:5]
    if family == "yolox":
        grid = torch.from_numpy(cells())
        xywh = torch.cat(
            [(xywh[:, :2] + grid[:, :2]) * grid[:, 2:], xywh[:, 2:].exp() * grid[:, 2:]], 1
        )
        best, label = found.max(1)
        anchor = torch.nonzero(best > threshold)[:, 0]
        value, label = best[anchor], label[anchor]
    else:
        anchor, label = torch.nonzero(found > threshold, as_tuple=True)
        value = found[anchor, label]
    corners = torch.cat([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1)[anchor]
    kept = batched_nms(corners, value, label, overlap).sort().values
    kept = kept[value[kept].argsort(descending=True, stable=True)][:most]  # ties as they came
    placed = (corners[kept] - torch.tensor([*offset, *offset])) / GAIN
    placed = placed.clamp(torch.zeros(4), torch.tensor([WIDTH, HEIGHT] * 2))
    return torch.cat([placed, value[kept, None], label[kept, None].double()], 1).numpy()


def average_precision(folder: Path, rows: Mapping[int, NDArray[Any]]) -> float:
    """pycocotools' figure for rows x1, y1, x2, y2, score, class of each image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = [
        {
            "image_id": image,
            "category_id": int(label) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for image, found in rows.items()
        for x1, y1, x2, y2, score, label in found.tolist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(folder / "annotations" / "instances_val.json"))
        judge = COCOeval(known, known.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])
