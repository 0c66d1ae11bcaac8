"""What tells one YOLOv6 from another: by the names of the releases, or read from the weights.

Source: the YOLOv6 reports (arXiv 2209.02976 and 2301.05586) and the multipliers of the official
configurations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploykit.errors import CheckpointError
from deploykit.networks.states import children, inputs, outputs

if TYPE_CHECKING:
    from deploykit.recipes.recipe import StateDict

Activation: TypeAlias = Literal["relu", "silu"]
Block: TypeAlias = Literal["repvgg", "qarepvgg", "qarepvggv2", "hyper_search", "repopt", "conv"]
"""The basic 3x3 block, as `training_mode` of the official configurations says it; `conv` is
conv_relu or conv_silu by the activation."""

CHANNELS = (64, 128, 256, 512, 1024, 256, 128, 128, 256, 256, 512)
"""Stem, four stages, then p4, p3, down to n3, n3, down to n4, n4 of the neck; before scaling."""
REPEATS = (6, 12, 18, 6, 12, 12, 12, 12)
"""Blocks in the four stages, then in p4, p3, n3, n4; before scaling."""
STAGES = (
    *(f"backbone.ERBlock_{i}.1" for i in (2, 3, 4, 5)),
    *("neck.Rep_p4", "neck.Rep_p3", "neck.Rep_n3", "neck.Rep_n4"),
)
WIDTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10)
"""Places in `CHANNELS` of the stem and the stages; the other two are the steps down."""


@dataclass(frozen=True)
class Architecture:
    """All that tells one variant from another."""

    channels: tuple[int, ...]
    """As `CHANNELS` lists them."""
    repeats: tuple[int, ...]
    """Blocks of each stage, as `REPEATS` lists them; of a CSPStackRep stage, its BottleReps."""
    neck: Literal["RepPAN", "RepBiFPAN"]
    pooling: Literal["sppf", "cspsppf"]
    block: Block = "repvgg"
    activation: Activation = "relu"
    """Of the blocks, the stages and the pooling; all blocks but `conv` have a ReLU."""
    inner: tuple[int, ...] | None = None
    """Channels inside each CSPStackRep stage; None: plain stages."""
    reg_max: Literal[0, 16] = 0
    """Box sides are the mean of a distribution over 0 to reg_max cells; 0: a plain number."""
    inputs: int = 3
    """Channels of the images."""


def scaled(
    depth: float,
    width: float,
    neck: Literal["RepPAN", "RepBiFPAN"],
    pooling: Literal["sppf", "cspsppf"] = "sppf",
    *,
    csp: float | None = None,
) -> Architecture:
    """Return the architecture of an official configuration, with RepVGG blocks and no bins.

    depth: multiplies `REPEATS`, rounded, at least 1. width: multiplies `CHANNELS`, rounded up to a
    multiple of 8. csp: share of the channels inside a CSPStackRep stage; None: plain stages.
    """
    channels = tuple(math.ceil(c * width / 8) * 8 for c in CHANNELS)
    repeats = tuple(max(round(n * depth), 1) for n in REPEATS)
    if csp is None:
        return Architecture(channels, repeats, neck, pooling)
    inner = tuple(int(channels[i] * csp) for i in WIDTHS[1:])
    halves = tuple(max(n // 2, 1) for n in repeats)
    return Architecture(channels, halves, neck, pooling, inner=inner, reg_max=16)


_M2 = scaled(0.60, 0.75, "RepPAN", csp=2 / 3)
_L2_RELU = scaled(1.0, 1.0, "RepPAN", csp=1 / 2)
_L2 = replace(_L2_RELU, block="conv", activation="silu")
_V2 = {
    "v2n": scaled(0.33, 0.25, "RepPAN"),
    "v2t": scaled(0.25, 0.50, "RepPAN"),
    "v2t_375": scaled(0.33, 0.375, "RepPAN"),
    "v2s": scaled(0.33, 0.50, "RepPAN"),
    "v2m": _M2,
    "v2l": _L2,
    "v2l_relu": _L2_RELU,
    "v2n_base": replace(scaled(0.33, 0.25, "RepPAN"), block="conv"),
    "v2s_base": replace(scaled(0.70, 0.50, "RepPAN", csp=1 / 2), block="conv", reg_max=0),
    "v2m_base": replace(scaled(0.80, 0.75, "RepPAN", csp=1 / 2), block="conv"),
    "v2l_base": replace(_L2_RELU, block="conv"),
}
_V3 = {
    "v3n": scaled(0.33, 0.25, "RepBiFPAN", "cspsppf"),
    "v3s": scaled(0.33, 0.50, "RepBiFPAN", "cspsppf"),
    "v3m": replace(_M2, neck="RepBiFPAN"),
    "v3l": replace(_L2, neck="RepBiFPAN"),
    "v3n_base": replace(scaled(0.33, 0.25, "RepBiFPAN", "cspsppf"), block="conv", reg_max=16),
    "v3s_base": replace(scaled(0.70, 0.50, "RepBiFPAN", "cspsppf", csp=1 / 2), block="conv"),
    "v3m_base": replace(_V2["v2m_base"], neck="RepBiFPAN"),
    "v3l_base": replace(_V2["v2l_base"], neck="RepBiFPAN"),
}
_PICO = Architecture(
    channels=(16, 16, 32, 64, 112, 40, 32, 32, 48, 48, 80),
    repeats=(1, 2, 2, 1, 1, 1, 1, 1),
    neck="RepBiFPAN",
    pooling="cspsppf",
    reg_max=16,
)
_V2_SIZES = {"v2n": _V2["v2n"], "v2t": _V2["v2t_375"], "v2s": _V2["v2s"]}
VARIANTS: dict[str, Architecture] = {
    **_V2,
    **{f"{name}_repopt": replace(a, block="repopt") for name, a in _V2_SIZES.items()},
    **{f"{name}_hs": replace(a, block="hyper_search") for name, a in _V2_SIZES.items()},
    **_V3,
    **{f"{name}_qa": replace(_V3[name], block="qarepvggv2") for name in ("v3n", "v3s", "v3m")},
    "pico": _PICO,
    "pico_repopt": replace(_PICO, block="repopt"),
    "pico_hs": replace(_PICO, block="hyper_search"),
    "pico_qa": replace(_PICO, block="qarepvgg"),
}
"""Name of a release and its size -> its architecture.

