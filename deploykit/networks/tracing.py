"""A network to its ONNX graph."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import TYPE_CHECKING

import torch

from deploykit import ops
from deploykit.errors import ProofError
from deploykit.networks import outputs
from deploykit.networks.loading import BATCH

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.networks.loading import Network

_TRACE_BATCH = 2  # torch.export takes a dimension of 1 for a constant


def to_onnx(network: Network, opset: int) -> ir.Model:
    """Return the ONNX graph of a network, with a dynamic batch and no trace of this machine."""
    sizes = [[size for size in spec.shape[1:] if isinstance(size, int)] for spec in network.inputs]
    batch = torch.export.Dim(BATCH)
    module = outputs.in_order(copy.deepcopy(network.module), network.recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            tuple(torch.zeros(_TRACE_BATCH, *size) for size in sizes),
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in network.inputs],
            output_names=[output.name for output in network.recipe.outputs],
            dynamic_shapes=tuple({0: batch} for _ in sizes),
            custom_translation_table=ops.translations(),
            verbose=False,
        )
    assert program is not None  # only the TorchScript exporter returns None
    model = program.model
    found = model.opset_imports[""]
    if found != opset:
        raise ProofError(f"the exporter wrote opset {found}", expected=f"opset {opset}")
    return model
