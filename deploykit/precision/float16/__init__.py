"""FP16 in the graph: nodes compute in half precision, except those that would lose by it.

A strongly typed TensorRT network takes each layer's precision from the types in the ONNX file, so
the Casts are written here. Inputs and outputs of the model stay FP32.
"""

from deploykit.precision.float16.ranges import unfit
from deploykit.precision.float16.rewriting import cast, to_float16
from deploykit.precision.float16.rules import lossy, wide_nodes

__all__ = ["cast", "lossy", "to_float16", "unfit", "wide_nodes"]
