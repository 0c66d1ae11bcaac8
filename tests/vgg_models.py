"""What the tests of the VGG-16 detectors share: narrow networks, and the published steps in loops.

Written from the papers and the Caffe code's conventions, image by image and box by box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dense_models import sane, tame
from torch import nn
from torchvision.ops import roi_pool

from deploykit.networks.detectors import vgg

CLASSES = 4
SIZE = (112, 160)
NARROW = vgg.Settings(
    scales=(2, 4, 8), widths=(8, 8, 16, 16, 16), hidden=32, anchors=200, proposals=30
)


def images(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def narrow(kind: Any, settings: vgg.Settings, *extra: torch.Tensor) -> Any:
    """Return a network with weights of which some scores are high, most low."""
    network = sane(kind(settings, CLASSES))

    def run() -> None:
        network(images(2), *extra)

    if isinstance(network, vgg.FasterRcnn):
        tame(run, [network.rpn.cls_score], 0.0, 1.0)
        tame(run, [network.rpn.bbox_pred], 0.0, 0.3)
    head: Any = network.head
    tame(run, [head.fc6], 0.0, 1.0)
    tame(run, [head.fc7], 0.0, 1.0)
    tame(run, [head.cls_score], 0.0, 3.0)
    tame(run, [head.bbox_pred], 0.0, 2.0)
    return network


@dataclass
class Found:
    """The detections in one image, best first."""

    boxes: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


def overlap(a: Any, b: Any) -> float:
    """Return the IoU of two boxes, their last pixels inside."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(width * height / (sum(areas) - width * height))


def greedy(boxes: Any, iou: float) -> list[int]:
    """Return the places of the boxes, given best first, that no kept one covers."""
    kept: list[int] = []
    for i in range(len(boxes)):
        if all(overlap(boxes[i], boxes[j]) <= iou for j in kept):
            kept.append(i)
    return kept


def shifted(box: Any, move: Any) -> list[float]:
    """Return one box moved by its deltas and cut to the image."""
    width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
    x, y = box[0] + 0.5 * width + move[0] * width, box[1] + 0.5 * height + move[1] * height
    w, h = np.exp(move[2]) * width, np.exp(move[3]) * height
    corners = (x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h)
    limits = (SIZE[1] - 1, SIZE[0] - 1, SIZE[1] - 1, SIZE[0] - 1)
    return [float(min(max(c, 0), limit)) for c, limit in zip(corners, limits, strict=True)]


def base_anchors(settings: vgg.Settings) -> list[list[float]]:
    widths = [round((256 / ratio) ** 0.5) for ratio in settings.ratios]
    pairs = [(w, round(w * ratio)) for w, ratio in zip(widths, settings.ratios, strict=True)]
    return [
        [8 - w * s / 2, 8 - h * s / 2, 7 + w * s / 2, 7 + h * s / 2]
        for w, h in pairs
        for s in settings.scales
    ]


def proposals(network: Any, maps: torch.Tensor, settings: vgg.Settings) -> torch.Tensor:
    """Return the proposals of one image, float32[n, 4]."""
    hidden = network.rpn.conv(maps).relu()
    scores, moves = network.rpn.cls_score(hidden)[0], network.rpn.bbox_pred(hidden)[0]
    base = base_anchors(settings)
    found = []
    for y in range(maps.shape[2]):
        for x in range(maps.shape[3]):
            for k, anchor in enumerate(base):
                pair = torch.stack([scores[k, y, x], scores[len(base) + k, y, x]]).softmax(0)
                box = [a + 16 * s for a, s in zip(anchor, (x, y, x, y), strict=True)]
                move = moves[4 * k : 4 * k + 4, y, x].tolist()
                found.append((float(pair[1]), shifted(box, move)))
    ranked = [box for _, box in sorted(found, key=lambda f: -f[0])[: settings.anchors]]
    kept = greedy(ranked, settings.proposal_iou)[: settings.proposals]
    return torch.tensor([ranked[i] for i in kept])


def detections(network: Any, maps: torch.Tensor, regions: torch.Tensor) -> Found:
    """Return what one image's regions hold."""
    head: Any = network.head
    pooled = roi_pool(maps, [regions], 7, 1 / 16).flatten(1)
    x = nn.functional.relu(head.fc7(nn.functional.relu(head.fc6(pooled))))
    scores, moves = head.cls_score(x).softmax(1).numpy(), head.bbox_pred(x).numpy()
    spread = np.array([0.1, 0.1, 0.2, 0.2])
    found = []
    for label in range(1, CLASSES + 1):
        column = 0 if moves.shape[1] == 4 else 4 * label
        rows = [i for i in np.argsort(-scores[:, label], kind="stable") if scores[i, label] > 0.05]
        boxes = [shifted(regions[i].tolist(), moves[i, column : column + 4] * spread) for i in rows]
        found += [(scores[rows[k], label], boxes[k], label - 1) for k in greedy(boxes, 0.3)]
    best = sorted(found, key=lambda f: -f[0])[:100]
    return Found(
        np.array([f[1] for f in best]).reshape(-1, 4),
        np.array([f[0] for f in best]),
        np.array([f[2] for f in best]),
    )
