"""A network to its ONNX graph."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from deploykit import ops
from deploykit.errors import ModelError, ProofError
from deploykit.graph.editing import constant, is_op
from deploykit.graph.passes import batch_norm, constants
from deploykit.networks import outputs
from deploykit.networks.loading import BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from torch import nn

    from deploykit.networks.loading import Network

_TRACE_BATCH = 2  # torch.export takes a dimension of 1 for a constant


def to_onnx(network: Network, opset: int) -> ir.Model:
    """Return the ONNX graph of a network, with a dynamic batch and no trace of this machine."""
    sizes = [[size for size in spec.shape[1:] if isinstance(size, int)] for spec in network.inputs]
    batch = torch.export.Dim(BATCH)
    module = outputs.in_order(copy.deepcopy(network.module), network.recipe)
    model = _traced(
        module,
        tuple(torch.zeros(_TRACE_BATCH, *size) for size in sizes),
        network.recipe.name,
        opset_version=opset,
        input_names=[spec.name for spec in network.inputs],
        output_names=[output.name for output in network.recipe.outputs],
        dynamic_shapes=tuple({0: batch} for _ in sizes),
        custom_translation_table=ops.translations(),
    )
    found = model.opset_imports[""]
    if found != opset:
        raise ProofError(f"the exporter wrote opset {found}", expected=f"opset {opset}")
    return model


def _traced(
    module: nn.Module,
    images: tuple[torch.Tensor, ...],
    recipe: str,
    **options: Any,  # noqa: ANN401 - torch's
) -> ir.Model:
    """Return the graph that torch's exporter makes. Raises: ModelError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            return _optimised(
                torch.onnx.export(
                    module, images, dynamo=True, verbose=False, optimize=False, **options
                )
            )
        except Exception as error:  # whatever a network does that torch cannot follow
            causes = list(_causes(error))
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                raise KeyboardInterrupt from error  # the exporter took it for a failure
            first = causes[-1]
            said = (str(first).strip().splitlines() or [""])[0]
            raise ModelError(
                f"torch.export cannot trace the network of recipe {recipe}: "
                f"{type(first).__name__}: {said}",
                expected="a forward without branches or sizes that depend on the images' content",
                fix="rewrite that part of the network in operations on tensors",
            ) from error


def _optimised(program: Any) -> ir.Model:  # noqa: ANN401 - torch's
    """Return the exporter's graph as it optimises it, but for batch norms.

    It would fold them in float32; our own rewrite rounds each weight once.
    """
    constants.PASS.apply(program.model)
    _drop_zeros(program.model)
    batch_norm.PASS.apply(program.model)
    program.optimize()
    model: ir.Model = program.model
    return model


def _drop_zeros(model: ir.Model) -> None:
    """Take away the zeros that the exporter writes as bias of a convolution that has none."""
    for node in model.graph:
        bias = constant(node.inputs[2]) if is_op(node, "Conv") and len(node.inputs) > 2 else None
        if bias is not None and not bias.any():
            node.replace_input_with(2, None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the first of them last."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
