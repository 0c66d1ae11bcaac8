"""Faster R-CNN with VGG-16 and RoIPool, as published in 2015.

Source: arXiv 1506.01497; key names of github.com/jwyang/faster-rcnn.pytorch (MIT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.networks.detectors import dense_family, vgg, vgg_family
from deploykit.recipes.recipe import Recipe

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict


def build(variant: str, classes: int, _: tuple[int, int]) -> vgg.FasterRcnn:
    """Return the network of a variant as it was trained, in eval mode."""
    return vgg.FasterRcnn(vgg.VARIANTS[variant], classes).eval()


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is another network."""
    return vgg_family.identify(state, proposals=True)


MARKS = ("rpn.cls_score.", "RCNN_rpn.")
recipe = Recipe(
    name="faster_rcnn_vgg16",
    task="detection",
    variants=dict.fromkeys(tuple(vgg.VARIANTS), vgg_family.VARIANT),
    build=build,
    identify=identify,
    adapt=vgg_family.adapt,
    outputs=vgg_family.OUTPUTS,
    extra_inputs=dense_family.image_sizes,
    class_names=vgg_family.class_names,
)
