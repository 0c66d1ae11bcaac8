"""R-CNN: regions from selective search or elsewhere, each warped and judged by linear machines.

Source: arXiv 1311.2524. Layers have Caffe's names (`conv1` to `fc7`), the machines are `svm`, the
regressors `box`; `mean`, `fc7_scale`, `pool5_scale`, `box_unwhiten` and `box_mean` are what its
MATLAB code keeps beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.data.preprocess import PROPOSALS, Preprocess
from deploykit.errors import CheckpointError
from deploykit.networks.detectors import dense, dense_family, rcnn, vgg_family
from deploykit.networks.detectors.rcnn import TRUNKS, Limits, Rcnn
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes import identity
from deploykit.recipes.identity import Choice, Found, assumptions, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.values import Precision, TensorSpec

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts, Plain
    from deploykit.recipes.recipe import StateDict

REGIONS = 256
"""Rows of the second input: crops that are seen at once."""
PREPROCESS = Preprocess(
    (512, 512),
    resize="corner",
    channels="BGR",
    scale=1.0,
    pad_value=None,
    resampler="cv2-float",
    rounding="enlarged",
    limits=(1, 512),
)
"""Images as they are, at the top left of a canvas; larger ones are shrunk to it."""
USUAL = Limits()


def number(value: Plain) -> float:
    """Return a finite number. Raises: ValueError."""
    return identity.three((value,) * 3)[0]


CHOICES = {
    "score_threshold": Choice(USUAL.score, "distances above", number),
    "nms_threshold": Choice(USUAL.iou, "overlap up to", identity.share),
    "detections": Choice(USUAL.detections, "objects per image", dense.up_to_most),
}


def build(variant: str, classes: int, _: tuple[int, int]) -> Rcnn:
    """Return the network of a variant as it was trained, in eval mode."""
    trunk = TRUNKS[variant]
    return Rcnn(trunk, classes, (3, trunk.side, trunk.side), USUAL, boxes=True).eval()


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the user say, None where it is another network.

    Raises: CheckpointError for a mean of another size.
    """
    classes = outputs(state, "svm.weight")
    own = next((n for n, t in TRUNKS.items() if rcnn.key(t.convolutions[0].name) in state), None)
    if classes is None or own is None or "mean" not in state:
        return None
    trunk, settings = rcnn.measured(state, TRUNKS[own]), resolve(CHOICES, facts)
    check_colours(inputs(state, rcnn.key(trunk.convolutions[0].name)) or COLOURS)
    mean = tuple(state["mean"].shape)
    if mean not in ((3, 1, 1), (3, trunk.side, trunk.side)):
        raise CheckpointError(
            f"a mean of the shape {list(mean)}",
            expected=f"[3, {trunk.side}, {trunk.side}], of crops, or [3, 1, 1]",
        )
    value: Any = {name: setting.value for name, setting in settings.items()}
    limits = Limits(value["score_threshold"], value["nms_threshold"], value["detections"])
    boxes = "box.weight" in state
    return Found(
        stated(facts, own, recipe.variants),
        classes,
        settings,
        build=lambda: Rcnn(trunk, classes, mean, limits, boxes=boxes),
        assumed=assumptions(CHOICES, settings),
    )


def takes(preprocess: Preprocess) -> tuple[TensorSpec, ...]:
    """Return what the network takes beside images: boxes in pixels of the prepared image first."""
    regions = TensorSpec(PROPOSALS, "float32", ("batch", REGIONS, 4))
    return (regions, *dense_family.image_sizes(preprocess))


KEEP_FLOAT = (
    KeepFloat(
        r"^(svm|box)\b",
        "their outputs are the scores and box sides themselves, and their cost is small",
    ),
    KeepFloat(
        r"^(warp|select)\b",
        "places and boxes in pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
MARKS = ("svm.weight",)
recipe = Recipe(
    name="rcnn",
    task="detection",
    variants={
        name: Variant(PREPROCESS, KEEP_FLOAT, size_multiple=1, features=("features.fc7",))
        for name in TRUNKS
    },
    build=build,
    identify=identify,
    outputs=dense_family.OUTPUTS,
    adapt=rcnn.adapt,
    extra_inputs=takes,
    class_names=vgg_family.class_names,
)
