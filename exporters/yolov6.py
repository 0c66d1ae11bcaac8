"""YOLOv6: releases 0.2 (RepPAN neck) and 0.3 / 0.4 (RepBiFPAN neck), and a tiny `pico`.

Source: the names and shapes in the official checkpoints; see `deploykit.networks.yolov6`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.networks.reparam import fold
from deploykit.networks.states import outputs
from deploykit.networks.yolov6.network import VARIANTS, Architecture, Network
from deploykit.recipes.recipe import Family, KeepFloat, Recipe
from deploykit.tasks import detection
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.recipes.recipe import StateDict
    from deploykit.tasks.detections import Detections


def build(variant: str, classes: int) -> Network:
    """Return the network of a variant as it was trained, in eval mode."""
    return Network(VARIANTS[variant], classes).eval()


_EXTRAS = re.compile(r"detect\.(reg_preds_dist|(cls|reg)_preds_ab)\.")
"""Branches that only training reads: self-distillation and the anchor-based aid."""
_BARE = re.compile(r"((?:.*\.)?(?!block\.|rbr_dense\.|rbr_1x1\.)[^.]+)\.(conv|bn)\.([^.]+)")
_POOL = re.compile(r"(backbone\.ERBlock_5\.2\.)(cv\d\..*)")
_BIAS = re.compile(r"(.*\.block)\.conv\.bias")


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of release 0.4; without branches that only training reads.

    Releases 0.1 to 0.3 lack the levels `.block` of a convolution with batch norm and `.sppf` or
    `.cspsppf` of the pooling layer, and give some convolutions a bias before their batch norm:
    norm(x + bias) is the norm of x with a mean less by the bias.
    """
    kind = "cspsppf" if any(k.startswith("backbone.ERBlock_5.2.cv3.") for k in state) else "sppf"
    kept = {_renamed(key, kind): v for key, v in state.items() if not _EXTRAS.match(key)}
    for key in [k for k in kept if _BIAS.fullmatch(k)]:
        mean = _BIAS.sub(r"\1.bn.running_mean", key)
        if mean in kept:
            kept[mean] = kept[mean] - kept.pop(key)
    return kept


def _renamed(key: str, kind: str) -> str:
    pooled = _POOL.sub(rf"\1{kind}.\2", key)
    return _BARE.sub(r"\1.block.\2.\3", pooled) if _BARE.fullmatch(pooled) else pooled


_STEM = {"repvgg": "rbr_dense", "conv_silu": "block"}


def identify(state: StateDict) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not a YOLOv6."""
    classes, found = outputs(state, "detect.cls_preds.0.bias"), _signature(state)
    if classes is None:
        return None
    return next(((name, classes) for name, a in VARIANTS.items() if found == _expected(a)), None)


def _signature(state: StateDict) -> tuple[object, ...]:
    """Return what tells the variants apart: neck, pooling, block, CSP, stem, depth, box outputs."""
    stems = {kind: f"backbone.stem.{name}.conv.weight" for kind, name in _STEM.items()}
    block = next((kind for kind, key in stems.items() if key in state), "repvgg")
    csp = "backbone.ERBlock_4.1.cv1.block.conv.weight" in state
    prefix = "backbone.ERBlock_4.1." + ("m.block." if csp else "block.")
    return (
        "RepBiFPAN" if "neck.Bifusion0.cv1.block.conv.weight" in state else "RepPAN",
        "cspsppf" if "backbone.ERBlock_5.2.cspsppf.cv1.block.conv.weight" in state else "sppf",
        block,
        csp,
        outputs(state, stems[block]),
        len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)}),
        outputs(state, "detect.reg_preds.0.bias"),
    )


def _expected(a: Architecture) -> tuple[object, ...]:
    channels, repeats = a.scaled()
    depth = (repeats[2] if a.csp is None else repeats[2] // 2) - 1
    sides = 4 * (a.reg_max + 1)
    return a.neck, a.pooling, a.block, a.csp is not None, channels[0], depth, sides


def preprocess(variant: str, size: tuple[int, int] | None) -> Preprocess:
    """Return how the official evaluation letterboxes to `size`, by default 640x640.

    pico, by default 320x320, was trained on images that Pillow resized.
    """
    if variant == "pico":
        return Preprocess(size or (320, 320))
    return Preprocess(size or (640, 640), resampler="cv2-area", rounding="down")


def decode(outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /) -> list[Detections]:
    """Return the objects in each image: at most 300, scores over 0.03, after class-wise NMS."""
    return detection.decode(outputs["outputs"], geometries)


recipe = Recipe(
    name="yolov6",
    task="detection",
    variants=tuple(VARIANTS),
    family=Family(build, adapt, identify, fold),
    preprocess=preprocess,
    outputs=("outputs",),
    decode=decode,
    keep_float=(
        KeepFloat(
            r"detect\.(cls|reg)_preds\.",
            "1x1 convolutions whose outputs are the scores and box sides themselves: 255 levels "
            "over all classes or sides move boxes and merge scores, and their cost is small",
        ),
        KeepFloat(
            r"detect\.boxes\b",
            "decoding to pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
            Precision.FP32,
        ),
    ),
)
