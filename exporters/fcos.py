"""FCOS on a ResNet pyramid, as torchvision defines it.

Source: torchvision.models.detection.fcos; FCOS (arXiv 1904.01355).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torchvision.models.detection import fcos

from deploykit.networks.detectors import dense, dense_family, grids
from deploykit.networks.detectors.dense_family import Sizes
from deploykit.networks.states import outputs
from deploykit.recipes.identity import stated
from deploykit.recipes.recipe import Recipe

if TYPE_CHECKING:
    from deploykit.networks.detectors.settings import Model
    from deploykit.recipes.identity import Facts, Found
    from deploykit.recipes.recipe import StateDict

VARIANTS = {f"{body}_fpn": body for body in dense_family.BODIES}


ANCHORS = 1
"""Per cell: a point, whose side is that of the cell."""


def build(variant: str, classes: int, _: tuple[int, int]) -> dense.Pyramid:
    """Return the network of a variant as it was trained, in eval mode."""
    return _wrapped(_model(variant, Sizes(classes, ANCHORS)))


def _model(variant: str, sizes: Sizes) -> Model:
    made = fcos.FCOS(dense_family.pyramid(VARIANTS[variant], sizes), sizes.classes)
    made.anchor_generator = dense_family.generator(sizes, made.anchor_generator)
    return made


def _wrapped(model: Model) -> dense.Pyramid:
    return dense.Pyramid(model, grids.spread).eval()


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is not an FCOS."""
    classes = outputs(state, "head.classification_head.cls_logits.weight")
    centres = outputs(state, "head.regression_head.bbox_ctrness.weight")
    body = dense_family.body(state)
    if classes is None or centres != 1 or body is None:
        return None
    variant = stated(facts, f"{body}_fpn", VARIANTS)
    sizes = Sizes.of(state, classes, ANCHORS)
    return dense_family.found(variant, partial(_model, variant), sizes, facts, _wrapped)


MARKS = ("bbox_ctrness.",)
recipe = Recipe(
    name="fcos",
    task="detection",
    variants=dict.fromkeys(VARIANTS, dense_family.VARIANT),
    build=build,
    identify=identify,
    adapt=dense_family.adapt,
    outputs=dense_family.OUTPUTS,
    extra_inputs=dense_family.image_sizes,
    class_names=dense_family.class_names,
)
