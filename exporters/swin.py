"""Swin transformers T, S, B and L at 224 and 384: ImageNet classifiers; a light one.

Source: github.com/microsoft/Swin-Transformer (MIT) for the names of parameters and the evaluation;
timm's and torchvision's names are read too. See `deploykit.networks.swin`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, PRESETS, STD
from deploykit.networks import swin, swin_names
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes.recipe import KeepFloat, Protocol, Recipe, Variant
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict


def build(variant: str, classes: int, size: tuple[int, int]) -> swin.Classifier:
    """Return the network of a variant as it was trained, in eval mode."""
    return swin.Classifier(swin.VARIANTS[variant], classes, size).eval()


_LATE = "layers.3.downsample.norm.weight"
"""A weight of timm, whose stages begin with what ours end with."""
_TIMM = (
    (re.compile(r"^layers\.(\d+)\.downsample\."), lambda m: f"layers.{int(m[1]) - 1}.downsample."),
    (re.compile(r"^head\.fc\."), "head."),
)
_TORCHVISION = (
    (re.compile(r"^features\.0\.0\."), "patch_embed.proj."),
    (re.compile(r"^features\.0\.2\."), "patch_embed.norm."),
    (
        re.compile(r"^features\.([1357])\.(\d+)\."),
        lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.",
    ),
    (re.compile(r"^features\.([246])\."), lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample."),
    (re.compile(r"\.mlp\.0\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.3\."), ".mlp.fc2."),
)


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the official keys, from those, timm's or torchvision's."""
    rules = _TORCHVISION if "features.0.0.weight" in state else _TIMM if _LATE in state else ()
    kept = {key: value for key, value in state.items() if not swin_names.MADE.search(key)}
    for pattern, new in rules:
        kept = {pattern.sub(new, key): value for key, value in kept.items()}
    return kept


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not a Swin classifier."""
    classes, name = outputs(state, "head.weight"), swin.variant(state)
    if classes is None or name is None:
        return None
    check_colours(inputs(state, "patch_embed.proj.weight") or COLOURS)
    return name, classes


KEEP_FLOAT = (
    KeepFloat(
        r"^head\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is "
        "about a thousandth of the work",
    ),
)
PREPROCESS = replace(PRESETS["imagenet"].sized((224, 224)), interpolation="bicubic")
"""The short side to 256, the centre, ImageNet's mean and deviation."""
LIGHT = Preprocess((64, 64), "letterbox", mean=MEAN, std=STD)
TORCHVISION = {"tiny": 232, "small": 246, "base": 238}
"""Short sides of torchvision's evaluation."""


def _variant(name: str) -> Variant:
    """Return the contract of one size: the official evaluation, and those of the libraries."""
    a = swin.VARIANTS[name]
    last = len(a.depths) - 1
    multiple, features = a.window * swin.PATCH << last, (f"layers.{last}",)
    if name == "light":
        return Variant(LIGHT, KEEP_FLOAT, multiple, features)
    fine = name.endswith("_384")
    made = replace(PREPROCESS, size=(384, 384), resize="stretch") if fine else PREPROCESS
    share = 1.0 if fine else 0.9
    timm = Protocol(
        f"timm's: the centre of {share:.0%} of the short side",
        lambda p: replace(p, resize="crop", crop_fraction=share),
    )
    protocols = {"timm": timm}
    if short := TORCHVISION.get(name):
        protocols["torchvision"] = Protocol(
            f"torchvision's: the centre of an image of which the short side is {short}",
            lambda p: replace(p, crop_fraction=224 / short),
        )
    return Variant(made, KEEP_FLOAT, multiple, features, protocols)


MARKS = ("relative_position_bias_table", "attn.bias")
recipe = Recipe(
    name="swin",
    task="classification",
    variants={name: _variant(name) for name in swin.VARIANTS},
    build=build,
    identify=identify,
    outputs=(Output("logits", "logits"),),
    adapt=adapt,
)
