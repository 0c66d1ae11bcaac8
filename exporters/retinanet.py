"""RetinaNet on a ResNet pyramid, as torchvision defines it.

Source: torchvision.models.detection.retinanet; Focal Loss (arXiv 1708.02002).
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torchvision.models.detection import retinanet

from deploykit.networks.detectors import dense, dense_family, grids
from deploykit.networks.states import outputs
from deploykit.recipes.recipe import Recipe

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
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
    body, second = VARIANTS[variant]
    backbone = dense_family.pyramid(body, from_features=second)
    norm = partial(nn.GroupNorm, GROUPS) if second else None
    head = retinanet.RetinaNetHead(backbone.out_channels, ANCHORS, classes, norm_layer=norm)
    model = retinanet.RetinaNet(backbone, classes, head=head)
    for module in model.modules() if variant == EPS0 else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return dense.Pyramid(model, grids.moved).eval()


_OLD_HEAD = re.compile(r"^(head\.(?:classification|regression)_head\.conv)\.(\d)\.(weight|bias)$")


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of torchvision 0.13 or later.

    Before, the four convolutions of a head were numbers 0, 2, 4 and 6 of one sequence.
    """
    return {
        _OLD_HEAD.sub(lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", key): value
        for key, value in dense_family.adapt(state).items()
    }


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not a RetinaNet."""
    scores = outputs(state, "head.classification_head.cls_logits.weight")
    boxes = outputs(state, "head.regression_head.bbox_reg.weight")
    if scores is None or boxes != 4 * ANCHORS:
        return None
    found = dense_family.body(state), "head.classification_head.conv.0.1.weight" in state
    if found == VARIANTS[EPS0] and not any(k.endswith("num_batches_tracked") for k in state):
        return EPS0, scores // ANCHORS
    return next(
        ((name, scores // ANCHORS) for name, expected in VARIANTS.items() if expected == found),
        None,
    )


MARKS = ("head.classification_head.",)
recipe = Recipe(
    name="retinanet",
    task="detection",
    variants=dict.fromkeys(VARIANTS, dense_family.VARIANT),
    build=build,
    identify=identify,
    adapt=adapt,
    outputs=dense_family.OUTPUTS,
    class_names=dense_family.class_names,
)
