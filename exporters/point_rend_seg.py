"""PointRend for semantic segmentation on a ResNet's pyramid, by the keys of detectron2's project.

Source: PointRend: Image Segmentation as Rendering (arXiv 1912.08193).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from deploykit.data.preprocess import Preprocess
from deploykit.networks.class_names import cityscapes
from deploykit.networks.detectors import adapted, dense_family, detectron2_layout, two_stage_models
from deploykit.networks.detectors.point_rend_semantic import Segmenter
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes.identity import Facts, Found, assumptions, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Choice, Settings
    from deploykit.recipes.recipe import StateDict

PYRAMID = "_fpn"
"""How the name of a variant ends: a ResNet stands before."""


def network(variant: str, classes: int, settings: Settings) -> Segmenter:
    """Return the network of a variant as it was trained, in eval mode."""
    made = Segmenter(variant.removesuffix(PYRAMID), classes)
    adapted.set_strides(made, settings)
    return made.eval()


def choices(variant: str) -> dict[str, Choice]:
    """Return the settings of a variant."""
    return detectron2_layout.choices(variant, {})


def build(variant: str, classes: int, _: tuple[int, int]) -> Segmenter:
    """Return the network of a variant with the settings of the published one."""
    return network(variant, classes, resolve(choices(variant), Facts()))


def adapt(state: StateDict) -> StateDict:
    """Return `state` with torchvision's names of the body and its pyramid."""
    made = detectron2_layout.adapt(state)
    del made[detectron2_layout.MARK]
    return made


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is another network."""
    classes = outputs(state, "sem_seg_head.coarse_sem_seg_head.predictor.weight")
    body = two_stage_models.body(state)
    if classes is None or f"{body}{PYRAMID}" not in VARIANTS:
        return None
    check_colours(inputs(state, "backbone.body.conv1.weight") or COLOURS)
    variant = stated(facts, f"{body}{PYRAMID}", VARIANTS)
    known, sizes = choices(variant), two_stage_models.Sizes(classes)
    settings = resolve(known, facts, detectron2_layout.stored(state, sizes, facts))

    def made() -> Any:  # noqa: ANN401 - a network with entries of its file
        found = network(variant, classes, settings)
        adapted.keep(found, (key for key in state if key in ("pixel_mean", "pixel_std")), state)
        return found

    return Found(
        variant,
        classes,
        settings,
        build=made,
        preprocess=partial(dense_family.set_up, PREPROCESS, settings),
        assumed=assumptions(known, settings),
    )


KEEP_FLOAT = (
    KeepFloat(
        r"^sem_seg_head\.(coarse_sem_seg_head|point_head)\.predictor\b",
        "its outputs are the class scores, which INT8 would round to ties, and its cost is small",
    ),
    KeepFloat(
        r"^sem_seg_head\.(places|doubt)\b",
        "places of points in cells of a map, and the ranking of points: above 512 cells "
        "neighbouring FP16 numbers are half a cell apart",
        Precision.FP32,
    ),
)
PREPROCESS = (
    Preprocess(
        (1024, 2048),
        "corner",
        channels="BGR",
        scale=1.0,
        mean=detectron2_layout.MEAN_BGR,
        pad_value=None,
        rounding="half-up",
    )
    .at_scale(1024, 2048)
    .turned()
)
"""The short side 1024 pixels, the long one up to 2048: Cityscapes' images as they are."""
VARIANTS = {
    f"{body}{PYRAMID}": Variant(PREPROCESS, KEEP_FLOAT, 32, ("backbone.fpn",))
    for body in ("resnet18", "resnet50", "resnet101", "resnext101_32x8d")
}
MARKS = ("coarse_sem_seg_head.",)
recipe = Recipe(
    name="point_rend_seg",
    task="semantic_segmentation",
    variants=VARIANTS,
    build=build,
    identify=identify,
    outputs=(Output("out", "logits"),),
    adapt=adapt,
    class_names=cityscapes,
)
