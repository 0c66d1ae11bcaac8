"""The losses of this example for `deploykit qat --loss`, beside the FP32 self: see README.md.

The tensors are those of the ONNX file behind its last layers: class logits [B, A, classes] and
distances [B, A, 4, bins].
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import deploykit
from deploykit.data import sources
from deploykit.training import loops

sys.path.append(str(Path(__file__).parent))
from losses import WEIGHTS, pad, sums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

LOGITS, DISTANCES = "detect.Transpose_out", "detect.boxes.Reshape_out"
STRIDES = (8, 16, 32)
ORDER = loops.numbered(sources.dataset("shapes:count=1"))


def compute(found: Mapping[str, Tensor], truth: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the weighed sum of the three losses, and the divisor of their means."""
    logits, distances = found[LOGITS], found[DISTANCES]
    raw = (logits.float(), distances.float().flatten(2), *places(logits.shape[1], logits.device))
    objects = [loops.placed(image, ORDER, where) for image, where in truth]
    known = pad([each.classes for each in objects], [each.boxes for each in objects])
    parts, norm = sums(raw, known.to(logits.device))
    return torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum(), norm


def places(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the anchors [A, 2] of a square input and their strides [A, 1], in its pixels."""
    side = math.isqrt(count * max(STRIDES) ** 2 // sum((max(STRIDES) // s) ** 2 for s in STRIDES))
    anchors, strides = [], []
    for stride in STRIDES:
        line = (torch.arange(side // stride, device=device) + 0.5) * stride
        down, across = torch.meshgrid(line, line, indexing="ij")
        anchors.append(torch.stack([across, down], -1).reshape(-1, 2))
        strides.append(torch.full((len(anchors[-1]), 1), float(stride), device=device))
    return torch.cat(anchors), torch.cat(strides)


loss = deploykit.Loss(tensors=(LOGITS, DISTANCES), compute=compute)
