"""The launchers of plugins/*.cu as they are called from Python: parameters, shapes, memory.

Each is `int deploykit_<op>(params, inputs..., outputs...[, workspace][, element], stream)`, where
several inputs of one name go as an array of pointers, and `element` is the type of the features.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from deploykit.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.ops.plugin import Plugin

    Values: TypeAlias = Mapping[str, Any]
    """Attributes of an op, complete."""
    Shapes: TypeAlias = Sequence[tuple[int, ...]]
    """Of its inputs, batch included."""

MOST_LEVELS = 5
ELEMENTS = ("float32", "float16", "int8")
"""Types of features, by the launchers' numbers."""
Size: TypeAlias = "int | str | tuple[int, int]"
"""Of an output: a number, the name of an attribute, or (input, axis)."""


class AlignParams(ctypes.Structure):
    """`MultiscaleRoiAlignParams` of plugins/multiscale_roi_align.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "rows", "channels", "levels")),
        *((name, ctypes.c_int * MOST_LEVELS) for name in ("heights", "widths")),
        ("spatial_scales", ctypes.c_float * MOST_LEVELS),
        *((name, ctypes.c_int) for name in ("output_height", "output_width", "sampling_ratio")),
        *((name, ctypes.c_int) for name in ("aligned", "maximum")),
        ("canonical_size", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("canonical_level", "first_level")),
        ("level_epsilon", ctypes.c_float),
        ("epsilon_inside", ctypes.c_int),
        *((name, ctypes.c_float) for name in ("input_scale", "output_scale")),
    )


class PoolParams(ctypes.Structure):
    """`RoiPoolParams` of plugins/roi_pool.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "rows", "channels", "height", "width")),
        *((name, ctypes.c_int) for name in ("output_height", "output_width")),
        ("spatial_scale", ctypes.c_float),
    )


class NmsParams(ctypes.Structure):
    """`BatchedNmsParams` of plugins/batched_nms.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "boxes", "candidates", "max_detections")),
        *((name, ctypes.c_float) for name in ("iou_threshold", "score_threshold")),
        *((name, ctypes.c_int) for name in ("class_agnostic", "offset_grouping")),
    )


_ALIGN_VALUES = (
    *("output_height", "output_width", "sampling_ratio", "aligned", "canonical_size"),
    *("canonical_level", "first_level", "level_epsilon", "epsilon_inside"),
)
_POOL_VALUES = ("output_height", "output_width", "spatial_scale")
_NMS_VALUES = (
    "candidates",
    "max_detections",
    "iou_threshold",
    "score_threshold",
    "class_agnostic",
)
"""Attributes that go into the parameters as they are, in that order."""


def _align_params(values: Values, shapes: Shapes) -> AlignParams:
    (batch, rows, _), _, *levels = shapes
    params = AlignParams(batch, rows, levels[0][1], len(levels))
    for index, (level, scale) in enumerate(zip(levels, values["spatial_scales"], strict=True)):
        params.heights[index], params.widths[index] = level[2:]
        params.spatial_scales[index] = scale
    for name in _ALIGN_VALUES:
        setattr(params, name, values[name])
    params.maximum = values["mode"] == "max"
    return params


def _pool_params(values: Values, shapes: Shapes) -> PoolParams:
    (batch, rows, _), _, (_, *sizes) = shapes
    return PoolParams(batch, rows, *sizes, *(values[name] for name in _POOL_VALUES))


def _nms_params(values: Values, shapes: Shapes) -> NmsParams:
    named = (values[name] for name in _NMS_VALUES)
    return NmsParams(*shapes[0][:2], *named, values["grouping"] == "offset")


_BOX, _KEY, _TILE, _WORD = 16, 8, 4096, 64


def _nms_workspace(values: Values, shapes: Shapes) -> int:
    """Return what `workspace_bytes` in plugins/batched_nms.cuh does."""
    batch, boxes = shapes[0][:2]
    most = min(values["candidates"], boxes)
    tile = min(1 << max(most - 1, 0).bit_length(), _TILE)
    sorted_keys = -(-most // tile) * tile
    mask = most * -(-most // _WORD) * _KEY
    return int(batch * (most * (_BOX + 8) + sorted_keys * _KEY + mask + 8))


@dataclass(frozen=True)
class Launcher:
    """How the launcher of one op is called."""

    params: Callable[[Values, Shapes], ctypes.Structure]
    shapes: tuple[tuple[tuple[Size, ...], ...], ...]
    """Of each output: its dimensions, each a product of sizes."""
    workspace: Callable[[Values, Shapes], int] | None = None
    """Bytes; None: the launcher takes none."""


_POOLED: tuple[tuple[Size, ...], ...] = (
    ((0, 0), (0, 1)),
    ((2, 1),),
    ("output_height",),
    ("output_width",),
)
_BATCH: tuple[Size, ...] = ((0, 0),)
_ROWS: tuple[tuple[Size, ...], ...] = (_BATCH, ("max_detections",))
LAUNCHERS: Mapping[str, Launcher] = {
    "DKMultiscaleRoiAlign": Launcher(_align_params, (_POOLED,)),
    "DKRoiPool": Launcher(_pool_params, (_POOLED,)),
    "DKBatchedNms": Launcher(
        _nms_params, ((*_ROWS, (4,)), _ROWS, _ROWS, _ROWS, (_BATCH,)), _nms_workspace
    ),
}


@dataclass(frozen=True)
class Buffers:
    """Addresses that one call reads and writes, and its stream."""

    inputs: Sequence[int]
    outputs: Sequence[int]
    workspace: int = 0
    stream: int = 0


def launch(
    library: ctypes.CDLL,
    plugin: Plugin,
    params: ctypes.Structure,
    buffers: Buffers,
    element: str = "float32",
) -> None:
    """Call the launcher of `plugin` in a library of compiled kernels.

    element: type of the features, one of `ELEMENTS`. Raises: BackendError with the CUDA error.
    """
    single = len(plugin.inputs) - plugin.variadic
    arguments = [ctypes.c_void_p(address) for address in buffers.inputs[:single]]
    several = [
        (ctypes.c_void_p * MOST_LEVELS)(*buffers.inputs[single:]) for _ in range(plugin.variadic)
    ]
    outputs = [ctypes.c_void_p(address) for address in buffers.outputs]
    more: list[Any] = []
    if LAUNCHERS[plugin.name].workspace is not None:
        more.append(ctypes.c_void_p(buffers.workspace))
    if any(output.dtype not in ("float32", "int32") for output in plugin.outputs):
        more.append(ELEMENTS.index(element))
    function = getattr(library, f"deploykit_{plugin.op}")
    stream = ctypes.c_void_p(buffers.stream)
    status = function(ctypes.byref(params), *arguments, *several, *outputs, *more, stream)
    if status:
        raise BackendError(f"the kernels of {plugin.name} failed: CUDA error {status}")
