"""DETR on ResNet-50 and -101, each also with a dilated last stage (DC5), and a light one.

Source: github.com/facebookresearch/detr (Apache-2.0) for the names of parameters and the
evaluation; those of transformers are read too. See `deploykit.networks.detr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.data.preprocess import Preprocess
from deploykit.data.presets import MEAN, STD
from deploykit.networks import detr, detr_bodies, detr_names
from deploykit.networks.detectors import dense_family
from deploykit.networks.states import COLOURS, check_colours, children, inputs, outputs
from deploykit.recipes.identity import Found, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

BODY = "backbone.0.body"
BLOCKS = {6: 50, 23: 101}
"""Blocks in the third stage -> layers of the ResNet."""
DILATED = "_dc5"
"""How the name of a variant ends whose last stage is dilated, which its weights do not say."""
LIGHT = "light"


def build(variant: str, classes: int, _: tuple[int, int]) -> detr.Network:
    """Return the network of a variant as it was trained, in eval mode."""
    if variant == LIGHT:
        return detr.Network(detr_bodies.LightBody(), classes, detr.LIGHT).eval()
    depth = int(variant.removesuffix(DILATED).removeprefix("r"))
    body = detr_bodies.Body(depth, dilated=variant.endswith(DILATED))
    return detr.Network(body, classes, detr.Sizes(layers=detr.LAYERS)).eval()


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the official keys, from those or transformers'; no counters of norms."""
    counted = "num_batches_tracked"
    return detr_names.official({k: v for k, v in state.items() if not k.endswith(counted)})


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return the variant and the number of classes, None where it is not such a DETR."""
    classes = outputs(state, "class_embed.weight")
    found = _variant(state)
    if classes is None or found is None:
        return None
    check_colours(inputs(state, "backbone.0.body.conv1.weight") or COLOURS)
    variant = stated(facts, found, recipe.variants)
    certain = facts.variant or found == LIGHT
    said = "" if certain else f"assumed: no dilated last stage, else --variant {variant}{DILATED}"
    count = classes - 1
    return Found(
        variant,
        count,
        resolve({}, facts),
        build=lambda: build(variant, count, (0, 0)),
        assumed=said,
    )


def _variant(state: StateDict) -> str | None:
    """Return which one the weights are of, without dilation, None where they are of none."""
    queries, blocks = state.get("query_embed.weight"), len(children(state, f"{BODY}.layer3"))
    layers = {len(children(state, f"transformer.{part}.layers")) for part in ("encoder", "decoder")}
    if queries is None or queries.ndim != 2 or len(layers) != 1:
        return None
    sizes = (queries.shape[1], layers.pop(), queries.shape[0])
    first = outputs(state, f"{BODY}.conv1.weight")
    if sizes == (detr.LIGHT.width, detr.LIGHT.layers, detr.LIGHT.queries):
        return LIGHT if first == detr_bodies.LIGHT_WIDTHS[0] and blocks == 2 else None
    if sizes == (detr.WIDTH, detr.LAYERS, detr.QUERIES) and blocks in BLOCKS:
        return f"r{BLOCKS[blocks]}"
    return None


KEEP_FLOAT = (
    KeepFloat(
        r"^(class_embed|bbox_embed\.layers\.2)\b",
        "its outputs are the scores and the sides of boxes themselves, and it is about a "
        "thousandth of the work",
    ),
    KeepFloat(
        r"^select\b",
        "boxes in pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
PREPROCESS = Preprocess((800, 1066), "stretch", mean=MEAN, std=STD)
"""The official one for images of 4 to 3: the short side 800; without a mask an image fills its
input."""
SMALL = Preprocess((160, 160), "stretch", mean=MEAN, std=STD)
MARKS = ("transformer.decoder.layers.0.multihead_attn.", "model.query_position_embeddings.")
recipe = Recipe(
    name="detr",
    task="detection",
    variants={
        **{
            name: Variant(PREPROCESS, KEEP_FLOAT, 1, ("input_proj",))
            for depth in BLOCKS.values()
            for name in (f"r{depth}", f"r{depth}{DILATED}")
        },
        LIGHT: Variant(SMALL, KEEP_FLOAT, 16, ("input_proj",)),
    },
    build=build,
    identify=identify,
    outputs=dense_family.OUTPUTS,
    adapt=adapt,
    class_names=dense_family.coco_ids,
)
