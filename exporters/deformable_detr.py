"""Deformable DETR on ResNet-50 and -101: plain, with refined boxes, and two-stage.

Source: github.com/fundamentalvision/Deformable-DETR (Apache-2.0) for the names of parameters and
the evaluation; those of transformers are read too. See `deploykit.networks.deformable`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.networks import deformable, deformable_names, detr_bodies
from deploykit.networks.deformable_attention import Sizes
from deploykit.networks.detectors import dense, dense_family
from deploykit.networks.detr_family import BLOCKS, BODY, PREPROCESS
from deploykit.networks.states import COLOURS, check_colours, children, inputs, outputs
from deploykit.recipes.identity import Choice, Found, assumptions, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

KINDS = ("", "_refined", "_two_stage")
SINGLE, DILATED = "_single_scale", "_dc5"
"""What the name of a variant says of one with one map, and of one whose last stage is dilated."""
CHOICES = {
    "queries": Choice(300, "queries", dense.up_to_most),
    "detections": Choice(100, "objects per image", dense.up_to_most),
}


def build(variant: str, classes: int, _: tuple[int, int]) -> deformable.Network:
    """Return the network of a variant as it was trained, in eval mode."""
    two = variant.endswith(KINDS[2])
    sizes = Sizes(
        levels=1 if SINGLE in variant else 4,
        refined=two or variant.endswith(KINDS[1]),
        two_stage=two,
    )
    return _network(variant, classes, sizes)


def _network(variant: str, classes: int, sizes: Sizes) -> deformable.Network:
    """Return a network of these sizes, with the body of a variant."""
    body = detr_bodies.Stages(int(variant.partition("_")[0][1:]), dilated=DILATED in variant)
    return deformable.Network(body, classes, sizes).eval()


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the official keys, from those or transformers'; no counters of norms."""
    counted = "num_batches_tracked"
    return deformable_names.official({k: v for k, v in state.items() if not k.endswith(counted)})


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return the variant and the number of classes, None where it is no Deformable DETR."""
    classes = outputs(state, "class_embed.0.weight")
    known, blocks = deformable_names.sizes(state), len(children(state, f"{BODY}.layer3"))
    if classes is None or known is None or blocks not in BLOCKS:
        return None
    check_colours(inputs(state, f"{BODY}.conv1.weight") or COLOURS)
    single = known.levels == 1
    scale, kind = SINGLE if single else "", KINDS[known.refined + known.two_stage]
    variant = stated(facts, f"r{BLOCKS[blocks]}{scale}{kind}", recipe.variants)
    queries = outputs(state, "query_embed.weight")
    settings = resolve(CHOICES, facts, {} if queries is None else {"queries": queries})
    value: Any = {name: setting.value for name, setting in settings.items()}
    dilated = f"assumed: no dilated last stage, else --variant r{BLOCKS[blocks]}{scale}_dc5{kind}"
    said = [assumptions(CHOICES, settings), dilated if single and not facts.variant else ""]
    sizes = replace(known, **value)
    return Found(
        variant,
        classes,
        settings,
        build=lambda: _network(variant, classes, sizes),
        assumed="; ".join(filter(None, said)),
    )


KEEP_FLOAT = (
    KeepFloat(
        r"(^|\.)(class_embed|bbox_embed\.\d+\.layers\.2)\b",
        "its outputs are the scores and the sides of boxes themselves, and it is about a "
        "hundredth of the work",
    ),
    KeepFloat(
        r"\b(locate|refine|choose|reference_points)\b",
        "places as shares of the image: neighbouring FP16 numbers are up to 1/2048 apart, half a "
        "pixel of a thousand",
        Precision.FP32,
    ),
    KeepFloat(
        r"^select\b",
        "boxes in pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
MARKS = ("transformer.level_embed", "model.level_embed")
recipe = Recipe(
    name="deformable_detr",
    task="detection",
    variants={
        f"r{depth}{scale}{kind}": Variant(PREPROCESS, KEEP_FLOAT, 1, ("input_proj",))
        for scale in ("", SINGLE, SINGLE + DILATED)
        for depth in BLOCKS.values()
        for kind in KINDS
    },
    build=build,
    identify=identify,
    outputs=dense_family.OUTPUTS,
    adapt=adapt,
    class_names=dense_family.coco_ids,
)
