"""MPViT T, XS, S and B: ImageNet classifiers; a light one.

The names of parameters and the evaluation are those of the published checkpoints; see
`deploykit.networks.mpvit`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, PRESETS, STD
from deploykit.networks import mpvit, mpvit_names
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes.recipe import KeepFloat, Protocol, Recipe, Variant
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict


def build(variant: str, classes: int, _: tuple[int, int]) -> mpvit.Classifier:
    """Return the network of a variant as it was trained, in eval mode."""
    return mpvit.Classifier(mpvit.VARIANTS[variant], classes).eval()


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not an MPViT classifier."""
    classes, name = outputs(state, "cls_head.cls.weight"), mpvit_names.variant(state)
    if classes is None or name is None:
        return None
    check_colours(inputs(state, "stem.0.conv.weight") or COLOURS)
    return name, classes


KEEP_FLOAT = (
    KeepFloat(
        r"^cls_head\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is "
        "about a thousandth of the work",
    ),
)
PREPROCESS = replace(PRESETS["imagenet"].sized((224, 224)), interpolation="bicubic")
"""The short side to 256, the centre, ImageNet's mean and deviation."""
PROTOCOLS = {
    "timm": Protocol(
        "timm's: the centre of 90% of the short side, as the published settings say",
        lambda made: replace(made, crop_fraction=0.9),
    )
}
LIGHT = Preprocess((64, 64), "letterbox", mean=MEAN, std=STD)
FEATURES = ("mhca_stages.3",)
MARKS = ("mhca_stages.",)
recipe = Recipe(
    name="mpvit",
    task="classification",
    variants={
        **dict.fromkeys(mpvit.SIZES, Variant(PREPROCESS, KEEP_FLOAT, 32, FEATURES, PROTOCOLS)),
        "light": Variant(LIGHT, KEEP_FLOAT, 32, FEATURES),
    },
    build=build,
    identify=identify,
    outputs=(Output("logits", "logits"),),
    adapt=mpvit_names.shared,
)
