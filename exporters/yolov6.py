"""YOLOv6: releases 0.2 (RepPAN neck) and 0.3 / 0.4 (RepBiFPAN neck), and a tiny `pico`.

Source: the names and shapes in the official checkpoints; see `deploykit.networks.yolov6`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, cast, get_args

from deploykit.data.preprocess import Preprocess
from deploykit.errors import CheckpointError, OptionError, unknown_name
from deploykit.networks.states import check_colours, outputs
from deploykit.networks.yolov6.architecture import (
    VARIANTS,
    Activation,
    Architecture,
    read,
    refuse_foreign,
)
from deploykit.networks.yolov6.network import Network
from deploykit.networks.yolov6.protocols import protocols
from deploykit.recipes.identity import Found, resolve
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict


def build(variant: str, classes: int, _: tuple[int, int]) -> Network:
    """Return the network of a variant as it was trained, in eval mode."""
    return Network(VARIANTS[variant], classes).eval()


_EXTRAS = re.compile(r"detect\.(reg_preds_dist|(cls|reg)_preds_ab)\.")
"""Branches that only training reads: self-distillation and the anchor-based aid."""
_READ = {
    "reg_preds_lrtb": (re.compile(r"detect\.reg_preds\."), "reg_preds"),
    "reg_preds_af": (re.compile(r"detect\.reg_preds\."), "reg_preds"),
    "cls_preds_af": (re.compile(r"detect\.cls_preds\."), "cls_preds"),
}
"""Branches that evaluation of release 0.3 reads -> those that it then leaves, and their name later:
numbers beside the distributions of a distilled network, anchor-free beside anchor-based."""
_BARE = re.compile(r"((?:.*\.)?(?!block\.|rbr_dense\.|rbr_1x1\.)[^.]+)\.(conv|bn)\.([^.]+)")
_POOL = re.compile(r"(backbone\.ERBlock_5\.2\.)(cv\d\..*)")
_BIAS = re.compile(r"(.*\.block)\.conv\.bias")


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the keys of release 0.4; without branches that only training reads.

    Releases 0.1 to 0.3 lack the levels `.block` of a convolution with batch norm and `.sppf` or
    `.cspsppf` of the pooling layer, and give some convolutions a bias before their batch norm:
    norm(x + bias) is the norm of x with a mean less by the bias.
    """
    kind = "cspsppf" if any(k.startswith("backbone.ERBlock_5.2.cv3.") for k in state) else "sppf"
    read = {key: v for key, v in _evaluated(state).items() if not _EXTRAS.match(key)}
    kept = {_renamed(key, kind): v for key, v in read.items()}
    for key in [k for k in kept if _BIAS.fullmatch(k)]:
        mean = _BIAS.sub(r"\1.bn.running_mean", key)
        if mean in kept:
            kept[mean] = kept[mean] - kept.pop(key)
    return kept


def _renamed(key: str, kind: str) -> str:
    pooled = _POOL.sub(rf"\1{kind}.\2", key)
    return _BARE.sub(r"\1.block.\2.\3", pooled) if _BARE.fullmatch(pooled) else pooled


def _evaluated(state: StateDict) -> StateDict:
    """Return `state` with the branches that evaluation reads under the names of release 0.4."""
    for name, (left, later) in _READ.items():
        prefix = f"detect.{name}."
        if any(key.startswith(prefix) for key in state):
            kept = {key: v for key, v in state.items() if not left.match(key)}
            state = {key.replace(prefix, f"detect.{later}."): v for key, v in kept.items()}
    return state


SIZES = {"RepPAN": "v2", "RepBiFPAN": "v3"}
"""What the name of a variant begins with; `v2_silu` is one of another size than the releases'."""
_KINDS = {"ReLU": "relu", "SiLU": "silu"}


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return the architecture in the weights and the number of classes, None for another network.

    Raises: CheckpointError for a YOLOv6 that is not carried; OptionError where the weights do not
    say the activation, and nobody else does.
    """
    classes = outputs(state, "detect.cls_preds.0.bias")
    if classes is None or not any(key.startswith("backbone.stem.") for key in state):
        return None
    refuse_foreign(state)
    found = read(state)
    if found is None:
        return None
    check_colours(found.inputs)
    if found.block == "conv":
        found = replace(found, activation=_activation(found, facts))
    name = _name(found)
    if facts.variant not in (None, name):
        raise unknown_name("variant for these weights", str(facts.variant), [name])
    settings = resolve({}, facts)
    like = name if name in VARIANTS else f"{SIZES[found.neck]}n"
    return Found(name, classes, settings, like, lambda: Network(found, classes).eval())


def _name(architecture: Architecture) -> str:
    """Return the name of a release's architecture, or one that says the neck and the activation."""
    plain = replace(architecture, inputs=3)
    own = next((name for name, known in VARIANTS.items() if known == plain), None)
    kind = "repvgg" if architecture.block == "repvgg" else architecture.activation
    return own or f"{SIZES[architecture.neck]}_{kind}"


def _activation(found: Architecture, facts: Facts) -> Activation:
    """Return the activation of plain blocks: as the pickled module has it, or the stated variant.

    Raises: OptionError where neither says it, CheckpointError where it is another one.
    """
    names = {_name(replace(found, activation=kind)): kind for kind in get_args(Activation)}
    if facts.variant is not None:
        if facts.variant not in names:
            raise unknown_name("variant for these weights", facts.variant, names)
        return cast("Activation", names[facts.variant])
    inside = ("backbone.stem.act", "backbone.stem.block.act", "backbone.stem.relu")
    kinds = {facts.layers[path].kind.rpartition(".")[2] for path in inside if path in facts.layers}
    if len(kinds) == 1:
        kind = kinds.pop()
        if kind in _KINDS:
            return cast("Activation", _KINDS[kind])
        raise CheckpointError(f"a YOLOv6 with the activation {kind}", expected="ReLU or SiLU")
    raise OptionError(
        "these weights fit two networks, which differ in the activation, and a state dict does "
        "not say it: " + " or ".join(f"{name} ({kind})" for name, kind in names.items()),
        fix="name the one it was trained as: " + " or ".join(f"--variant {n}" for n in names),
    )


KEEP_FLOAT = (
    KeepFloat(
        r"detect\.(cls|reg)_preds\.",
        "1x1 convolutions whose outputs are the scores and box sides themselves: 255 levels over "
        "all classes or sides move boxes and merge scores, and their cost is small",
    ),
    KeepFloat(
        r"detect\.boxes\b",
        "decoding to pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
FEATURES = ("neck.Rep_p3", "neck.Rep_n3", "neck.Rep_n4")
"""What the neck gives to the head, strides 8, 16 and 32."""
OFFICIAL = Variant(
    Preprocess((640, 640), resampler="cv2-area", rounding="down"), KEEP_FLOAT, features=FEATURES
)
"""As the official evaluation letterboxes."""
MARKS = ("detect.cls_preds", "detect.reg_preds")
recipe = Recipe(
    name="yolov6",
    task="detection",
    variants={
        **{name: replace(OFFICIAL, protocols=protocols(name)) for name in VARIANTS},
        "pico": Variant(Preprocess((320, 320)), KEEP_FLOAT, features=FEATURES),  # Pillow resized
    },
    build=build,
    identify=identify,
    outputs=(Output("outputs", "rows"),),
    adapt=adapt,
)
