"""FCOS on a ResNet pyramid, as torchvision defines it.

Source: torchvision.models.detection.fcos; FCOS (arXiv 1904.01355).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchvision.models.detection import fcos

from deploykit.networks.detectors import dense, dense_family, grids
from deploykit.networks.states import outputs
from deploykit.recipes.recipe import Recipe

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

VARIANTS = {f"{body}_fpn": body for body in dense_family.BODIES}


def build(variant: str, classes: int, _: tuple[int, int]) -> dense.Pyramid:
    """Return the network of a variant as it was trained, in eval mode."""
    model = fcos.FCOS(dense_family.pyramid(VARIANTS[variant]), classes)
    return dense.Pyramid(model, grids.spread).eval()


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not an FCOS."""
    classes = outputs(state, "head.classification_head.cls_logits.weight")
    centres = outputs(state, "head.regression_head.bbox_ctrness.weight")
    body = dense_family.body(state)
    if classes is None or centres != 1 or body is None:
        return None
    return f"{body}_fpn", classes


MARKS = ("bbox_ctrness.",)
recipe = Recipe(
    name="fcos",
    task="detection",
    variants=dict.fromkeys(VARIANTS, dense_family.VARIANT),
    build=build,
    identify=identify,
    adapt=dense_family.adapt,
    outputs=dense_family.OUTPUTS,
    class_names=dense_family.class_names,
)
