"""PointRend on Mask R-CNN: boxes, and masks of 224 by 224 whose doubtful points are computed anew.

Source: PointRend: Image Segmentation as Rendering (arXiv 1912.08193).
Key names are those of detectron2's project, in both of its forms.
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
    return family.network(variant, classes, "mask_points")


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is another network."""
    return family.identify(state, facts, "mask_points")


MARKS = ("coarse_head.",)
recipe = Recipe(
    name="point_rend",
    task="instance_segmentation",
    variants=contract.variants((*two_stage_models.DETECTRON2, two_stage_models.LIGHT)),
    build=build,
    identify=identify,
    adapt=family.adapt,
    deploy=family.deploy,
    outputs=(*family.OUTPUTS, Output("masks", "mask")),
    extra_inputs=dense_family.image_sizes,
    class_names=family.class_names,
)
