"""What the recipes of torchvision's dense detectors share: checkpoints, images, names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torchvision.models import detection
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights, backbone_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from deploykit.data.feeding import IMAGE_SIZES
from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.errors import OptionError
from deploykit.networks import unset
from deploykit.networks.class_names import numbered
from deploykit.networks.detectors import dense, two_stage_models
from deploykit.networks.detectors.settings import Knob, agree, anchored, apply, choices
from deploykit.networks.states import COLOURS, check_colours, inputs
from deploykit.recipes import identity
from deploykit.recipes.identity import Found, assumptions, resolve
from deploykit.recipes.recipe import KeepFloat, Variant
from deploykit.tasks.outputs import Output
from deploykit.values import Precision, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.nn import Module

    from deploykit.networks.detectors.settings import Levels, Model
    from deploykit.recipes.identity import Facts, Settings
    from deploykit.recipes.recipe import StateDict

    Wrap = Callable[[Model], Module]
    """From torchvision's model to the network."""

OUTPUTS = (
    Output("boxes", "boxes"),
    Output("scores", "scores"),
    Output("classes", "classes"),
    Output("count", "count"),
)
LIMITS, CANVAS = (800, 1333), (800, 1344)
"""Short and longest long side of an image, and what holds it where it is wider than high."""
MULTIPLE = 32
"""Of which both sides of an input are: the stride of the body's last features."""
STAGES = (2, 3, 4)
"""Stages of the body that the pyramid starts from: strides 8, 16 and 32."""
BODIES = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
"""Name in torchvision -> blocks of each stage, and whether they are bottlenecks."""
WIDTH = 64
"""Channels inside the blocks of the first stage; ResNeXt and wide ResNets have more."""


def pyramid(body: str, sizes: Sizes, *, from_features: bool = False) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return a ResNet with a pyramid of two levels more than `sizes.stages`, weights random.

    from_features: whether the last levels are made from the body's last features, not the
    pyramid's.
    """
    channels = 256 if not from_features else 2048 if BODIES[body][1] else 512
    return backbone_utils.resnet_fpn_backbone(
        backbone_name=body,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=list(sizes.stages),
        extra_blocks=LastLevelP6P7(channels, 256),
    )


@dataclass(frozen=True)
class Sizes:
    """What the weights say of what a variant leaves open."""

    classes: int
    anchors: int
    """Per cell of each level."""
    stages: tuple[int, ...] = STAGES
    """Of the body, whose features make the pyramid."""

    @classmethod
    def of(cls, state: StateDict, classes: int, anchors: int) -> Sizes:
        """Return the sizes in a state dict. Raises: CheckpointError."""
        first = inputs(state, "backbone.body.conv1.weight")
        check_colours(COLOURS if first is None else first)
        return cls(classes, anchors, two_stage_models.stages(state))


DENSE = {
    "detections": Knob("objects per image", dense.up_to_most, ("", "detections_per_img")),
    "score_threshold": Knob("scores above", identity.share, ("", "score_thresh")),
    "nms_threshold": Knob("overlap up to", identity.share, ("", "nms_thresh")),
    "candidates": Knob("candidates per level", dense.up_to_most, ("", "topk_candidates")),
}
ANCHORS = {
    "anchor_sizes": Knob("anchor sizes", identity.levels, ("anchor_generator", "sizes")),
    "anchor_ratios": Knob("anchor ratios", identity.levels, ("anchor_generator", "aspect_ratios")),
}


def found(
    variant: str, make: Callable[[Sizes], Model], sizes: Sizes, facts: Facts, wrap: Wrap
) -> Found:
    """Return what was found; the model of `make` is set up as somebody says, then wrapped.

    Raises: OptionError where something must be stated that nobody says; CheckpointError where a
    pickled detector is set up in a way that is not carried.
    """
    knobs = DENSE | ANCHORS | IMAGE
    with unset.on_paper():
        base = choices(make(sizes), knobs)
    settings = resolve(base, facts)
    check_levels(len(sizes.stages) - len(STAGES), settings)
    with unset.on_paper():
        agree(_set_up(make(sizes), settings, sizes), facts, knobs)
    return Found(
        variant,
        sizes.classes,
        settings,
        build=lambda: wrap(_set_up(make(sizes), settings, sizes)),
        preprocess=partial(set_up, PREPROCESS, settings),
        class_names=class_names(sizes.classes) if published(facts.sha256) else None,
        assumed=assumptions(base, settings),
    )


def _set_up(model: Model, settings: Settings, sizes: Sizes) -> Model:
    """Return `model`, set up. Raises: OptionError for anchors that do not fit it."""
    sides, ratios = cast("list[Levels]", [settings[name].value for name in ANCHORS])
    model.anchor_generator = anchored(model.anchor_generator, sides, ratios, sizes.anchors)
    apply(model, DENSE, settings)
    return model


def check_levels(more: int, settings: Settings) -> None:
    """Raise OptionError where a pyramid has more levels than usual, and nobody says its anchors."""
    if more and settings["anchor_sizes"].origin == "assumed":
        raise OptionError(
            f"a pyramid of {abs(more)} levels {'more' if more > 0 else 'less'} than usual, whose "
            "anchors the file does not hold",
            expected="their sides in pixels, for each level",
            fix="state those it was trained with, such as --set anchor_sizes=[[32],[64],[128]]",
        )


def generator(sizes: Sizes, own: AnchorGenerator) -> AnchorGenerator:
    """Return torchvision's anchors of a detector, or as many for another number of levels."""
    count = len(sizes.stages) + 2
    rows = tuple(own.sizes[min(i, len(own.sizes) - 1)] for i in range(count))
    return own if len(own.sizes) == count else AnchorGenerator(rows, own.aspect_ratios[:1] * count)


