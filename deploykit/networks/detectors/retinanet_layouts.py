"""RetinaNets from detectron2's and mmdetection's checkpoints, under torchvision's names.

Source: the names and numbers in detectron2, in MPViT's project, which is made from it, and in
mmdetection 2 and 3. What differs: the sixth level is made from the body's last features, anchors
are not rounded and as far apart as the stride of their level says, boxes without area in the image
are not found. Detectron2's anchors go size by size, and boxes end at the image only when they are
found. mmdetection's go ratio by ratio, its seventh level has no ReLU before, sides shrink no more
than they grow.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import nn
from torchvision.models.detection import retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from deploykit.networks import bodies, mm_config, mpvit, unset
from deploykit.networks.detectors import (
    adapted,
    dense,
    dense_family,
    detectron2_layout,
    grids,
    layouts,
    mmdet_layout,
    two_stage_models,
)
from deploykit.networks.detectors import two_stage_contract as contract
from deploykit.networks.detectors.settings import anchored, apply, choices
from deploykit.networks.detectors.transformer_pyramid import CHANNELS, Pyramid
from deploykit.recipes.identity import Facts, Found, assumptions, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from deploykit.networks.detectors.dense_family import Sizes
    from deploykit.networks.detectors.layouts import Layout
    from deploykit.networks.detectors.settings import Levels, Model
    from deploykit.recipes.identity import Plain, Settings
    from deploykit.recipes.recipe import StateDict, Variant

VARIANTS = {
    f"{layout.MARK}_{body}_fpn": body
    for layout in (detectron2_layout, mmdet_layout)
    for body in ("resnet50", "resnet101", *(f"mpvit_{size}" for size in mpvit.SIZES))
}
ANCHORS = 9
"""Per cell: three sizes of three shapes."""
DETECTIONS, FIRST = 100, 8
"""Objects per image, and input pixels per cell of the finest level."""
_SIDES = tuple(tuple(FIRST * 4 * 2 ** (i + j / 3) for j in range(3)) for i in range(5))
_Rules: TypeAlias = "tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]"
_HEADS = {"cls": "classification_head", "bbox": "regression_head", "reg": "regression_head"}
_DETECTRON2: _Rules = (
    (
        re.compile(r"^backbone\.fpn_(lateral|output)([345])\."),
        lambda m: (
            f"backbone.fpn.{'inner' if m[1] == 'lateral' else 'layer'}_blocks.{int(m[2]) - 3}.0."
        ),
    ),
    (re.compile(r"^backbone\.top_block\."), "backbone.fpn.extra_blocks."),
    (
        re.compile(r"^head\.(cls|bbox)_subnet\.([0246])\."),
        lambda m: f"head.{_HEADS[m[1]]}.conv.{int(m[2]) // 2}.0.",
    ),
    (re.compile(r"^head\.cls_score\."), "head.classification_head.cls_logits."),
    (re.compile(r"^head\.bbox_pred\."), "head.regression_head.bbox_reg."),
    (re.compile(r"^anchor_generator\.cell_anchors\."), "cell_anchors_"),
)
_MMDET: _Rules = (
    (
        re.compile(r"^neck\.fpn_convs\.([34])\.conv\."),
        lambda m: f"backbone.fpn.extra_blocks.p{int(m[1]) + 3}.",
    ),
    (
        re.compile(r"^bbox_head\.(cls|reg)_convs\.(\d)\.conv\."),
        lambda m: f"head.{_HEADS[m[1]]}.conv.{m[2]}.0.",
    ),
    (re.compile(r"^bbox_head\.retina_cls\."), "head.classification_head.cls_logits."),
    (re.compile(r"^bbox_head\.retina_reg\."), "head.regression_head.bbox_reg."),
)
_MARKS = {"head.cls_subnet.0.weight": _DETECTRON2, "bbox_head.retina_cls.weight": _MMDET}


def adapt(state: StateDict) -> StateDict:
    """Return `state` under torchvision's names, with its project's mark; torchvision's as it is."""
    rules = next((rules for mark, rules in _MARKS.items() if mark in state), None)
    if rules is None:
        return state
    found = dict(state)
    for pattern, name in rules:
        found = {pattern.sub(name, key): value for key, value in found.items()}
    layout: Layout = detectron2_layout if rules is _DETECTRON2 else mmdet_layout
    behind = {key: value for key, value in found.items() if not key.startswith(_OURS)}
    kept = {key: value for key, value in found.items() if key.startswith(_OURS)}
    return {**layout.adapt(behind), **kept}


_OURS = ("backbone.fpn.", "head.", "cell_anchors_")
"""What has its name already."""


def body(state: StateDict) -> str | None:
    """Return the body of a project's RetinaNet, None for torchvision's and others."""
    if layouts.of_mark(state) is None:
        return None
    return dense_family.body(state) or bodies.name(state, "backbone.body.")


class Coarser(ExtraFPNBlock):  # type: ignore[misc]  # torchvision ships no types
    """Two levels more than the body has, the first from its last features."""

    def __init__(self, channels: int, *, relu: bool) -> None:
        """Make the layers. relu: whether one stands before the second."""
        super().__init__()
        self.relu = relu
        self.p6 = nn.Conv2d(channels, CHANNELS, 3, 2, 1)
        self.p7 = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Return the levels and two more, and their names. x: the features of the body."""
        sixth = self.p6(x[-1])
        seventh = self.p7(F.relu(sixth) if self.relu else sixth)
        return [*results, sixth, seventh], [*names, "p6", "p7"]


def model(variant: str, sizes: Sizes) -> Model:
    """Return torchvision's model of a variant with random weights."""
    name = VARIANTS[variant]
    relu = layouts.of_variant(variant) is detectron2_layout
    if name in bodies.NAMES:
        backbone: Any = Pyramid(name, first=1, coarser=partial(Coarser, relu=relu))
    else:
        backbone = dense_family.pyramid(name, sizes, from_features=True)
        backbone.fpn.extra_blocks = Coarser(2048, relu=relu)
    return retinanet.RetinaNet(
        backbone,
        sizes.classes,
        anchor_generator=AnchorGenerator(_SIDES, ((0.5, 1.0, 2.0),) * len(_SIDES)),
        head=retinanet.RetinaNetHead(CHANNELS, sizes.anchors, sizes.classes),
        detections_per_img=DETECTIONS,
    )


