"""The names that Keras gives the weights of matterport's Mask R-CNN, and what they become here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.networks.detectors.keras_rcnn import Widths
from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from deploykit.recipes.recipe import StateDict

_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_PATH = re.compile(rf"^(?:.*/)?([^/]+)/({'|'.join(_WEIGHTS)}):0$")
"""A path in the file: maybe groups around it, the layer, its weight."""
_BRANCH = re.compile(r"^(res|bn)([2-5])([a-z])_branch(1|2[abc])$")
_NAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^conv1$"), "body.stem.0"),
    (re.compile(r"^bn_conv1$"), "body.stem.1"),
    (
        _BRANCH,
        lambda m: (
            f"body.stages.{int(m[2]) - 2}.{ord(m[3]) - ord('a')}.branch{m[4]}.{int(m[1] == 'bn')}"
        ),
    ),
    (re.compile(r"^fpn_c([2-5])p\1$"), lambda m: f"pyramid.lateral.{int(m[1]) - 2}"),
    (re.compile(r"^fpn_p([2-5])$"), lambda m: f"pyramid.output.{int(m[1]) - 2}"),
    (re.compile(r"^rpn_(conv_shared|class_raw|bbox_pred)$"), r"rpn.\1"),
    (re.compile(r"^mrcnn_class_(conv|bn)([12])$"), lambda m: f"box.conv{m[2]}.{int(m[1] == 'bn')}"),
    (re.compile(r"^mrcnn_class_logits$"), "box.logits"),
    (re.compile(r"^mrcnn_bbox_fc$"), "box.bbox_fc"),
    (re.compile(r"^mrcnn_mask_(conv|bn)([1-4])$"), r"mask.convs.\1\2"),
    (re.compile(r"^mrcnn_mask_deconv$"), "mask.deconv"),
    (re.compile(r"^mrcnn_mask$"), "mask.mask"),
)
_TURNED = re.compile(r"^(rpn\.bbox_pred|box\.bbox_fc)\.")
"""Layers whose outputs are dy, dx, dh, dw."""


def adapt(state: StateDict) -> StateDict:
    """Return `state` under the names used here, from the paths in a Keras file.

    Of a path the last two parts say all: the layer's name and the weight's. What was adapted once
    stays as it is.
    """
    return dict(_adapted(key, value) for key, value in state.items())


def _adapted(key: str, value: Tensor) -> tuple[str, Tensor]:
    path = _PATH.match(key)
    if path is None:
        return key, value
    name = next((p.sub(new, path[1]) for p, new in _NAMES if p.match(path[1])), None)
    if name is None:
        return key, value
    if path[2] == "kernel":
        value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.t()
    if _TURNED.match(name + ".") and value.shape[0] % 4 == 0:
        rows = value.reshape(-1, 4, *value.shape[1:])[:, [1, 0, 3, 2]]
        value = rows.reshape(value.shape)
    return f"{name}.{_WEIGHTS[path[2]]}", value.contiguous()


def widths(state: StateDict) -> Widths | None:
    """Return the channels of an adapted state dict, None where a layer is missing."""
    stages = [
        tuple(outputs(state, f"body.stages.{i}.0.branch2{part}.0.weight") for part in "ac")
        for i in range(4)
    ]
    cells = outputs(state, "rpn.bbox_pred.weight")
    names = (
        *("body.stem.0", "pyramid.output.0", "rpn.conv_shared", "box.conv1.0"),
        "mask.convs.conv1",
    )
    single = [outputs(state, f"{name}.weight") for name in names]
    if cells is None or None in single or any(None in stage for stage in stages):
        return None
    stem, pyramid, rpn, hidden, mask = (int(n or 0) for n in single)
    inner = tuple((int(a or 0), int(c or 0)) for a, c in stages)
    return Widths(stem, inner, pyramid, rpn, hidden, mask, cells // 4)
