"""What the recipes of torchvision's two-stage detectors share: checkpoints, images, precision."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from deploykit.errors import CheckpointError, unknown_name
from deploykit.networks import unset
from deploykit.networks.class_names import numbered
from deploykit.networks.detectors import dense, dense_family, layouts
from deploykit.networks.detectors import two_stage_contract as contract
from deploykit.networks.detectors.settings import Knob, agree, apply, choices
from deploykit.networks.detectors.two_stage import TwoStage
from deploykit.networks.detectors.two_stage_models import (
    COMMON,
    EPS0,
    LIGHT,
    MMDET,
    MOBILE,
    MOBILE_320,
    OWN,
    STAGES,
    V2,
    Sizes,
    body,
    model,
    set_anchors,
    set_head,
    sizes,
)
from deploykit.networks.reparam import Phases, fold
from deploykit.networks.states import outputs
from deploykit.recipes import identity
from deploykit.recipes.identity import Facts, Found, Setting, assumptions, resolve
from deploykit.tasks import masks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.networks.detectors.settings import Levels, Model
    from deploykit.networks.detectors.two_stage_models import Head
    from deploykit.recipes.identity import Settings
    from deploykit.recipes.recipe import StateDict

OUTPUTS = dense_family.OUTPUTS
PEOPLE, PEOPLES_KEYPOINTS = "person", 17
"""The only class of COCO's keypoints, and how many it has."""
KNOBS = {
    "detections": Knob("objects per image", dense.up_to_most, ("roi_heads", "detections_per_img")),
    "score_threshold": Knob("scores above", identity.share, ("roi_heads", "score_thresh")),
    "nms_threshold": Knob("overlap up to", identity.share, ("roi_heads", "nms_thresh")),
    "candidates": Knob(
        "candidates per level", dense.up_to_most, ("rpn", "_pre_nms_top_n", "testing")
    ),
    "proposals": Knob("proposals", dense.up_to_most, ("rpn", "_post_nms_top_n", "testing")),
    "proposal_score_threshold": Knob(
        "scores of proposals from", identity.share, ("rpn", "score_thresh")
    ),
    "proposal_nms_threshold": Knob("their overlap up to", identity.share, ("rpn", "nms_thresh")),
    "box_weights": Knob("box coding", identity.four, ("roi_heads.box_coder", "weights")),
}
ANCHORS = {
    "anchor_sizes": Knob("anchor sizes", identity.levels, ("rpn.anchor_generator", "sizes")),
    "anchor_ratios": Knob(
        "anchor ratios", identity.levels, ("rpn.anchor_generator", "aspect_ratios")
    ),
}


def network(variant: str, classes: int, head: Head) -> TwoStage:
    """Return the network of a variant as it was trained, in eval mode.

    classes: the background not among them.
    """
    made = model(variant, Sizes(classes), head)
    layout = layouts.of_variant(variant)
    if layout is None:
        return TwoStage(made).eval()
    settings = resolve(layout.choices(variant, {}), Facts())
    return layout.network(made, settings, {}).eval()


def deploy(network: nn.Module) -> nn.Module:
    """Return a copy with batch norms folded, and the masks' upsampling in ops that INT8 has."""
    folded = fold(network)
    predictor: Any = folded.get_submodule("roi_heads").mask_predictor
    if predictor is not None and Phases.replaces(predictor.conv5_mask):
        predictor.conv5_mask = Phases(predictor.conv5_mask, predictor.relu)
        predictor.relu = nn.Identity()
    return folded


