"""What the tests of PointRend for semantic segmentation share: its rules, and one export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it

import deploykit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

MOST = 32
"""Points of one search: `POINTS` are then found in three."""
POINTS = 80
CLASSES, SIZE = 4, (32, 64)


def sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Return float[n, C, P] of maps float[n, C, H, W] at points [n, P, 2] within 0 and 1."""
    found = F.grid_sample(maps, 2 * points.unsqueeze(2) - 1, align_corners=False)
    return found.squeeze(3)


def rendered(
    logits: Tensor, scores: Callable[[Tensor, Tensor], Tensor], *, align_corners: bool
) -> Tensor:
    """Return scores float[n, C, 2 H, 2 W]: those of the most doubtful POINTS are made anew.

    scores: what is said at points [n, P, 2] of the finer map, float[n, C, P].
    """
    logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=align_corners)
    first, second = logits.topk(2, 1).values.unbind(1)
    high, wide = logits.shape[2:]
    chosen = (second - first).flatten(1).argsort(1, descending=True)[:, :POINTS]
    cells = torch.stack([chosen % wide, chosen // wide], 2).double() + 0.5
    x = scores(logits, cells / torch.tensor([wide, high]))
    index = chosen.unsqueeze(1).expand(-1, x.shape[1], -1)
    return logits.flatten(2).scatter(2, index, x).reshape(*logits.shape[:2], high, wide)


def check_exported(state: Mapping[str, Tensor], folder: Path, searches: int) -> None:
    """Check that such weights become a graph without branches that searches so often."""
    torch.save({"model": dict(state)}, folder / "points.pth")
    options = deploykit.ExportOptions(input_size=SIZE)
    deploykit.export(folder / "points.pth", folder / "points.onnx", options)
    graph = onnx.load(folder / "points.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert {"If", "Loop", "NonZero"}.isdisjoint(kinds)
    assert kinds.count("TopK") == searches
    shape = [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    assert shape[1:] == [CLASSES, *SIZE]
