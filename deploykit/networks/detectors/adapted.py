"""What the networks from other projects' checkpoints have in common beside torchvision's parts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torchvision.models.resnet import Bottleneck

from deploykit.errors import CheckpointError
from deploykit.recipes import identity
from deploykit.recipes.identity import Choice, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from deploykit.networks.detectors.grids import Array
    from deploykit.networks.detectors.two_stage import TwoStage
    from deploykit.networks.detectors.two_stage_models import Sizes
    from deploykit.recipes.identity import Plain, Settings
    from deploykit.recipes.recipe import StateDict

_SCORES = re.compile(r"\.box_predictor\.cls_score\.(weight|bias)$")
_EACH = re.compile(r"\.(box_predictor\.bbox_pred|mask_predictor\.mask_fcn_logits)\.")
FIRST_STRIDE = 4
"""Input pixels per cell of the finest level; twice as many at each that follows, exactly."""


def stored_anchors(state: StateDict, wanted: Sizes) -> dict[str, Plain]:
    """Return the anchors of the first cell of each level, where a state dict has them.

    Raises: CheckpointError where they are not those of the weights.
    """
    cells = [state[f"cell_anchors_{i}"] for i in range(len(state)) if f"cell_anchors_{i}" in state]
    if not cells:
        return {}
    levels = len(wanted.stages) + 1
    if [tuple(c.shape) for c in cells] != [(wanted.anchors, 4)] * levels:
        raise CheckpointError(
            f"anchors of the shapes {[list(c.shape) for c in cells]}",
            expected=f"{levels} levels of [{wanted.anchors}, 4], as the weights say",
        )
    return {"anchors": frozen([c.tolist() for c in cells])}


def with_background(key: str, value: Tensor, classes: int) -> Tensor:
    """Return a head's weights with the background first, not last, and rows for every class.

    A head that treats all classes alike has those of one.
    """
    if value.ndim and _SCORES.search(key):
        return torch.cat([value[-1:], value[:-1]])
    if not value.ndim or not _EACH.search(key):
        return value
    rows = 4 if ".bbox_pred." in key else 1
    if len(value) == rows:
        value = value.repeat(classes, *(1,) * (value.ndim - 1))
    return torch.cat([value.new_zeros(rows, *value.shape[1:]), value])


def choices(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    stored: Mapping[str, Plain],
    *,
    in_1x1: bool | None,
    channels: str = "BGR",
) -> dict[str, Choice]:
    """Return the settings of the images, of the strides in a body, and of anchors that are stored.

    in_1x1: whether a ResNet has its strides there; None: it is none. channels: the
    order of an image's.
    """
    found = {
        "mean": Choice(mean, "mean", identity.three),
        "std": Choice(std, "deviation", identity.spread),
        "channels": Choice(channels, "channels", identity.colours),
    }
    if in_1x1 is not None:
        found["stride_in_1x1"] = Choice(in_1x1, "strides in the 1x1 convolutions", identity.truth)
    anchors = stored.get("anchors")
    return found | ({"anchors": Choice(anchors, "anchors", lambda v: v)} if anchors else {})


def set_strides(model: Any, settings: Settings) -> None:  # noqa: ANN401 - torchvision ships no types
    """Put the strides of a body where the settings have them: torchvision's are in the 3x3."""
    for block in model.modules():
        if isinstance(block, Bottleneck) and settings["stride_in_1x1"].value:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def cells(settings: Settings) -> list[Array]:
    """Return the anchors of the first cell of each level, empty where no file holds them."""
    given = settings["anchors"].value if "anchors" in settings else ()
    return [np.array(level, np.float32) for level in cast("tuple[Any, ...]", given)]


def set_anchors(made: TwoStage, found: Sequence[Array]) -> None:
    """Give a network anchors, those of a level as far apart as its stride says."""
    made.cells = list(found)
    made.steps = tuple(FIRST_STRIDE * 2**level for level in range(len(found)))


def keep(made: nn.Module, names: Iterable[str], state: StateDict) -> None:
    """Let a network have entries of its state dict that are no weights."""
    for name in names:
        made.register_buffer(name, torch.zeros_like(state.get(name, torch.empty(0))))
