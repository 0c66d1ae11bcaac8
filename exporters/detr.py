"""DETR on ResNet-50 and -101, each also with a dilated last stage (DC5), and a light one.

Source: github.com/facebookresearch/detr (Apache-2.0) for the names of parameters and the
evaluation; those of transformers are read too. See `deploykit.networks.detr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.networks import detr, detr_bodies, detr_family, detr_names
from deploykit.networks.detectors import dense_family
from deploykit.networks.detr_family import LIGHT
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes.identity import Found, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict


def build(variant: str, classes: int, _: tuple[int, int]) -> detr.Network:
    """Return the network of a variant as it was trained, in eval mode."""
    if variant == LIGHT:
        return detr.Network(detr_bodies.LightBody(), classes, detr.LIGHT).eval()
    depth, dilated = detr_family.body(variant)
    body = detr_bodies.Body(depth, dilated=dilated)
    return detr.Network(body, classes, detr.Sizes(layers=detr.LAYERS)).eval()


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the official keys, from those or transformers'; no counters of norms."""
    counted = "num_batches_tracked"
    return detr_names.official({k: v for k, v in state.items() if not k.endswith(counted)})


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return the variant and the number of classes, None where it is not such a DETR."""
    classes = outputs(state, "class_embed.weight")
    found = detr_family.variant(state)
    if classes is None or found is None:
        return None
    check_colours(inputs(state, "backbone.0.body.conv1.weight") or COLOURS)
    variant = stated(facts, found, recipe.variants)
    count = classes - 1
    return Found(
        variant,
        count,
        resolve({}, facts),
        build=lambda: build(variant, count, (0, 0)),
        assumed=detr_family.assumed(variant, facts),
    )


KEEP_FLOAT = (
    KeepFloat(
        r"^(class_embed|bbox_embed\.layers\.2)\b",
        "its outputs are the scores and the sides of boxes themselves, and it is about a "
        "thousandth of the work",
    ),
    KeepFloat(r"^padding\b", "angles of places, of which FP16 loses digits", Precision.FP32),
    KeepFloat(
        r"^select\b",
        "boxes in pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
MARKS = ("transformer.decoder.layers.0.multihead_attn.", "model.query_position_embeddings.")
OFFICIAL = Variant(
    detr_family.PREPROCESS, KEEP_FLOAT, 1, ("input_proj",), {"padded": detr_family.PADDED}
)
recipe = Recipe(
    name="detr",
    task="detection",
    variants={
        **dict.fromkeys(detr_family.NAMES, OFFICIAL),
        LIGHT: Variant(
            detr_family.SMALL, KEEP_FLOAT, 16, ("input_proj",), {"padded": detr_family.PADDED}
        ),
    },
    build=build,
    identify=identify,
    outputs=dense_family.OUTPUTS,
    adapt=adapt,
    extra_inputs=dense_family.image_sizes,
    class_names=dense_family.coco_ids,
)
