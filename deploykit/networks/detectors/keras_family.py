"""What a Keras file of Mask R-CNN says, and what its networks are set up with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from deploykit.data.preprocess import Preprocess
from deploykit.errors import CheckpointError, OptionError
from deploykit.networks.detectors import dense, keras_layout, keras_rcnn
from deploykit.networks.detectors.keras_network import KerasMaskRcnn
from deploykit.networks.states import check_colours, children, inputs, outputs
from deploykit.recipes import identity
from deploykit.recipes.identity import Choice, Facts, Found, Setting, assumptions, resolve, stated
from deploykit.tasks import masks

if TYPE_CHECKING:
    from deploykit.recipes.identity import Plain, Settings
    from deploykit.recipes.recipe import StateDict

PREPROCESS = Preprocess(
    (1024, 1024),
    scale=1.0,
    mean=(123.7, 116.8, 103.9),
    pad_value=0,
    resampler="skimage",
    rounding="enlarged",
    limits=(800, 1024),
)
"""The family's square: the short side grows to 800 pixels, the long one has at most 1024."""


def row(value: Plain) -> tuple[float, ...]:
    """Return positive numbers. Raises: ValueError."""
    return identity.levels((value,))[0]


USUAL = keras_rcnn.Limits()
CHOICES = {
    "detections": Choice(USUAL.detections, "objects per image", dense.up_to_most),
    "score_threshold": Choice(USUAL.score, "scores from", identity.share),
    "nms_threshold": Choice(USUAL.iou, "overlap up to", identity.share),
    "candidates": Choice(USUAL.candidates, "candidates", dense.up_to_most),
    "proposals": Choice(USUAL.proposals, "proposals", dense.up_to_most),
    "proposal_nms_threshold": Choice(USUAL.proposal_iou, "their overlap up to", identity.share),
    "anchor_sizes": Choice(USUAL.sides, "anchor sizes", row),
    "anchor_ratios": Choice(USUAL.ratios, "anchor ratios", row),
    "mean": Choice(PREPROCESS.mean, "mean", identity.three),
}


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the user say, None where it is another network.

    Raises: CheckpointError for another depth; OptionError for anchors that do not fit the weights.
    """
    widths, labels = keras_layout.widths(state), outputs(state, "box.logits.weight")
    if widths is None or labels is None:
        return None
    check_colours(inputs(state, "body.stem.0.weight") or 0)
    depths = tuple(len(children(state, f"body.stages.{i}")) for i in range(4))
    own = next((name for name, each in keras_rcnn.TRUNKS.items() if each == depths), None)
    if own is None:
        raise CheckpointError(
            f"a body of {depths} blocks", expected=f"one of {list(keras_rcnn.TRUNKS.values())}"
        )
    settings = resolve(CHOICES, facts)
    limits = _limits(settings)
    if (len(limits.sides), len(limits.ratios)) != (len(keras_rcnn.STRIDES), widths.anchors):
        raise OptionError(
            f"{len(limits.sides)} anchor sizes with {len(limits.ratios)} ratios",
            expected=f"{len(keras_rcnn.STRIDES)} sizes with {widths.anchors} ratios",
            fix="state those it was trained with, such as --set anchor_ratios=[0.5,1,2]",
        )
    assumed = assumptions(CHOICES, settings)
    settings[masks.SETTING] = Setting("exact", "weights")
    variant = stated(facts, own, keras_rcnn.TRUNKS)
    return Found(
        variant,
        labels - 1,
        settings,
        build=lambda: KerasMaskRcnn(variant, labels - 1, widths, limits),
        preprocess=partial(_prepared, settings),
        assumed=assumed,
    )


def _limits(settings: Settings) -> keras_rcnn.Limits:
    value: Any = {name: setting.value for name, setting in settings.items()}
    return keras_rcnn.Limits(
        value["candidates"],
        value["proposals"],
        value["proposal_nms_threshold"],
        value["score_threshold"],
        value["nms_threshold"],
        value["detections"],
        value["anchor_sizes"],
        value["anchor_ratios"],
    )


def _prepared(settings: Settings, size: tuple[int, int] | None) -> Preprocess:
    mean: Any = settings["mean"].value
    return replace(PREPROCESS.sized(size), mean=mean)