def network(made: Model, settings: Settings, state: StateDict, variant: str) -> dense.Pyramid:
    """Return the network of torchvision's model, with its project's conventions."""
    layout = layouts.of_variant(variant)
    early = layout is mmdet_layout
    adapted.set_strides(made, settings)
    found = dense.Pyramid(made, partial(grids.moved, bounded=early))
    rows = zip(made.anchor_generator.sizes, made.anchor_generator.aspect_ratios, strict=True)
    cell = mmdet_layout.cell if early else detectron2_layout.cell
    found.cells = adapted.cells(settings) or [cell(*row) for row in rows]
    found.steps = tuple(FIRST << level for level in range(len(found.cells)))
    found.select.early, found.select.empty = early, False
    marks = {key for key in state if detectron2_layout.STORED.match(key)}
    adapted.keep(found, {*marks, cast("Any", layout).MARK}, state)
    return found.eval()


def build(variant: str, classes: int) -> dense.Pyramid:
    """Return the network of a variant with the settings of published ones."""
    layout: Any = layouts.of_variant(variant)
    made = model(variant, dense_family.Sizes(classes, ANCHORS))
    return network(made, resolve(layout.choices(variant, {}), Facts()), {}, variant)


def contracts() -> dict[str, Variant]:
    """Return the contract of each variant."""
    base = dense_family.VARIANT
    return {name: replace(base, preprocess=contract.preprocess(name)) for name in VARIANTS}


_HEAD, _TESTED = ("model", "bbox_head"), ("model", "test_cfg")
_MAKER, _CODER = (*_HEAD, "anchor_generator"), (*_HEAD, "bbox_coder")
_CARRIED: tuple[tuple[tuple[str, ...], tuple[Plain, ...]], ...] = (
    ((*_HEAD, "type"), ("RetinaHead",)),
    ((*_MAKER, "type"), ("AnchorGenerator",)),
    ((*_MAKER, "octave_base_scale"), (4,)),
    ((*_MAKER, "scales_per_octave"), (3,)),
    ((*_MAKER, "strides"), ((8, 16, 32, 64, 128),)),
    ((*_MAKER, "center_offset"), (0,)),
    ((*_CODER, "type"), ("DeltaXYWHBBoxCoder",)),
    ((*_CODER, "target_means"), ((0, 0, 0, 0),)),
    ((*_CODER, "target_stds"), ((1, 1, 1, 1),)),
    (("model", "neck", "type"), ("FPN",)),
    (("model", "neck", "add_extra_convs"), ("on_input", True)),
    (("model", "neck", "relu_before_extra_convs"), (False,)),
    ((*_TESTED, "nms", "type"), ("nms",)),
    ((*_TESTED, "nms", "class_agnostic"), (False,)),
    ((*_TESTED, "min_bbox_size"), (0,)),
)
_LIMITS = {
    "score_threshold": (*_TESTED, "score_thr"),
    "nms_threshold": (*_TESTED, "nms", "iou_threshold"),
    "detections": (*_TESTED, "max_per_img"),
    "candidates": (*_TESTED, "nms_pre"),
}


def stored(state: StateDict, sizes: Sizes, facts: Facts) -> dict[str, Plain]:
    """Return the settings in a file. Raises: CheckpointError where one is not carried."""
    if layouts.of_mark(state) is detectron2_layout:
        wanted = two_stage_models.Sizes(sizes.classes, anchors=sizes.anchors)
        return detectron2_layout.stored(state, wanted, facts)
    config = mm_config.read(facts.beside)
    mm_config.check(config, _CARRIED)
    found = mm_config.images(config) | mm_config.taken(config, _LIMITS)
    ratios = mm_config.at(config, *_MAKER, "ratios")
    style = mm_config.at(config, "model", "backbone", "style")
    if ratios is not None:
        found |= {"anchor_ratios": (ratios,), "anchor_sizes": _SIDES}
    return found if style is None else found | {"stride_in_1x1": style == "caffe"}


def found(variant: str, sizes: Sizes, state: StateDict, facts: Facts) -> Found:
    """Return what the weights and the file say. Raises: CheckpointError, OptionError."""
    layout: Any = layouts.of_variant(variant)
    said = stored(state, sizes, facts)
    more = {} if "anchors" in said else dense_family.ANCHORS
    knobs = dense_family.DENSE | more | dense_family.IMAGE
    with unset.on_paper():
        base = choices(model(variant, sizes), knobs) | layout.choices(variant, said)
    settings = resolve(base, facts, said)

    def made() -> dense.Pyramid:
        whole = model(variant, sizes)
        if more:
            rows = cast("list[Levels]", [settings[name].value for name in more])
            whole.anchor_generator = anchored(
                whole.anchor_generator, rows[0], rows[1], sizes.anchors
            )
        apply(whole, dense_family.DENSE, settings)
        return network(whole, settings, state, variant)

    return Found(
        *(variant, sizes.classes, settings),
        build=made,
        preprocess=partial(dense_family.set_up, contract.preprocess(variant), settings),
        assumed=assumptions(base, settings),
    )