`base`: plain convolutions with a ReLU; `repopt`: blocks that RepOptimizer trains, `hs` those that
its scales are searched with; `qa`: QARepVGG. `v2t` has the size that is published for T, `v2t_375`
and T's others that of the configuration files."""

_CONV = ("rbr_dense.conv.weight", "rbr_reparam.weight", "block.conv.weight", "conv.weight")
"""The 3x3 convolution of a RepVGG block, of a folded one, of a plain one, of RepOptimizer's."""
_KINDS: tuple[tuple[str, Block], ...] = (
    ("rbr_1x1.weight", "qarepvgg"),
    ("bn.weight", "qarepvggv2"),  # beside `rbr_reparam`: all branches are folded
    ("rbr_dense.conv.weight", "repvgg"),
    ("rbr_reparam.weight", "repvgg"),
    ("block.conv.weight", "conv"),
)
"""A weight of the stem -> the blocks that have it, where none before is there."""
_STEM = "backbone.stem"
FOREIGN = {
    "backbone.ERBlock_6.": "a fourth level at stride 64 (P6)",
    "backbone.lite_effiblock_1.": "the lite backbone",
    "backbone.ERBlock_2.1.m.0.": "MBLA stages",
    "detect.obj_preds.": "the head of release 0.1, which scores objects apart from classes",
    "detect.proto.": "a mask head",
    "detect.reg_mask": "a mask head",
}
"""First letters of a weight -> what the network has that is not carried."""


def refuse_foreign(state: StateDict) -> None:
    """Raise CheckpointError where a YOLOv6 has parts that are not carried; it names them."""
    for prefix, what in FOREIGN.items():
        if any(key.startswith(prefix) for key in state):
            raise CheckpointError(
                f"a YOLOv6 with {what}",
                expected="three levels of RepVGG, QARepVGG, RepOptimizer's or plain blocks, of "
                "releases 0.2 to 0.4",
                fix="write a recipe for it (see exporters/README.md) and name it with --recipe",
            )


def read(state: StateDict, activation: Activation = "relu") -> Architecture | None:
    """Return the architecture that a state dict was trained with, None where it is no YOLOv6.

    activation: of plain blocks, which their weights do not say; as little do those of QARepVGG
    whether it has the average branch: without it is returned.
    """
    stem = _block(state, _STEM)
    sides = outputs(state, "detect.reg_preds.0.bias")
    if stem is None or sides not in (4, 68):
        return None
    block = _kind(state)
    fuses = "neck.Bifusion0.cv1.block.conv.weight" in state
    deep = "backbone.ERBlock_5.2.cspsppf.cv1.block.conv.weight" in state
    csp = f"{STAGES[2]}.cv1.block.conv.weight" in state
    inner = [outputs(state, f"{stage}.cv1.block.conv.weight") for stage in STAGES] if csp else None
    names = (
        *(f"backbone.ERBlock_{i}.0" for i in (2, 3, 4, 5)),
        *("neck.reduce_layer0", "neck.reduce_layer1", "neck.downsample2", STAGES[6]),
        *("neck.downsample1", STAGES[7]),
    )
    channels = [stem, *(_block(state, name) for name in names)]
    if None in channels or (inner and None in inner):
        return None
    return Architecture(
        tuple(c for c in channels if c is not None),
        tuple(1 + len(children(state, f"{s}.m.block" if csp else f"{s}.block")) for s in STAGES),
        neck="RepBiFPAN" if fuses else "RepPAN",
        pooling="cspsppf" if deep else "sppf",
        block=block,
        activation=activation if block == "conv" else "relu",
        inner=tuple(c for c in inner if c is not None) if inner else None,
        reg_max=16 if sides == 68 else 0,
        inputs=inputs(state, *(f"{_STEM}.{name}" for name in _CONV)) or 3,
    )


def _kind(state: StateDict) -> Block:
    """Return the kind of the blocks; `qarepvgg` for both of its forms, which have equal weights."""
    if f"{_STEM}.scale_conv.weight" in state:
        return "hyper_search"
    if f"{_STEM}.conv.weight" in state:
        return "repopt"
    return next((kind for key, kind in _KINDS if f"{_STEM}.{key}" in state), "repvgg")


def _block(state: StateDict, name: str) -> int | None:
    """Return the channels that a block or a stage gives, None where there is none."""
    for inside in ("", "conv1.", "cv3."):
        for conv in _CONV:
            found = outputs(state, f"{name}.{inside}{conv}")
            if found is not None:
                return found
    return None
