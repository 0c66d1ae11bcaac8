"""RepVGG A0 to B3, plain and grouped, QARepVGG and RepOpt-VGG: classifiers of 3x3 convolutions.

Source: RepVGG (arXiv 2101.03697, tables 2 and 4), github.com/DingXiaoH/RepVGG (MIT) and, for what
RepOptimizer trains without branches, RepOptimizers (MIT), for what has a norm behind its sums,
github.com/cxxgtxy/QARepVGG (MIT) for widths, depths and parameter names; timm's names are read too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, cast

from torch import Tensor, nn

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, PRESETS, STD
from deploykit.networks.blocks import QARepVGGBlock, QARepVGGBlockV1, VGGBlock
from deploykit.networks.reparam import RepVGGBlock
from deploykit.networks.states import COLOURS, check_colours, children, inputs, outputs
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict


Block: TypeAlias = "type[RepVGGBlock | VGGBlock | QARepVGGBlock]"


@dataclass(frozen=True)
class Architecture:
    """All that tells one variant from another."""

    depths: tuple[int, int, int, int]
    """Blocks in each stage."""
    widths: tuple[int, int, int, int]
    """Channels of each stage."""
    groups: int = 1
    """Groups of every second block, counted from the first of stage1."""
    block: Block = RepVGGBlock


_DEEP, _DEEPER = (4, 6, 16, 1), (8, 14, 24, 1)
_A0 = Architecture((2, 4, 14, 1), (48, 96, 192, 1280))
_B1, _B2, _B3 = (
    Architecture(_DEEP, (128, 256, 512, 2048)),
    Architecture(_DEEP, (160, 320, 640, 2560)),
    Architecture(_DEEP, (192, 384, 768, 2560)),
)
_PLAIN = {
    "a0": _A0,
    "a1": replace(_A0, widths=(64, 128, 256, 1280)),
    "a2": replace(_A0, widths=(96, 192, 384, 1408)),
    "b0": Architecture(_DEEP, (64, 128, 256, 1280)),
    "b1": _B1,
    "b1g2": replace(_B1, groups=2),
    "b1g4": replace(_B1, groups=4),
    "b2": _B2,
    "b2g2": replace(_B2, groups=2),
    "b2g4": replace(_B2, groups=4),
    "b3": _B3,
    "b3g2": replace(_B3, groups=2),
    "b3g4": replace(_B3, groups=4),
}
_QA = ("a0", "a1", "a2", "b0", "b1", "b1g2", "b1g4", "b2", "b2g4")
"""Those that the authors of QARepVGG have."""
VARIANTS = {
    **_PLAIN,
    **{f"{name}_qa": replace(_PLAIN[name], block=QARepVGGBlock) for name in _QA},
    "a0_qav1": replace(_A0, block=QARepVGGBlockV1),
    "pico": Architecture((2, 2, 3, 1), (24, 48, 96, 192)),
    "b1_repopt": replace(_B1, block=VGGBlock),
    "b2_repopt": replace(_B2, block=VGGBlock),
    "l1_repopt": replace(_B1, depths=_DEEPER, block=VGGBlock),
    "l2_repopt": replace(_B2, depths=_DEEPER, block=VGGBlock),
}
"""`pico` is this project's own, for small images. `qa`: QARepVGG, the second form of its authors,
which is theirs by default; `qav1`: the first."""
STEM_LIMIT = 64
"""Most channels of the stem."""


class Network(nn.Module):
    """A stem, four stages at half the size each, mean over the image, one linear layer."""

    def __init__(self, architecture: Architecture, classes: int) -> None:
        """Make the network as it is trained."""
        super().__init__()
        channels, number = min(STEM_LIMIT, architecture.widths[0]), 1
        block = architecture.block
        self.stage0 = block((3, channels), stride=2)
        stages = []
        for depth, width in zip(architecture.depths, architecture.widths, strict=True):
            blocks = nn.Sequential()
            for i in range(depth):
                groups = architecture.groups if number % 2 == 0 else 1
                pair, stride = (channels if i == 0 else width, width), 2 if i == 0 else 1
                blocks.append(block(pair, stride=stride, groups=groups))
                number += 1
            stages.append(blocks)
            channels = width
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32[batch, classes] of images float32[batch, 3, H, W]."""
        x = self.stage0(images)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
        return cast("Tensor", self.linear(self.gap(x).flatten(1)))


