"""DETR with masks, as it is trained for panoptic segmentation: each object found with its mask.

Source: github.com/facebookresearch/detr (Apache-2.0) for the names of parameters and the
evaluation; those of transformers are read too. See `deploykit.networks.detr_masks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from deploykit.networks import detr, detr_bodies, detr_family, detr_masks, detr_names
from deploykit.networks.detectors import dense, dense_family, panoptic_names
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes.identity import Choice, Found, Setting, assumptions, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks import masks
from deploykit.tasks.outputs import Output
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict

CHOICES = {"detections": Choice(detr.QUERIES, "objects with masks", dense.up_to_most)}


def build(variant: str, classes: int, _: tuple[int, int]) -> detr_masks.Network:
    """Return the network of a variant as it was trained, in eval mode."""
    return _network(variant, classes, detr.QUERIES)


def _network(variant: str, classes: int, detections: int) -> detr_masks.Network:
    depth, dilated = detr_family.body(variant)
    body, sizes = detr_bodies.AllStages(depth, dilated=dilated), detr.Sizes(layers=detr.LAYERS)
    return detr_masks.Network(body, classes, sizes, detections=detections).eval()


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return the variant and the number of classes, None where it is no DETR with masks."""
    inside = detr_names.inside(state)
    classes, found = outputs(inside, "class_embed.weight"), detr_family.variant(inside)
    if (
        not classes
        or not found
        or found == detr_family.LIGHT
        or "mask_head.lay1.weight" not in state
    ):
        return None
    check_colours(inputs(inside, f"{detr_family.BODY}.conv1.weight") or COLOURS)
    variant, count = stated(facts, found, recipe.variants), classes - 1
    settings = resolve(CHOICES, facts)
    detections = cast("int", settings["detections"].value)
    said = assumptions(CHOICES, settings), detr_family.assumed(variant, facts)
    settings[masks.SETTING] = Setting("whole", "weights")
    return Found(
        variant,
        count,
        settings,
        build=lambda: _network(variant, count, detections),
        assumed="; ".join(filter(None, said)),
    )


KEEP_FLOAT = (
    KeepFloat(
        r"^detr\.(class_embed|bbox_embed\.layers\.2)\b|^mask_head\.out_lay\b",
        "its outputs are the scores, the sides of boxes and the masks themselves, and it is about "
        "a hundredth of the work",
    ),
    KeepFloat(r"^detr\.padding\b", "angles of places, of which FP16 loses digits", Precision.FP32),
    KeepFloat(
        r"^detr\.select\b",
        "boxes in pixels: above 512 px neighbouring FP16 numbers are 0.5 px apart",
        Precision.FP32,
    ),
)
OFFICIAL = Variant(
    detr_family.PREPROCESS, KEEP_FLOAT, 1, ("detr.input_proj",), {"padded": detr_family.PADDED}
)
MARKS = ("bbox_attention.",)
recipe = Recipe(
    name="detr_panoptic",
    task="instance_segmentation",
    variants=dict.fromkeys(detr_family.NAMES, OFFICIAL),
    build=build,
    identify=identify,
    outputs=(*dense_family.OUTPUTS, Output("masks", "mask")),
    adapt=detr_names.with_masks,
    extra_inputs=dense_family.image_sizes,
    class_names=panoptic_names.at_ids,
)