_OLD = (
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"\.mask_head\.mask_fcn(\d)\."), lambda m: f".mask_head.{int(m[1]) - 1}.0."),
)


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of torchvision 0.13 or later, from older ones or others'.

    The published COCO_V1 files have the older ones.
    """
    layout = layouts.of_names(state)
    if layout is not None:
        return layout.adapt(state)
    return {_renamed(key): value for key, value in dense_family.adapt(state).items()}


def _renamed(key: str) -> str:
    for pattern, name in _OLD:
        key = pattern.sub(name, key)
    return key


_PREDICTORS: Mapping[str, str] = {
    "masks": "roi_heads.mask_predictor.",
    "mask_scores": "roi_heads.maskiou.",
    "mask_points": "roi_heads.mask_head.coarse_head.",
    "keypoints": "roi_heads.keypoint_predictor.",
}
_HAS: Mapping[Head, set[str]] = {
    "boxes": set(),
    "masks": {"masks"},
    "mask_scores": {"masks", "mask_scores"},
    "mask_points": {"mask_points"},
    "keypoints": {"keypoints"},
}
"""Head -> those of `_PREDICTORS` that its networks have."""


def identify(state: StateDict, facts: Facts, head: Head) -> Found | None:
    """Return what the weights and the file say, None where it is another network.

    Raises: OptionError where something must be stated that nobody says; CheckpointError where a
    pickled detector is set up in a way that is not carried.
    """
    found = {kind for kind, key in _PREDICTORS.items() if any(k.startswith(key) for k in state)}
    classes = outputs(state, "roi_heads.box_predictor.cls_score.weight")
    if classes is None or found != _HAS[head] or "rpn.head.cls_logits.weight" not in state:
        return None
    own_variant = _variant(state, facts)
    variant = facts.variant or own_variant
    if variant is None:
        return None
    _check_variant(variant, head, facts)
    _check_kin(variant, own_variant)
    wanted = sizes(state, classes - 1)
    layout = layouts.of_mark(state)
    stored = {} if layout is None else layout.stored(state, wanted, facts)
    knobs = KNOBS | _image(variant) | ({} if "anchors" in stored else ANCHORS)
    with unset.on_paper():
        usual = choices(model(variant, wanted, head), knobs)
    base = usual | ({} if layout is None else layout.choices(variant, stored))
    settings = resolve(base, facts, stored)
    pasting = layout.PASTING if layout else "rounded"
    if head == "mask_points" or (pasting == "exact" and head == "masks"):
        settings[masks.SETTING] = Setting("exact", "weights")
    if "anchors" not in stored:
        dense_family.check_levels(len(wanted.stages) - len(STAGES), settings)
    make = partial(_made, variant, wanted, head, settings)
    with unset.on_paper():
        agree(make(), facts, knobs)
    return Found(
        variant,
        wanted.classes,
        settings,
        build=lambda: (
            TwoStage(make()) if layout is None else layout.network(make(), settings, state)
        ),
        preprocess=partial(dense_family.set_up, contract.preprocess(variant), settings),
        class_names=_names(wanted, head, facts),
        assumed=assumptions(base, settings),
    )


def _made(variant: str, wanted: Sizes, head: Head, settings: Settings) -> Model:
    """Return torchvision's model, set up. Raises: OptionError for anchors that do not fit it."""
    made = model(variant, wanted, head)
    if settings.keys() >= ANCHORS.keys():
        rows = cast("list[Levels]", [settings[name].value for name in ANCHORS])
        set_anchors(made, rows[0], rows[1], wanted.anchors)
    else:
        set_head(made, wanted.anchors)
    apply(made, KNOBS, settings)
    return made


def _check_variant(variant: str, head: Head, facts: Facts) -> None:
    """Raise OptionError for a stated variant that there is not, CheckpointError for a found one."""
    known = {*COMMON, *MMDET, LIGHT, *(name for kind, name in OWN if kind == head)}
    if variant in known:
        return
    if facts.variant is not None:
        raise unknown_name("variant", variant, known)
    raise CheckpointError(
        f"a detector of the kind {variant}",
        expected="one of " + ", ".join(sorted(known)),
        fix="write a recipe for it (see exporters/README.md) and name it with --recipe",
    )


_KIN = (frozenset((EPS0, "resnet50_fpn")), frozenset((MOBILE, MOBILE_320)))
"""Variants whose weights have the same names and shapes."""


def _check_kin(stated: str, found: str | None) -> None:
    """Raise CheckpointError for a variant of another body, or another project, than the weights."""
    kin = next((group for group in _KIN if found in group), frozenset((found,)))
    if found is not None and stated not in kin:
        raise CheckpointError(
            f"the weights are not those of {stated}",
            expected=f"{' or '.join(sorted(map(str, kin)))}, as their names and shapes say",
            fix="leave --variant out, or name what is expected",
        )


def _image(variant: str) -> dict[str, Knob]:
    """Return the settings of the input: the light network's images are letterboxed."""
    own = ("mean", "std") if variant == LIGHT else tuple(dense_family.IMAGE)
    return {name: dense_family.IMAGE[name] for name in own}


def _names(wanted: Sizes, head: Head, facts: Facts) -> tuple[str, ...] | None:
    """Return COCO's names where the file was trained on it, or finds its 17 keypoints."""
    people = head == "keypoints" and wanted.keypoints == PEOPLES_KEYPOINTS and wanted.classes == 1
    known = people or dense_family.published(facts.sha256)
    return class_names(wanted.classes) if known else None


def _variant(state: StateDict, facts: Facts) -> str | None:
    if "backbone.body.0.0.weight" in state:
        return MOBILE
    name = body(state)
    if name is None or name == LIGHT:
        return name
    layout = layouts.of_mark(state)
    if layout is not None:
        return f"{layout.MARK}_{name}_fpn"
    if "backbone.fpn.inner_blocks.0.1.weight" in state:
        return V2
    published = dense_family.epsilon(state, facts) == 0
    return EPS0 if published and name == "resnet50" else f"{name}_fpn"


def class_names(count: int) -> tuple[str, ...]:
    """Return COCO's names: of its 90 labels (torchvision), 80 classes (detectron2), or people."""
    labels = dense_family.coco_names(1)
    known: dict[int, tuple[str, ...]] = {
        len(names): names
        for names in (labels, tuple(name for name in labels if name != "N/A"), (PEOPLE,))
    }
    return known.get(count) or numbered(count)
