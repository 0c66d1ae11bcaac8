"""ONNX graphs computed in float64: the truth that a proof judges by.

No runtime has float64 kernels for all of ONNX: ONNX Runtime lacks the convolutions and the average
pools, and onnx's own evaluator needs minutes for what they do. So a graph runs node by node: by a
kernel of ours where neither is fit, by ONNX Runtime where it computes the op in float64, else by
onnx's evaluator.
"""

from deploykit.proof.float64.running import Float64Session
from deploykit.proof.float64.widening import HALVES, in_single, widened

__all__ = ["HALVES", "Float64Session", "in_single", "widened"]
