"""Mask R-CNN with a feature pyramid as matterport's Keras code has it: boxes and a mask for each.

Source: Mask R-CNN (arXiv 1703.06870); layers, images and limits are those of
github.com/matterport/Mask_RCNN (MIT), whose `.h5` files are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.data.feeding import IMAGE_WINDOWS
from deploykit.networks.detectors import dense_family, keras_family, keras_layout, keras_rcnn
from deploykit.networks.detectors import two_stage_family as family
from deploykit.networks.detectors.keras_network import KerasMaskRcnn
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output
from deploykit.values import Precision, TensorSpec

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts, Found
    from deploykit.recipes.recipe import StateDict

MULTIPLE = keras_rcnn.STRIDES[-1]
"""Of which both sides of an input are."""


def build(variant: str, classes: int, _: tuple[int, int]) -> KerasMaskRcnn:
    """Return the network of a variant as it was trained, in eval mode."""
    return KerasMaskRcnn(variant, classes).eval()


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the user say, None where it is another network."""
    return keras_family.identify(state, facts)


KEEP_FLOAT = (
    KeepFloat(
        r"^rpn\.(class_raw|bbox_pred)\b",
        "1x1 convolutions whose outputs rank the proposals and place them: 255 levels would merge "
        "scores and move boxes, and their cost is small",
    ),
    KeepFloat(
        r"^(box\.(logits|bbox_fc)|mask\.mask)\b",
        "their outputs are the scores, box sides and masks themselves, and their cost is small",
    ),
    KeepFloat(
        r"^(propose|select)\b",
        "boxes as shares of the input: a thousandth is a pixel, and FP16 has two numbers in one",
        Precision.FP32,
    ),
)
MARKS = ("mrcnn_class_conv1/", "box.bbox_fc.")
recipe = Recipe(
    name="keras_mask_rcnn",
    task="instance_segmentation",
    variants={
        name: Variant(keras_family.PREPROCESS, KEEP_FLOAT, MULTIPLE, features=("pyramid",))
        for name in keras_rcnn.TRUNKS
    },
    build=build,
    identify=identify,
    adapt=keras_layout.adapt,
    deploy=keras_rcnn.deploy,
    outputs=(*dense_family.OUTPUTS, Output("masks", "mask")),
    extra_inputs=lambda _: (TensorSpec(IMAGE_WINDOWS, "float32", ("batch", 4)),),
    class_names=family.class_names,
)
