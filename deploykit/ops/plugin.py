"""What a file in plugins/ defines: one custom op, with its meaning and its bodies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from deploykit.files import extensions

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from torch import Tensor

    from deploykit.ops.tape import Tape

    Body: TypeAlias = Callable[["Tape", "Call"], Sequence[ir.Value]]
    """Writes what one use of the op computes in standard ONNX ops; returns its outputs."""

NAMESPACE = "deploykit"
"""ONNX domain, TensorRT plugin namespace and torch library of every op."""
Size: TypeAlias = "int | str | tuple[int, int]"
"""Of an output: a number, the name of an attribute, or (input, axis)."""
VALUE = int | float | str | tuple[float, ...]


@dataclass(frozen=True)
class Attribute:
    """A number or a name that an op is configured with."""

    name: str
    default: int | float | str | tuple[float, ...]
    """Its type is the type that every value has; flags are the ints 0 and 1."""
    expected: str
    """What a valid value is, in words, for the error."""
    valid: Callable[[Any], bool]


POOLED_SIZE = tuple(
    Attribute(f"output_{side}", 7, "1 to 64", lambda v: 1 <= v <= 64)
    for side in ("height", "width")
)
"""What an op that pools regions makes of each."""
POOLED: tuple[tuple[Size, ...], ...] = (
    ((0, 0), (0, 1)),
    ((2, 1),),
    ("output_height",),
    ("output_width",),
)
"""Shape of what it returns, of boxes [B, R, 4], count [B] and features [B, C, H, W]."""
ROWS = Attribute("per_image", 1, "1 or more", lambda v: v >= 1)
"""R of the rows T[B * R, ...] that an op packs."""


@dataclass(frozen=True)
class Input:
    """One operand of an op."""

    name: str
    """One that ends in `...` is the last, and stands for one input or more."""
    dtype: str = ""
    """float32 or int32; "": FP32 or FP16, one type for all such inputs of an op, the features'."""


@dataclass(frozen=True)
class Output:
    """One result of an op."""

    name: str
    dtype: str
    """float32, int32, or the name of the input whose type it has."""


@dataclass(frozen=True)
class Call:
    """One use of an op, as a body sees it."""

    inputs: tuple[ir.Value, ...]
    """With types and shapes; dimension 0, the batch, may be dynamic."""
    attributes: Mapping[str, Any]
    """Complete and valid."""

    def dims(self, index: int) -> tuple[int, ...]:
        """Return the sizes of input `index` after the batch dimension."""
        shape = self.inputs[index].shape
        assert shape is not None  # checked before a body is written
        return tuple(int(dim) for dim in shape[1:])  # type: ignore[arg-type]  # static, as above

    def dtype(self, index: int) -> np.dtype[np.generic]:
        """Return the element type of input `index`."""
        dtype = self.inputs[index].dtype
        assert dtype is not None  # checked before a body is written
        return dtype.numpy()


Shapes: TypeAlias = "Sequence[tuple[int, ...]]"
"""Of the inputs of an op, batch included."""


@dataclass(frozen=True)
class Launcher:
    """How the kernels of an op are called: see `ops.launching`."""

    params: Callable[[Mapping[str, Any], Shapes], ctypes.Structure]
    """(attributes, shapes) -> the launcher's first argument."""
    shapes: tuple[tuple[tuple[Size, ...], ...], ...]
    """Of each output: its dimensions, each a product of sizes."""
    workspace: Callable[[Mapping[str, Any], Shapes], int] | None = None
    """(attributes, shapes) -> bytes; None: the launcher takes none."""


@dataclass(frozen=True)
class Suppression:
    """What an op that chooses a detector's rows declares: which attributes it chooses by."""

    score_threshold: str = "score_threshold"
    """Rows have scores above it."""
    iou_threshold: str = "iou_threshold"
    class_agnostic: str = ""
    """Whether rows of different classes suppress each other; "": never."""


