"""Mask Scoring R-CNN: boxes, a mask for each, and how well that mask fits.

Source: Mask Scoring R-CNN (arXiv 1903.00241).
Key names are maskrcnn-benchmark's, from which the published code is made.
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
    return family.network(variant, classes, "mask_scores")


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is another network."""
    return family.identify(state, facts, "mask_scores")


MARKS = ("roi_heads.maskiou.",)
recipe = Recipe(
    name="mask_scoring_rcnn",
    task="instance_segmentation",
    variants=contract.variants((*two_stage_models.BENCHMARK, two_stage_models.LIGHT)),
    build=build,
    identify=identify,
    adapt=family.adapt,
    deploy=family.deploy,
    outputs=(*family.OUTPUTS, Output("masks", "mask"), Output("mask_scores", "values")),
    extra_inputs=dense_family.image_sizes,
    class_names=family.class_names,
)