def body(state: StateDict) -> str | None:
    """Return the name of the ResNet in a state dict, None where it is none of `BODIES`."""
    prefix = "backbone.body.layer"
    blocks = {tuple(k.removeprefix(prefix).split(".")[:2]) for k in state if k.startswith(prefix)}
    depths = tuple(sum(block[0] == str(stage) for block in blocks) for stage in range(1, 5))
    inner = state.get(f"{prefix}1.0.conv2.weight")
    if inner is None or tuple(inner.shape[:2]) != (WIDTH, WIDTH):
        return None
    found = depths, f"{prefix}1.0.conv3.weight" in state
    return next((name for name, expected in BODIES.items() if expected == found), None)


def epsilon(state: StateDict, facts: Facts) -> float:
    """Return the epsilon of a body's norms.

    As the pickled module has it; else 0, as in torchvision's published weights, where the norms
    have no counters, and so are frozen.
    """
    norm = facts.layers.get("backbone.body.bn1")
    stored = norm.values.get("eps") if norm else None
    if isinstance(stored, float):
        return stored
    return 1e-5 if any(key.endswith("num_batches_tracked") for key in state) else 0.0


_OLD_PYRAMID = re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$")


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of torchvision 0.13 or later.

    Before, a convolution of the pyramid was not in a sequence of its own.
    """
    return {_OLD_PYRAMID.sub(r"\1.0.\2", key): value for key, value in state.items()}


IMAGE = {
    "mean": Knob("mean", identity.three, ("transform", "image_mean")),
    "std": Knob("deviation", identity.spread, ("transform", "image_std")),
    "min_size": Knob("short side", identity.side, ("transform", "min_size")),
    "max_size": Knob("long side at most", identity.side, ("transform", "max_size")),
}
"""Settings of the input, where torchvision's transform has them."""


def set_up(own: Preprocess, settings: Settings, size: tuple[int, int] | None) -> Preprocess:
    """Return `own` for an input of `size` (H, W), with the settings that somebody states.

    Without a size, the canvas holds an image that is wider than high.
    """
    said = {name: s.value for name, s in settings.items() if s.origin != "assumed"}
    every: Any = {name: s.value for name, s in settings.items()}
    stated = {"min_size", "max_size"} & set(said)
    limits = (every["min_size"], every["max_size"]) if stated else None
    if limits and size is None:
        size = limits[0] + -limits[0] % MULTIPLE, limits[1] + -limits[1] % MULTIPLE
    image: Any = {name: said[name] for name in ("mean", "std", "channels") if name in said}
    made = replace(own.sized(size), **image)
    return replace(made, limits=None).at_scale(*limits) if limits else made


def torchvisions(size: tuple[int, int]) -> Preprocess:
    """Return how torchvision's detectors prepare an image for a canvas of `size` (H, W)."""
    return Preprocess(
        size,
        resize="corner",
        mean=MEAN,
        std=STD,
        pad_value=None,
        resampler="torch",
        rounding="down",
    )


def image_sizes(preprocess: Preprocess) -> tuple[TensorSpec, ...]:
    """Return the input of a detector beside its images: where each image ends in its canvas.

    None where the images were trained on as they lie in the canvas, its padding a part of them.
    """
    ends = preprocess.resize == "corner"
    return (TensorSpec(IMAGE_SIZES, "float32", ("batch", 2)),) if ends else ()


PREPROCESS = torchvisions(CANVAS).turned().at_scale(*LIMITS)
"""torchvision's: sides of 800 to 1333 pixels, at the top left, mean and deviation."""


def class_names(count: int) -> tuple[str, ...]:
    """Return the names of COCO's 91 categories, the first for none; numbers for other counts.

    These networks have an output for every label, and none for the background: a label that was
    never used in training, as 0 is by torchvision's, is a class that is never found.
    """
    used = tuple(name for name in coco_names(1) if name != "N/A")  # detectron2, mmdetection
    known = {len(names): names for names in (coco_names(0), used)}
    return known.get(count) or numbered(count)


def coco_names(first: int) -> tuple[str, ...]:
    """Return torchvision's names of COCO's labels from `first` on; label 0 is the background."""
    names: Sequence[str] = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(names[first:])


def coco_ids(count: int) -> tuple[str, ...]:
    """Return COCO's names at their ids, nothing at 0, where there are as many, else numbers."""
    names = ("N/A", *coco_names(1))
    return names if count == len(names) else numbered(count)


@cache
def _published() -> frozenset[str]:
    """Return how the hashes of torchvision's published detectors begin, as their addresses end."""
    kinds = (v for v in vars(detection).values() if isinstance(v, type) and issubclass(v, Enum))
    urls = [weights.value.url for kind in kinds for weights in kind]
    return frozenset(url.rpartition("-")[2].partition(".")[0] for url in urls)


def published(sha256: str) -> bool:
    """Return whether a file with this hash holds weights that torchvision trained on COCO."""
    return sha256[:8] in _published()


SELECT = (
    KeepFloat(
        r"^select\b",
        "ranking of scores, and boxes in pixels: above 512 px neighbouring FP16 numbers are "
        "0.5 px apart",
        Precision.FP32,
    ),
)
KEEP_FLOAT = (
    KeepFloat(
        r"^head\.(classification|regression)_head\.(cls_logits|bbox_reg|bbox_ctrness)\b",
        "their outputs are the scores and box sides themselves: 255 levels over all classes or "
        "sides merge scores and move boxes",
    ),
    *SELECT,
)
VARIANT = Variant(PREPROCESS, KEEP_FLOAT, features=("backbone.fpn",))
"""The contract of every variant: the pyramid's levels are what is distilled."""
