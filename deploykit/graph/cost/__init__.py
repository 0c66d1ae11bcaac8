"""What a model computes: multiply-accumulates per ONNX node, and their sum as papers print it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from deploykit.errors import ModelError, unknown_name
from deploykit.graph.cost.counting import Work, works
from deploykit.graph.cost.shapes import with_shapes
from deploykit.graph.expanding import expanded

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Convention", "Work", "macs", "shaped", "total", "works"]

Convention = Literal["mac", "flop2", "thop2", "gimac"]
_GIBI = 2**30


def macs(model: ir.Model) -> dict[str, int]:
    """Return node name -> multiply-accumulates for one image, in the graph's order.

    Counted is what `works` counts. A node without a name goes by its first output. The model is
    left as it is.

    Raises: ModelError where a node's cost cannot be known.
    """
    return {work.name: _known(work) for work in works(model)}


def shaped(model: ir.Model) -> ir.Model:
    """Return a copy with every shape for a batch of one image; local functions are written out."""
    return with_shapes(expanded(model))


def total(model: ir.Model, convention: Convention = "mac") -> float:
    """Return the cost of one image under a convention.

    mac: multiply-accumulates, as torch and fvcore count convolutions; flop2: twice that, as most
    detector papers print; thop2: twice, with a transposed convolution's window applied to every
    *output* element, as the `thop` package does and hence YOLOv6's tables; gimac: mac / 2**30, as
    HRNet's tables.

    Raises: ModelError, OptionError.
    """
    if convention not in get_args(Convention):
        raise unknown_name("convention", convention, get_args(Convention))
    found = works(model)
    mac = sum(map(_known, found))
    if convention == "thop2":
        return 2 * sum(work.thop for work in found)
    return {"mac": mac, "flop2": 2 * mac, "gimac": mac / _GIBI}[convention]


def _known(work: Work) -> int:
    if work.macs is None:
        raise ModelError(
            f"cannot count the cost of {work.node.op_type} {work.name!r}: {work.note}",
            expected="shapes that follow from the model's inputs, with only the batch dynamic",
            fix="export the model with a fixed height and width",
        )
    return work.macs
