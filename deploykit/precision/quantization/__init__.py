"""Float model, ranges and plan -> a model with Q/DQ that the lint accepts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.errors import ModelError, OptionError, ProofError
from deploykit.precision import float16, lint, placement, tables
from deploykit.precision.lint.rules import INTEGER_OPS
from deploykit.precision.quantization import rounding, shifting
from deploykit.precision.quantization.writing import insert
from deploykit.values import Precision, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from deploykit.precision.placement import Placement
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable, Json, PrecisionPlan

MIN_OPSET: Mapping[Precision, int] = {Precision.FP32: 13, Precision.FP16: 19}
"""Float type -> first opset with it as a scale: 13 has scales per channel, 19 has FP16 ones."""
METADATA_KEY = "deploykit.quantization"


def quantize(  # noqa: PLR0913 - a model, what it shall be, and what is known of it
    model: Opened,
    table: CalibrationTable,
    plan: PrecisionPlan,
    *,
    float_type: Precision,
    reached: Mapping[str, float] | None = None,
    trial: bool = False,
) -> tuple[ir.Model, Json]:
    """Return the quantised graph, and what it says about its own making.

    Q/DQ by the rules of placement, FP16 elsewhere: with `float_type` FP16 the other nodes compute
    in FP16, save those that `float16`, the plan or the range of their tensors keeps in FP32.
    reached: the largest magnitude of each tensor, see `float16.reach`. Node and tensor names stay.
    trial: it is looked at and let go, so the lint is spared.

    Raises: StaleTableError where `table` was made for another model; InputError where it lacks a
    range; ModelError, OptionError for a model or plan that cannot be quantised; ProofError where
    the result is not accepted by the lint.
    """
    tables.check_fresh(table, model)
    graph = model.copy()
    placed = placement.place(graph, plan)
    check(graph, placed, float_type)
    _correct(graph, placed, table)
    half = float_type is Precision.FP16
    unfit = float16.unfit(graph.graph, _reached(table, reached or {})) if half else {}
    insert(graph, placed, table, float_type)
    wide = unfit
    if half:
        wide = {**float16.lossy(graph.graph), **unfit}
        float16.to_float16(graph, plan, unfit)
    summary = {**_summary(table, plan, placed, float_type), "beyond_fp16": wide}
    graph.metadata_props[METADATA_KEY] = json.dumps(summary, sort_keys=True)
    if not trial:
        _check_lint(graph)
    ops.attach(graph)
    return graph, summary


def corrected(model: Opened, table: CalibrationTable, plan: PrecisionPlan) -> Opened:
    """Return the float model whose nodes and numbers the quantised one has.

    It is the model itself where `table` corrects nothing. Raises: InputError for corrections of
    another model.
    """
    if not (table.shifts or table.ways):
        return model
    graph = model.copy()
    _correct(graph, placement.place(graph, plan), table)
    return model.altered(graph, ())


def _correct(model: ir.Model, placed: Placement, table: CalibrationTable) -> None:
    layers = {weight.node for weight in placed.weights}
    shifting.shift(model.graph, table.shifts, layers)
    rounding.remember(model.graph, table.ways)


def check(model: ir.Model, placed: Placement, float_type: Precision) -> None:
    """Fail now rather than after the calibration. Raises: OptionError, ModelError."""
    if float_type not in MIN_OPSET:
        raise OptionError(f"float type {float_type}", expected="fp16 or fp32")
    opset = model.opset_imports.get("", 0)
    if opset < MIN_OPSET[float_type]:
        raise OptionError(
            f"the model has opset {opset}",
            expected=f"at least {MIN_OPSET[float_type]} for Q/DQ with {float_type} scales",
            fix="export with --opset 19, or quantize with --float-type fp32"
            if float_type is Precision.FP16
            else "export with --opset 17 or higher",
        )
    if not placed.weights:
        whole = sorted({n.op_type for n in model.graph if n.op_type in INTEGER_OPS})
        if whole:
            raise ModelError(
                f"the model is quantised already, in ops on integers: {', '.join(whole)}",
                fix="quantise the float model that it was made from; --strip-qdq makes these ops "
                "float where their scales are constants",
            )
        if any(node.op_type == "QuantizeLinear" for node in model.graph):
            raise ModelError(
                "the model is quantised already",
                fix="quantise the float model; --strip-qdq takes its Q/DQ off first",
            )
        kept = "; ".join(f"{name}: {why}" for name, why in list(placed.kept.items())[:3])
        raise ModelError(
            "no layer of the model can be quantised" + (f" ({kept})" if kept else ""),
            expected="at least one Conv, Gemm or MatMul with constant weights",
        )


def _reached(table: CalibrationTable, seen: Mapping[str, float]) -> dict[str, float]:
    """Return the largest magnitude of each tensor: on all calibration images, or as `seen`."""
    found = dict(seen)
    for name, each in table.ranges.items():
        reach = max(abs(each.minimum), abs(each.maximum))
        if reach > 0:
            found[name] = max(found.get(name, 0.0), reach)
    return found


def _check_lint(model: ir.Model) -> None:
    errors = [finding for finding in lint.lint(model) if finding.severity == "error"]
    if errors:
        first = errors[0]
        raise ProofError(
            f"the lint rejects the quantised graph ({len(errors)} errors): "
            f"{first.node}: {first.message}",
            expected="Q/DQ that TensorRT runs in INT8",
            fix=first.fix,
        )


def _summary(
    table: CalibrationTable, plan: PrecisionPlan, placed: Placement, float_type: Precision
) -> Json:
    """Return what the file says about its own making."""
    return {
        "float_type": float_type.value,
        "observer": table.observer,
        "samples_sha256": table.samples_sha256,
        "table_sha256": digest([json.dumps(table.to_json(), sort_keys=True)]),
        "default": plan.default.value,
        "plan": {name: precision.value for name, precision in sorted(plan.layers.items())},
        "kept_float": dict(sorted(placed.kept.items())),
    }
