"""YOLOv6: releases 0.2 (RepPAN neck) and 0.3 / 0.4 (RepBiFPAN neck), and a tiny `pico`.

Source: the names and shapes in the official checkpoints; see `deploykit.networks.yolov6`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

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
    from collections.abc import Mapping

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
_INSIDE = (".block", ".rbr_dense", ".rbr_1x1")
"""How the path of a convolution with batch norm ends in release 0.4, but for RepOptimizer's."""
_BLOCKS = re.compile(r"backbone\.(stem|ERBlock_\d\.0)|.*\.(conv[12]|block\.\d+)")
"""The basic 3x3 blocks."""
_LEVEL = "neck.reduce_layer0.block.conv.weight"
"""A weight with the level of a release that has it."""
_CONV = ".conv.weight"
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
    pooled = {_POOL.sub(rf"\1{kind}.\2", key): v for key, v in read.items()}
    bare = _bare(pooled)
    kept = {_renamed(key, bare): v for key, v in pooled.items()}
    for key in [k for k in kept if _BIAS.fullmatch(k)]:
        mean = _BIAS.sub(r"\1.bn.running_mean", key)
        if mean in kept:
            kept[mean] = kept[mean] - kept.pop(key)
    return kept


def _bare(state: StateDict) -> set[str]:
    """Return the paths of the convolutions with batch norm that lack the level `.block`.

    A basic block of RepOptimizer has none in any release: its other convolutions say whether the
    release has the level. Where it has not, such a block and a plain one have the same names.
    """
    paths = {key.removesuffix(_CONV) for key in state if key.endswith(_CONV)}
    return {
        path
        for path in paths
        if not path.endswith(_INSIDE)
        and f"{path}.scale_conv.weight" not in state
        and not (_LEVEL in state and _BLOCKS.fullmatch(path))
    }


def _renamed(key: str, bare: set[str]) -> str:
    path, *inside = key.rsplit(".", 2)
    return ".".join((path, "block", *inside)) if path in bare else key


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
_ACTIVATIONS = ("backbone.stem.act", "backbone.stem.block.act", "backbone.stem.relu")
_INNER = "backbone.ERBlock_2.1.conv1"
"""A block of as many channels as it is given."""


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
    choice = _choice(found)
    if choice:
        found = _chosen(choice, facts)
    name = _name(found)
    if facts.variant not in (None, name):
        raise unknown_name("variant for these weights", str(facts.variant), [name])
    settings = resolve({}, facts)
    like = name if name in VARIANTS else f"{SIZES[found.neck]}n"
    return Found(name, classes, settings, like, lambda: Network(found, classes).eval())


def _name(architecture: Architecture) -> str:
    """Return the name of a release's architecture, or one that says the neck and the blocks."""
    plain = replace(architecture, inputs=3)
    likes = [plain]
    if (plain.block, plain.activation) == ("conv", "relu"):
        likes.append(replace(plain, block="repopt"))  # the same layers by other names
    known = (name for like in likes for name, own in VARIANTS.items() if own == like)
    kind = plain.activation if plain.block == "conv" else plain.block
    return next(known, f"{SIZES[plain.neck]}_{kind}")


def _choice(found: Architecture) -> dict[str, Architecture]:
    """Return what differs and its architecture, for those that fit the same weights."""
    if found.block == "conv":
        return {kind: replace(found, activation=kind) for kind in get_args(Activation)}
    if found.block == "qarepvgg":
        return {
            "without average branch": found,
            "with average branch": replace(found, block="qarepvggv2"),
        }
    return {}


def _chosen(choice: Mapping[str, Architecture], facts: Facts) -> Architecture:
    """Return one of several: as the pickled module has it, or the stated variant.

    Raises: OptionError where neither says it, CheckpointError where it is another one.
    """
    names = {_name(architecture): what for what, architecture in choice.items()}
    if facts.variant is not None:
        if facts.variant not in names:
            raise unknown_name("variant for these weights", facts.variant, names)
        return choice[names[facts.variant]]
    said = _said(facts)
    if said is not None:
        if said not in choice:
            raise CheckpointError(f"a YOLOv6 with the activation {said}", expected="ReLU or SiLU")
        return choice[said]
    ways = " or ".join(f"{name} ({what})" for name, what in names.items())
    raise OptionError(
        "these weights fit two networks, which differ in what a state dict does not say: " + ways,
        fix="name the one it was trained as: " + " or ".join(f"--variant {n}" for n in names),
    )


def _said(facts: Facts) -> str | None:
    """Return which of a choice a pickled module says, or the name of another activation."""
    kind = facts.layers[_INNER].kind.rpartition(".")[2] if _INNER in facts.layers else ""
    if "QARepVGG" in kind:
        return f"{'with' if f'{_INNER}.rbr_avg' in facts.layers else 'without'} average branch"
    kinds = {
        facts.layers[path].kind.rpartition(".")[2] for path in _ACTIVATIONS if path in facts.layers
    }
    return _KINDS.get(kind := kinds.pop(), kind) if len(kinds) == 1 else None


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
PICO = Variant(Preprocess((320, 320)), KEEP_FLOAT, features=FEATURES)
"""As Pillow resizes."""
MARKS = ("detect.cls_preds", "detect.reg_preds")
recipe = Recipe(
    name="yolov6",
    task="detection",
    variants={
        **{name: replace(OFFICIAL, protocols=protocols(name)) for name in VARIANTS},
        **{name: PICO for name in VARIANTS if name.startswith("pico")},
    },
    build=build,
    identify=identify,
    outputs=(Output("outputs", "rows"),),
    adapt=adapt,
)