@dataclass(frozen=True)
class Plugin:
    """One custom op: names, meaning, and bodies in standard ops for runtimes without it."""

    name: str
    """ONNX op type. Starts with DK: a parser takes an op type it knows for its own."""
    version: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    attributes: tuple[Attribute, ...]
    reference: Callable[..., Any]
    """The meaning: torch tensors (a list for `...`), attributes as keywords -> tensors."""
    fake: Callable[..., Any]
    """The same signature, on tensors without data: outputs of the right shape and type."""
    runtime_body: Body
    """What ONNX Runtime runs fast on a CPU; data-dependent shapes inside are fine."""
    portable_body: Body
    """What TensorRT builds without the plugin: no NonMaxSuppression, NonZero, RoiAlign, If,
    DeformConv; TopK with K <= 3840; no FP32 matrix product."""
    source: str = ""
    """File name of the CUDA source beside the plugin's file; "": standard ops everywhere, and no
    TensorRT plugin."""
    launcher: Launcher | None = None
    """How the source's launcher is called; None with a source: no plugin from Python."""
    why_float: str = "is an op of its own, with kernels for floats"
    """Why an op with a source has no Q/DQ of its own, and computes in FP32 where no input gives it
    another type; it follows the op's name."""
    suppression: Suppression | None = None
    """Of an op that chooses the rows of a detector's results."""
    rows: Literal["", "packed", "unpacked"] = ""
    """Whether the first dimension of what follows is of the op's own making, from one that packs
    rows to one that unpacks them."""
    file: Path | None = None
    """The file that defines it; whoever loads it says so."""
    check: Callable[[Mapping[str, Any], Sequence[tuple[int, ...]]], str] = lambda _, __: ""
    """(attributes, sizes of each input after the batch) -> what is wrong between them, or ""."""

    @property
    def op(self) -> str:
        """Return the op's name in torch, the stem of its files: roi_pool for DKRoiPool."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name.removeprefix("DK")).lower()

    @property
    def variadic(self) -> bool:
        """Return whether the last input stands for several."""
        return self.inputs[-1].name.endswith("...")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the inputs, each without dots."""
        return tuple(each.name.removesuffix("...") for each in self.inputs)

    def input(self, place: int) -> Input:
        """Return the input at a place of a node, where the last may stand for several."""
        return self.inputs[min(place, len(self.inputs) - 1)]

    @property
    def features(self) -> int | None:
        """Return the place of the first input that may be FP32 or FP16, None where none may."""
        return next((i for i, each in enumerate(self.inputs) if not each.dtype), None)


OPS = extensions.Kind("plugin", "plugins", Plugin)


def present(op: Tape, count: ir.Value, rows: int) -> ir.Value:
    """Return which of `rows` padded rows per image are there, bool[B, rows]; count: int32[B]."""
    found: ir.Value = op.Less(np.arange(rows, dtype=np.int32)[None], op.Unsqueeze(count, [1]))
    return found


def empty_rows(rows: Tensor, count: Tensor, **_: int) -> Tensor:  # noqa: ARG001 - the ops' signature
    """Return what packing or unpacking T[B * R, ...] gives, without data: the fake of both ops."""
    return rows.new_empty(rows.shape)


def rows_mismatch(_: Mapping[str, Any], sizes: Sequence[tuple[int, ...]]) -> str:
    """Return what is wrong between rows T[n, ...] and count int32[B], sizes without n and B."""
    return f"count is [{', '.join(map(str, ('B', *sizes[1])))}], expected [B]" if sizes[1] else ""


def regions_mismatch(sizes: Sequence[tuple[int, ...]]) -> str:
    """Return what is wrong between the inputs of an op that pools regions, "" where nothing is.

    sizes: of boxes float32[B, R, 4], count int32[B] and each level T[B, C, H, W], after the batch.
    """
    boxes, count, *levels = (f"[{', '.join(map(str, ('B', *size)))}]" for size in sizes)
    if len(sizes[0]) != 2 or sizes[0][1] != 4 or sizes[0][0] == 0:
        return f"boxes are {boxes}, expected [B, R, 4], R > 0"
    if sizes[1]:
        return f"count is {count}, expected [B]"
    for level, size in zip(levels, sizes[2:], strict=True):
        if len(size) != 3 or 0 in size or size[0] != sizes[2][0]:
            return f"features are {level}, expected [B, C, H, W] with one C"
    return ""