def build(variant: str, classes: int, _: tuple[int, int]) -> Network:
    """Return the network of a variant as it was trained, in eval mode."""
    return Network(VARIANTS[variant], classes).eval()


_TIMM = (
    (re.compile(r"^stem\."), "stage0."),
    (re.compile(r"^stages\.(\d+)\."), lambda m: f"stage{int(m[1]) + 1}."),
    (re.compile(r"\.conv_kxk\."), ".rbr_dense."),
    (re.compile(r"\.conv_1x1\."), ".rbr_1x1."),
    (re.compile(r"\.identity\."), ".rbr_identity."),
    (re.compile(r"\.reparam_conv\."), ".rbr_reparam."),
    (re.compile(r"^head\.fc\."), "linear."),
)


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the official keys, from those or timm's."""
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    for pattern, new in _TIMM:
        key = pattern.sub(new, key)
    return key


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not a RepVGG."""
    classes, found = outputs(state, "linear.weight"), _signature(state)
    if classes is None:
        return None
    check_colours(inputs(state, *_convs("stage0")) or COLOURS)
    return next(((name, classes) for name, a in VARIANTS.items() if found == _expected(a)), None)


def _signature(state: StateDict) -> tuple[object, ...]:
    """Return what tells the variants apart: blocks, depths, widths, and inputs per group."""
    stages = [f"stage{i}" for i in range(1, 5)]
    return (
        _block(state),
        tuple(len(children(state, stage)) for stage in stages),
        tuple(_first(outputs(state, name) for name in _convs(f"{stage}.0")) for stage in stages),
        inputs(state, *_convs("stage1.1")),
    )


def _block(state: StateDict) -> Block:
    """Return the kind of the blocks; folded to the last, QARepVGG's are those of RepVGG."""
    if MARKS[-1] in state:
        return VGGBlock
    if "stage1.0.bn.weight" not in state:
        return RepVGGBlock
    return QARepVGGBlockV1 if "stage1.0.rbr_1x1.bn.weight" in state else QARepVGGBlock


def _convs(block: str) -> tuple[str, ...]:
    """Return the names of a block's 3x3 weight, as it is trained, folded and without branches."""
    kinds = "rbr_dense.conv", "rbr_reparam", "conv"
    return tuple(f"{block}.{kind}.weight" for kind in kinds)


def _first(values: Iterable[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)


def _expected(a: Architecture) -> tuple[object, ...]:
    return a.block, a.depths, a.widths, a.widths[0] // a.groups


PREPROCESS = PRESETS["imagenet"].sized((224, 224))
"""ImageNet's: the short side to size / 0.875, the centre, its mean and deviation."""
KEEP_FLOAT = (
    KeepFloat(
        r"^linear\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is "
        "about a thousandth of the work",
    ),
)
WHOLE = replace(PREPROCESS, crop_fraction=1.0)
"""RepOptimizers': the short side to size."""
PICO = Preprocess((64, 64), "letterbox", mean=MEAN, std=STD)
SEEN = {"pico": PICO, **{name: WHOLE for name, a in VARIANTS.items() if a.block is VGGBlock}}
MARKS = ("rbr_", "conv_kxk.", "reparam", "stage1.0.conv.weight")
"""The last: of networks without branches."""
recipe = Recipe(
    name="repvgg",
    task="classification",
    variants={
        name: Variant(SEEN.get(name, PREPROCESS), KEEP_FLOAT, features=("stage4",))
        for name in VARIANTS
    },
    build=build,
    identify=identify,
    outputs=(Output("logits", "logits"),),
    adapt=adapt,
)
