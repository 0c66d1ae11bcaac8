"""HRNetV2 for semantic segmentation, with and without the head of object contexts (OCR).

Source: github.com/HRNet/HRNet-Semantic-Segmentation (MIT) for the names of parameters and for
`align_corners`; see `deploykit.networks.hrnet`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.networks.class_names import cityscapes
from deploykit.networks.hrnet import backbone, heads
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes.identity import Choice, Found, assumptions, resolve, stated, truth
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output
from deploykit.tasks.semantic import ALIGNED
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

OCR = "_ocr"
"""How the name of a variant with the head of object contexts ends."""
SIZES = ("w18_small", "w18_small_v2", "w18", "w32", "w48")
_WRAPPED, _LOSS = "model.", "loss."
"""What names begin with in a checkpoint of the training script, which stores its loss beside."""


def network(variant: str, classes: int, *, aligned: bool) -> heads.Segmenter:
    """Return the network of a variant as it was trained, in eval mode."""
    kind = heads.ContextSegmenter if variant.endswith(OCR) else heads.Segmenter
    size = backbone.VARIANTS[variant.removesuffix(OCR)]
    return kind(size, classes, "aligned" if aligned else "bilinear").eval()


def build(variant: str, classes: int, _: tuple[int, int]) -> heads.Segmenter:
    """Return the network of a variant as its published weights want it."""
    return network(variant, classes, aligned=variant.endswith(OCR))


def adapt(state: StateDict) -> StateDict:
    """Return `state` without what the training script stores around the network."""
    if not any(key.startswith(_WRAPPED) for key in state):
        return state
    kept = {key: value for key, value in state.items() if not key.startswith(_LOSS)}
    return {key.removeprefix(_WRAPPED): value for key, value in kept.items()}


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return the variant, the number of classes and the setting, None for another network."""
    plain, context = (outputs(state, f"{key}.weight") for key in ("last_layer.3", "cls_head"))
    ocr = "ocr_distri_head.conv_bn_dropout.0.weight" in state
    classes, size = context if ocr else plain, backbone.variant(state)
    if classes is None or size is None:
        return None
    check_colours(inputs(state, "conv1.weight") or COLOURS)
    variant = stated(facts, size + OCR if ocr else size, VARIANTS)
    corners = Choice(ocr, "maps grown with the corners aligned:", truth)
    settings = resolve({ALIGNED: corners}, facts)
    return Found(
        variant,
        classes,
        settings,
        build=lambda: network(variant, classes, aligned=bool(settings[ALIGNED].value)),
        assumed=assumptions({ALIGNED: corners}, settings),
    )


KEEP_FLOAT = (
    KeepFloat(
        r"^(last_layer\.3|cls_head)\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is a "
        "small part of the work",
    ),
    KeepFloat(
        r"^ocr_gather_head\b",
        "shares of a hundred thousand pixels lie below the normal numbers of FP16",
        Precision.FP32,
    ),
)
PREPROCESS = Preprocess(
    (1024, 2048),
    "corner",
    mean=MEAN,
    std=STD,
    pad_value=None,
    resampler="cv2-linear",
)
"""Images of Cityscapes pixel by pixel; others as large as they fit."""
VARIANTS = {
    name: Variant(PREPROCESS, KEEP_FLOAT, 1, ("stage4",))
    for size in SIZES
    for name in (size, size + OCR)
}
MARKS = ("last_layer.", "ocr_distri_head.")
recipe = Recipe(
    name="hrnet_seg",
    task="semantic_segmentation",
    variants=VARIANTS,
    build=build,
    identify=identify,
    outputs=(Output("out", "logits"),),
    adapt=adapt,
    class_names=cityscapes,
)
