"""HRNet W18 to W64 and both small ones: ImageNet classifiers.

Source: github.com/HRNet/HRNet-Image-Classification (MIT) for the names of parameters; see
`deploykit.networks.hrnet`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.data.presets import PRESETS
from deploykit.networks.hrnet import backbone, heads
from deploykit.networks.states import COLOURS, check_colours, inputs, outputs
from deploykit.recipes.recipe import KeepFloat, Recipe, Variant
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from deploykit.recipes.identity import Facts
    from deploykit.recipes.recipe import StateDict


def build(variant: str, classes: int, _: tuple[int, int]) -> heads.Classifier:
    """Return the network of a variant as it was trained, in eval mode."""
    return heads.Classifier(backbone.VARIANTS[variant], classes).eval()


def adapt(state: StateDict) -> StateDict:
    """Return `state` with a bias for every convolution of the head: timm's `ssld` have none."""
    bare = {
        key: value
        for key, value in state.items()
        if key.startswith(("downsamp_modules.", "final_layer.")) and value.ndim == 4
    }
    biases = {key.replace(".weight", ".bias"): value[:, 0, 0, 0] * 0 for key, value in bare.items()}
    return {**state, **{key: value for key, value in biases.items() if key not in state}}


def identify(state: StateDict, _: Facts) -> tuple[str, int] | None:
    """Return the variant and the number of classes, None where it is not such an HRNet."""
    classes = outputs(state, "classifier.weight")
    if classes is None or "incre_modules.0.0.conv1.weight" not in state:
        return None
    check_colours(inputs(state, "conv1.weight") or COLOURS)
    name = backbone.variant(state)
    return None if name is None else (name, classes)


KEEP_FLOAT = (
    KeepFloat(
        r"^classifier\b",
        "its outputs are the class scores themselves, which INT8 would round to ties, and it is "
        "about a thousandth of the work",
    ),
)
PREPROCESS = PRESETS["imagenet"].sized((224, 224))
"""ImageNet's: the short side to 256, the centre, its mean and deviation."""
MARKS = ("incre_modules.",)
recipe = Recipe(
    name="hrnet",
    task="classification",
    variants={
        name: Variant(PREPROCESS, KEEP_FLOAT, features=("final_layer",))
        for name in backbone.VARIANTS
    },
    build=build,
    identify=identify,
    outputs=(Output("logits", "logits"),),
    adapt=adapt,
)
