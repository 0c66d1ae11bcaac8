"""Mask R-CNN with a feature pyramid: boxes and a mask for each.

Source: Mask R-CNN (arXiv 1703.06870) and FPN (arXiv 1612.03144).
Key names are torchvision's, detectron2's, maskrcnn-benchmark's and mmdetection's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.networks.detectors import dense_family, two_stage_models
from deploykit.networks.detectors import two_stage_contract as contract
from deploykit.networks.detectors import two_stage_family as family
from deploykit.recipes.recipe import Recipe
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from deploykit.networks.detectors.two_stage import TwoStage
    from deploykit.recipes.identity import Facts, Found
    from deploykit.recipes.recipe import StateDict


def build(variant: str, classes: int, _: tuple[int, int]) -> TwoStage:
    """Return the network of a variant as it was trained, in eval mode."""
    return family.network(variant, classes, "masks")


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is another network."""
    return family.identify(state, facts, "masks")


MARKS = ("rpn.head.", "rpn_head.")
recipe = Recipe(
    name="mask_rcnn",
    task="instance_segmentation",
    variants=contract.variants(
        (
            *two_stage_models.COMMON,
            *two_stage_models.MMDET,
            two_stage_models.V2,
            two_stage_models.LIGHT,
        )
    ),
    build=build,
    identify=identify,
    adapt=family.adapt,
    deploy=family.deploy,
    outputs=(*family.OUTPUTS, Output("masks", "mask")),
    extra_inputs=dense_family.image_sizes,
    class_names=family.class_names,
)
