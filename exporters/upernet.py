"""UPerNet on Swin and on MPViT: semantic segmentation.

Source: Unified Perceptual Parsing (arXiv 1807.10221) and Swin Transformer (arXiv 2103.14030).
Key names are mmsegmentation's, and those of Swin's and MPViT's own segmenters, made from it; see
`deploykit.networks.upernet`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.networks import bodies, mm_config, mpvit_names, swin_names
from deploykit.networks.class_names import cityscapes
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.networks.upernet import Segmenter
from deploykit.recipes import identity
from deploykit.recipes.identity import Choice, Found, assumptions, resolve, stated
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output
from deploykit.tasks.semantic import ALIGNED

if TYPE_CHECKING:
    from deploykit.data.preprocess import Preprocess
    from deploykit.recipes.identity import Facts, Plain, Settings
    from deploykit.recipes.recipe import StateDict

BODY, HEAD, TRAINING = "backbone.", ("model", "decode_head"), "auxiliary_head."
"""How names begin, where a configuration has the head, and what only training reads."""
PYRAMID = "decode_head.fpn_bottleneck.conv.weight"
SHORT, MULTIPLE = 512, 32
"""Short side of images of ADE20K, and of what sides of inputs are multiples."""
PREPROCESS = mm_config.prepared((SHORT, 704))
CHOICES = {
    ALIGNED: Choice(False, "maps grown with the corners aligned:", identity.truth),
    "mean": Choice(PREPROCESS.mean, "mean", identity.three),
    "std": Choice(PREPROCESS.std, "deviation", identity.spread),
    "channels": Choice("RGB", "channels", identity.colours),
    "min_size": Choice(SHORT, "short side", identity.side),
    "max_size": Choice(4 * SHORT, "long side at most", identity.side),
}
CARRIED: tuple[tuple[tuple[str, ...], tuple[Plain, ...]], ...] = (
    ((*HEAD, "type"), ("UPerHead",)),
    ((*HEAD, "pool_scales"), ((1, 2, 3, 6),)),
    (("model", "test_cfg", "mode"), ("whole",)),
)
"""Paths in a configuration, and the values there that the network has."""


def build(variant: str, classes: int, _: object, *, aligned: bool = False) -> Segmenter:
    """Return the network of a variant as it was trained, in eval mode."""
    return Segmenter(bodies.body(variant), classes, aligned=aligned).eval()


def adapt(state: StateDict) -> StateDict:
    """Return `state` with the official names of a body, without the head of training."""
    kept = {key: value for key, value in state.items() if not key.startswith(TRAINING)}
    return mpvit_names.shared(swin_names.official(kept, BODY))


def identify(state: StateDict, facts: Facts) -> Found | None:
    """Return what the weights and the file say, None where it is another network."""
    classes, body = outputs(state, "decode_head.conv_seg.weight"), bodies.name(state, BODY)
    if classes is None or body not in VARIANTS or outputs(state, PYRAMID) is None:
        return None
    first = inputs(state, f"{BODY}patch_embed.proj.weight", f"{BODY}stem.0.conv.weight")
    check_colours(first or COLOURS)
    variant, config = stated(facts, body, VARIANTS), mm_config.read(facts.beside)
    mm_config.check(config, CARRIED)
    corners = mm_config.at(config, *HEAD, "align_corners")
    said = mm_config.images(config) | ({} if corners is None else {ALIGNED: corners})
    settings = resolve(CHOICES, facts, said)
    aligned = bool(settings[ALIGNED].value)
    return Found(
        *(variant, classes, settings),
        build=lambda: build(variant, classes, None, aligned=aligned),
        preprocess=lambda size: prepared(settings, size),
        assumed=assumptions(CHOICES, settings),
    )


def prepared(settings: Settings, size: tuple[int, int] | None) -> Preprocess:
    """Return how images are made for an input of `size` (H, W).

    Without one the canvas holds images of 4 to 3, of 2 to 1 where that is as long as they may be.
    """
    made: Any = {name: setting.value for name, setting in settings.items()}
    short, long = made["min_size"], made["max_size"]
    wide = long if long <= 2 * short else -(-4 * short // 3)
    made["size"] = tuple(side + -side % MULTIPLE for side in (short, wide))
    own = {name: made[name] for name in ("size", "mean", "std", "channels")}
    return replace(PREPROCESS, **own).turned().sized(size).at_scale(short, long)


KEEP_FLOAT = (
    KeepFloat(
        r"^decode_head\.conv_seg\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is a "
        "small part of the work",
    ),
    KeepFloat(
        r"^decode_head\.psp_modules\.\d\.0\b",
        "means over parts of the map, by constant shares: a vanishing part of the work",
    ),
)
VARIANTS = {
    name: Variant(PREPROCESS.turned(), KEEP_FLOAT, MULTIPLE, ("decode_head.fpn_bottleneck",))
    for name in bodies.NAMES
}
MARKS = ("decode_head.psp_modules.",)
recipe = Recipe(
    name="upernet",
    task="semantic_segmentation",
    variants=VARIANTS,
    build=build,
    identify=identify,
    outputs=(Output("out", "logits"),),
    adapt=adapt,
    class_names=cityscapes,
)
