"""PointRend for semantic segmentation on DeepLabV3.

Source: PointRend: Image Segmentation as Rendering (arXiv 1912.08193).
Key names are those of the project zsef123/PointRend-PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.networks.class_names import cityscapes
from deploykit.networks.detectors import point_rend_deeplab as network
from deploykit.networks.states import COLOURS, check_colours, children, inputs, outputs
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

BODY, SCORES, POINT = "backbone.backbone", "backbone.classifier.4.weight", "head.mlp.weight"
FIRST = f"{BODY}.conv1.weight"


def build(variant: str, classes: int, _: tuple[int, int]) -> network.Segmenter:
    """Return the network of a variant as it was trained, in eval mode."""
    return network.Segmenter(variant, classes).eval()


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is no such network."""
    classes, point, first = outputs(state, SCORES), state.get(POINT), state.get(FIRST)
    if classes is None or point is None or first is None or first.ndim != 4:
        return None
    if tuple(point.shape) != (classes, classes + network.FINE, 1):
        return None
    check_colours(inputs(state, FIRST) or COLOURS)
    blocks, large = len(children(state, f"{BODY}.layer3")), first.shape[3] == 3
    for name, counts in network.BLOCKS.items():
        if counts[2] == blocks:
            own = {plain: name for name, plain in network.LARGE.items()}
            return (own[name] if large else name), classes
    return None


def adapt(state: StateDict) -> StateDict:
    """Return `state` without the classifier of the ResNet, which the network lacks."""
    return {key: value for key, value in state.items() if not key.startswith(f"{BODY}.fc.")}


KEEP_FLOAT = (
    KeepFloat(
        r"^(backbone\.classifier\.4|head\.mlp)\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is a "
        "small part of the work",
    ),
    KeepFloat(
        r"^head\.(places|doubt)\b",
        "places of points in cells of a map, and the ranking of points: above 512 cells "
        "neighbouring FP16 numbers are half a cell apart",
        Precision.FP32,
    ),
)
PREPROCESS = Preprocess((768, 768), "stretch", mean=MEAN, std=STD)
"""The project's, for images of Cityscapes."""
MARKS = ("head.mlp.", "backbone.classifier.")
recipe = Recipe(
    name="point_rend_deeplab",
    task="semantic_segmentation",
    variants={
        name: Variant(PREPROCESS, KEEP_FLOAT, network.STRIDE, ("backbone.backbone.layer4",))
        for name in (*network.BLOCKS, *network.LARGE)
    },
    build=build,
    identify=identify,
    outputs=(Output("out", "logits"),),
    adapt=adapt,
    class_names=cityscapes,
)
