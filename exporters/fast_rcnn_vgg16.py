"""Fast R-CNN with VGG-16: the regions, from selective search or elsewhere, are a second input.

Source: arXiv 1504.08083; layers and key names are those of `faster_rcnn_vgg16` without its region
proposal network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.data.preprocess import PROPOSALS
from deploykit.networks.detectors import dense_family, vgg, vgg_family
from deploykit.recipes.recipe import Recipe
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from deploykit.data.preprocess import Preprocess
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

REGIONS = 2000
"""Rows of the second input: what the paper takes from selective search for an image."""


def build(variant: str, classes: int, _: tuple[int, int]) -> vgg.FastRcnn:
    """Return the network of a variant as it was trained, in eval mode."""
    return vgg.FastRcnn(vgg.VARIANTS[variant], classes).eval()


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is another network."""
    return vgg_family.identify(state, proposals=False)


def inputs(preprocess: Preprocess) -> tuple[TensorSpec, ...]:
    """Return what the network takes beside images: boxes in pixels of the prepared image first."""
    regions = TensorSpec(PROPOSALS, "float32", ("batch", REGIONS, 4))
    return (regions, *dense_family.image_sizes(preprocess))


MARKS = ("head.cls_score.", "RCNN_cls_score.")
recipe = Recipe(
    name="fast_rcnn_vgg16",
    task="detection",
    variants=dict.fromkeys(
        ("vgg16", "vgg16_agnostic"),
        vgg_family.VARIANT,
    ),
    build=build,
    identify=identify,
    adapt=vgg_family.adapt,
    outputs=vgg_family.OUTPUTS,
    extra_inputs=inputs,
    class_names=vgg_family.class_names,
)
