"""What TensorRT refuses in a Q/DQ graph, and what it runs in float without a word.

Each rule is a row of `RULES`. An `error` is refused by the parser or silently runs in float; a
`warning` costs speed or accuracy; an `info` is worth knowing. Measured with TensorRT-RTX 1.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploykit.ops.plugin import NAMESPACE
from deploykit.precision.lint import checks, refusals
from deploykit.precision.lint.checks import ACTIVATIONS, AXIS_SCALES, DQ, FP16_SCALES, Q
from deploykit.precision.placement.rules import PASS_THROUGH

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from deploykit.precision.lint.checks import Facts, Message

ANY: tuple[str, ...] = ()
"""Every op of the rule's domains."""
Severity: TypeAlias = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Rule:
    """One thing that goes wrong in Q/DQ graphs."""

    id: str
    severity: Severity
    ops: tuple[str, ...]
    """The node types it looks at; none named: all of its domains."""
    check: Callable[[ir.Node, Facts], Message]
    fix: str
    domains: tuple[str, ...] = ("", "ai.onnx")
    """Of the node types."""


INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
"""Ops that multiply integers, which TensorRT refuses."""
RULES = (
    Rule(
        "quantized-op",
        "error",
        (*INTEGER_OPS, "DynamicQuantizeLinear"),
        checks.quantized_op,
        "quantize in QDQ format",
    ),
    Rule("zero-point", "error", (Q, DQ), checks.asymmetric, "quantize symmetrically, int8"),
    Rule("unsigned", "warning", (Q, DQ), checks.unsigned, "use int8"),
    Rule("scale", "error", (Q, DQ), checks.bad_scale, "clamp scales to a small positive constant"),
    Rule("int32-bias", "error", (DQ,), checks.int32, "keep the bias float"),
    Rule(
        "per-channel-activation",
        "error",
        (Q,),
        checks.per_channel_activation,
        "use one scale for the whole activation",
    ),
    Rule(
        "axis-opset",
        "error",
        (Q, DQ),
        checks.old_axis,
        f"export with opset {AXIS_SCALES} or up",
    ),
    Rule(
        "fp16-scale-opset",
        "error",
        (Q, DQ),
        checks.half_scale,
        f"export with opset {FP16_SCALES} or up",
    ),
    Rule(
        "scale-type",
        "error",
        (Q, DQ),
        checks.mixed_types,
        "give the scale the type of the float tensor: networks are strongly typed",
    ),
    Rule(
        "weight-axis",
        "error",
        ("Conv", "Gemm", "MatMul"),
        checks.wrong_axis,
        "quantize weights per output channel: axis 0 of Conv, the N axis of Gemm and MatMul",
    ),
    Rule(
        "float-weights",
        "error",
        ("Conv", "Gemm", "MatMul"),
        checks.float_weights,
        "quantize its weights too, or take the Q/DQ off its input",
    ),
    Rule(
        "float-input",
        "error",
        ("Conv", "Gemm", "MatMul"),
        checks.float_data,
        "put Q/DQ on its input, or keep its weights float",
    ),
    Rule(
        "resize-unclosed",
        "error",
        ("Resize",),
        checks.unclosed_resize,
        "put Q/DQ behind it too, with the same scale",
    ),
    Rule(
        "kernel-shape",
        "error",
        ("Conv", "ConvTranspose"),
        checks.kernel_shape,
        "write the kernel_shape attribute: `deploykit fuse` does",
    ),
    Rule(
        "split-fusion",
        "warning",
        ACTIVATIONS,
        checks.splits_fusion,
        "put the Q/DQ behind the activation function",
    ),
    Rule(
        "concat-scales",
        "warning",
        ("Concat",),
        checks.concat_scales,
        "give all its inputs and its output one scale",
    ),
    Rule(
        "moved-scales",
        "warning",
        tuple(PASS_THROUGH),
        checks.moved_scales,
        "use one scale before and behind it",
    ),
    Rule(
        "float-skip",
        "warning",
        ("Add",),
        checks.float_skip,
        "let the Add read the INT8 copy: Q/DQ on the skip branch only",
    ),
    Rule(
        "group-channels",
        "info",
        ("Conv",),
        checks.groups,
        "keep it float for a T4: `deploykit quantize --sm T4`",
    ),
    Rule("transposed", "warning", ("ConvTranspose",), checks.transposed, "keep its weights float"),
    Rule("few-channels", "info", ("Conv",), checks.few_channels, "time it in float as well"),
    Rule(
        "float-copy",
        "info",
        (Q,),
        checks.float_copy,
        "let the others read the INT8 copy, where they can spare the accuracy",
    ),
    Rule("no-int8-cores", "error", (Q,), checks.no_int8_cores, "build the FP16 model for this GPU"),
    Rule(
        "plugin-namespace",
        "error",
        ANY,
        refusals.no_namespace,
        "export the model again with `deploykit export`",
        (NAMESPACE,),
    ),
    Rule(
        "branches",
        "error",
        ("If",),
        refusals.uneven_branches,
        "export with fixed shapes: `deploykit export` writes detectors without If",
    ),
    Rule(
        "dynamic-result",
        "warning",
        tuple(refusals.DYNAMIC_RESULTS),
        refusals.dynamic_result,
        "use a form with fixed shapes, padded and counted: `deploykit export` writes it",
    ),
    Rule(
        "roi-align",
        "warning",
        ("RoiAlign",),
        refusals.region_align,
        "use DKMultiscaleRoiAlign: `deploykit export` writes it",
    ),
    Rule(
        "roi-pool",
        "warning",
        ("MaxRoiPool",),
        refusals.region_pool,
        "use DKRoiPool: `deploykit export` writes it",
    ),
)
