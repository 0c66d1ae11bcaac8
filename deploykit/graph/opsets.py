"""A graph in a newer version of ONNX's operators, by ONNX's own converter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_IR_VERSIONS: Mapping[int, int] = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""Opset -> IR version that came with it. Source: ONNX, docs/Versioning.md."""
STANDARD = ("", "ai.onnx")


def version(model: ir.Model) -> int:
    """Return the version of the standard operators."""
    return max((model.opset_imports.get(domain, 0) for domain in STANDARD), default=0)


_MODES = 11
"""Opset from which on a Resize says where its samples are; its default is not what was before."""


def raised(model: ir.Model, wanted: int) -> ir.Model:
    """Return a copy of `model` with opset `wanted`; its names and metadata stay.

    Raises: ModelError where the converter cannot.
    """
    proto = ir.to_proto(model)
    try:
        made = onnx.version_converter.convert_version(proto, wanted)
        converted: ir.Model = ir.from_proto(made)
    except Exception as error:  # the converter's errors have no common class
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"the model has opset {version(model)}, and ONNX cannot convert it to {wanted}: "
            f"{reason[:200]}",
            expected=f"an opset of at least {wanted}",
            fix=f"export it again with opset {wanted}",
        ) from error
    if version(model) < _MODES <= wanted:
        _keep_places(converted)
    converted.metadata_props.update(model.metadata_props)
    converted.ir_version = max(model.ir_version, _IR_VERSIONS.get(wanted, model.ir_version))
    return converted


def _keep_places(model: ir.Model) -> None:
    """Write into each Resize what Upsample, and Resize before it had modes, meant.

    ONNX's converter leaves the default, which has the samples half a pixel apart from there.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Resize" and node.domain in STANDARD:
            for name, mode in (
                ("coordinate_transformation_mode", "asymmetric"),
                ("nearest_mode", "floor"),
            ):
                node.attributes[name] = ir.AttrString(name, mode)
