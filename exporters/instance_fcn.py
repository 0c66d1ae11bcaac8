"""InstanceFCN: a mask for each object of an image, whatever it is; on VGG-16, and a light one.

Source: arXiv 1603.08678. No weights are published; key names are torchvision's for VGG-16
(`features.N`) and `instance.{0,2}`, `objectness.{0,2}` for the heads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.networks import instance_fcn
from deploykit.networks.detectors import dense, dense_family, vgg_family
from deploykit.networks.instance_fcn import InstanceFcn, Limits
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes import identity
from deploykit.recipes.identity import Choice, Found, Setting, assumptions, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks import masks
from deploykit.tasks.outputs import Output
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts, Plain
    from deploykit.recipes.recipe import StateDict

LAST = (2, 7, 14, 21, 28)
"""Numbers of VGG-16's convolutions that end its stages: they have their widths."""
SIZES = {"vgg16": instance_fcn.WIDTHS, "light": instance_fcn.LIGHT_WIDTHS}
"""Variant -> channels of its stages; others are the first one's by another width."""
USUAL = Limits()


def up_to(most: int) -> Any:  # noqa: ANN401 - a check of a setting
    """Return the check for a whole number of at most `most`."""

    def check(value: Plain) -> int:
        if identity.count(value) > most:
            raise ValueError(f"a whole number of 1 to {most}")
        return identity.count(value)

    return check


CHOICES = {
    "window": Choice(USUAL.window, "cells along a window", up_to(64)),
    "candidates": Choice(USUAL.candidates, "windows that are assembled", up_to(dense.MOST)),
    "nms_threshold": Choice(USUAL.iou, "overlap up to", identity.share),
    "score_threshold": Choice(USUAL.score, "scores above", identity.share),
    "detections": Choice(USUAL.detections, "objects per image", up_to(dense.MOST)),
}


def build(variant: str, classes: int, _: tuple[int, int]) -> InstanceFcn:  # noqa: ARG001 - there is one
    """Return the network as it was trained, in eval mode."""
    return InstanceFcn(widths=SIZES[variant]).eval()


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the user say, None where it is another network."""
    maps, one = outputs(state, "instance.2.weight"), outputs(state, "objectness.2.weight")
    widths = tuple(outputs(state, f"features.{number}.weight") for number in LAST)
    bins = math.isqrt(maps or 0)
    if one != 1 or not bins or bins * bins != maps or None in widths:
        return None
    check_colours(inputs(state, "features.0.weight") or COLOURS)
    settings = resolve(CHOICES, facts)
    value: Any = {name: setting.value for name, setting in settings.items()}
    limits = replace(
        USUAL,
        window=value["window"],
        candidates=value["candidates"],
        iou=value["nms_threshold"],
        score=value["score_threshold"],
        detections=value["detections"],
    )
    assumed = assumptions(CHOICES, settings)
    settings[masks.SETTING] = Setting("exact", "weights")
    sizes = tuple(int(width or 0) for width in widths)
    return Found(
        stated(facts, "light" if sizes == SIZES["light"] else "vgg16", recipe.variants),
        1,
        settings,
        build=lambda: InstanceFcn(bins, limits, sizes),
        assumed=assumed,
        class_names=("object",),
    )


KEEP_FLOAT = (
    KeepFloat(
        r"^(instance|objectness)\.2\b",
        "their outputs are the masks and the scores themselves, and their cost is small",
    ),
    KeepFloat(
        r"^select\b",
        "ranking of scores, and boxes in pixels: above 512 px neighbouring FP16 numbers are "
        "0.5 px apart",
        Precision.FP32,
    ),
)
LIGHT = Preprocess((448, 448), "stretch", mean=MEAN, std=STD)
"""Objects of 30 to 170 pixels, 4 to 21 cells, have windows that fit them."""
MARKS = ("objectness.2.",)
recipe = Recipe(
    name="instance_fcn",
    task="instance_segmentation",
    variants={
        name: Variant(preprocess, KEEP_FLOAT, instance_fcn.STRIDE, features=("features",))
        for name, preprocess in (("vgg16", vgg_family.PREPROCESS), ("light", LIGHT))
    },
    build=build,
    identify=identify,
    outputs=(*dense_family.OUTPUTS, Output("masks", "mask")),
    extra_inputs=dense_family.image_sizes,
    class_names=lambda count: ("object",) * count,
)
