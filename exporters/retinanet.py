"""RetinaNet on a pyramid of a ResNet, as torchvision defines it, or of MPViT.

Source: torchvision.models.detection.retinanet; Focal Loss (arXiv 1708.02002).
Key names are torchvision's, and detectron2's and mmdetection's, see `retinanet_layouts`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torchvision.models.detection import retinanet

from deploykit.networks.detectors import dense, dense_family, grids, layouts
from deploykit.networks.detectors import retinanet_layouts as others
from deploykit.networks.detectors.dense_family import Sizes
from deploykit.networks.states import outputs
from deploykit.recipes.identity import stated
from deploykit.recipes.recipe import Recipe

if TYPE_CHECKING:
    from deploykit.networks.detectors.settings import Model
    from deploykit.recipes.identity import Facts, Found
    from deploykit.recipes.recipe import StateDict

ANCHORS = 9
"""Per cell: three sizes of three shapes."""
GROUPS = 32
"""Of the group norms in the heads of the second version."""
EPS0 = "resnet50_fpn_eps0"
"""torchvision's published COCO_V1 weights, and what was trained from them: their frozen batch norms
have an epsilon of 0. Weights trained from a published backbone alone have 1e-5: `resnet50_fpn`."""
VARIANTS = {
    **{f"{body}_fpn": (body, False) for body in dense_family.BODIES},
    "resnet50_fpn_v2": ("resnet50", True),
    EPS0: ("resnet50", False),
}
"""Variant -> body, and whether it is torchvision's second version: group norms in the heads, and
the sixth level made from the body's last features."""


def build(variant: str, classes: int, _: tuple[int, int]) -> dense.Pyramid:
    """Return the network of a variant as it was trained, in eval mode."""
    if variant in others.VARIANTS:
        return others.build(variant, classes)
    return _wrapped(_model(variant, Sizes(classes, ANCHORS)))


def _model(variant: str, sizes: Sizes) -> Model:
    body, second = VARIANTS[variant]
    backbone = dense_family.pyramid(body, sizes, from_features=second)
    norm = partial(nn.GroupNorm, GROUPS) if second else None
    made = retinanet.RetinaNet(
        backbone,
        sizes.classes,
        anchor_generator=dense_family.generator(sizes, retinanet._default_anchorgen()),  # noqa: SLF001 - not kept under another name
        head=retinanet.RetinaNetHead(
            backbone.out_channels, sizes.anchors, sizes.classes, norm_layer=norm
        ),
    )
    for module in made.modules() if variant == EPS0 else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return made


def _wrapped(model: Model) -> dense.Pyramid:
    return dense.Pyramid(model, grids.moved).eval()


_OLD_HEAD = re.compile(r"^(head\.(?:classification|regression)_head\.conv)\.(\d)\.(weight|bias)$")


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of torchvision 0.13 or later.

    Before, the four convolutions of a head were numbers 0, 2, 4 and 6 of one sequence.
    """
    return {
        _OLD_HEAD.sub(lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", key): value
        for key, value in dense_family.adapt(others.adapt(state)).items()
    }


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is not a RetinaNet."""
    scores = outputs(state, "head.classification_head.cls_logits.weight")
    boxes = outputs(state, "head.regression_head.bbox_reg.weight")
    centres = "head.regression_head.bbox_ctrness.weight" in state
    if not scores or not boxes or boxes % 4 or scores % (boxes // 4) or centres:
        return None
    sizes = Sizes.of(state, scores // (boxes // 4), boxes // 4)
    if layout := layouts.of_mark(state):
        named = f"{layout.MARK}_{others.body(state)}_fpn"
        known = named in others.VARIANTS
        variant = stated(facts, named, others.VARIANTS) if known else None
        return others.found(variant, sizes, state, facts) if variant else None
    kind = dense_family.body(state), "head.classification_head.conv.0.1.weight" in state
    name = next((name for name, known in VARIANTS.items() if known == kind), None)
    if name is None:
        return None
    published = kind == VARIANTS[EPS0] and dense_family.epsilon(state, facts) == 0
    variant = stated(facts, EPS0 if published else name, VARIANTS)
    return dense_family.found(variant, partial(_model, variant), sizes, facts, _wrapped)


MARKS = ("head.classification_head.", "head.cls_subnet.", "bbox_head.retina_cls.")
recipe = Recipe(
    name="retinanet",
    task="detection",
    variants=dict.fromkeys(VARIANTS, dense_family.VARIANT) | others.contracts(),
    build=build,
    identify=identify,
    adapt=adapt,
    outputs=dense_family.OUTPUTS,
    extra_inputs=dense_family.image_sizes,
    class_names=dense_family.class_names,
)
