"""How YOLOv6's own scripts prepare images: the protocols that its releases evaluate and infer by.

Source: meituan/YOLOv6, tools/eval.py, yolov6/data/datasets.py and the settings in
configs/experiment/eval_640_repro.py, at 0.2.1 (`v2`) and at 0.4.0 (`v3`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deploykit.recipes.recipe import Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.data.preprocess import Preprocess

STRIDE = 32
"""Of the coarsest features, in pixels."""
_SHRINK = {"v2t": 6, "v2m": 12, "v2l": 8, "v3n": 4, "v3s": 6, "v3m": 4, "v3l": 4}
"""Variant -> pixels by which the image is smaller than the input where its published AP was
measured."""
_SHRINK_OTHERS = 2
_USUAL = 3 / 4
"""Short side over long side of most photographs."""


def protocols(variant: str) -> Mapping[str, Protocol]:
    """Return the protocols of a variant by their names."""
    less = _SHRINK.get(variant, _SHRINK_OTHERS)
    return {
        "evaluation": Protocol(
            "letterbox that shrinks by area: eval.py without rectangles; taken where none is named"
        ),
        "evaluation-640": Protocol(
            f"the same, the image {less} pixels smaller: eval.py --reproduce_640_eval, as the "
            "published AP was measured",
            partial(_smaller, less),
        ),
        "evaluation-rect": Protocol(
            "rectangles with half a stride on each side of the image: eval.py by its default",
            _rectangles,
        ),
        "inference": Protocol(
            "letterbox that resizes linearly: infer.py, and what deployed engines are fed",
            _inferred,
        ),
    }


def _smaller(less: int, made: Preprocess) -> Preprocess:
    longest = max(map(max, made.sizes)) - less
    return replace(made, limits=(longest, longest))


def _rectangles(made: Preprocess) -> Preprocess:
    """Return one for images as long as the input, which gets larger; several sizes stay."""
    longest = max(map(max, made.sizes))
    if made.canvases:
        longest -= STRIDE
    else:
        long, short = _padded(longest), _padded(longest * _USUAL)
        made = replace(made, size=(long, long), canvases=((short, long), (long, short)))
    return replace(made, limits=(longest, longest), margin=STRIDE // 2)


def _padded(side: float) -> int:
    return math.ceil(side / STRIDE + 0.5) * STRIDE


def _inferred(made: Preprocess) -> Preprocess:
    return replace(made, resampler="cv2-linear", rounding="even", mapping="ratio")
