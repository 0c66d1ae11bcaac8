"""An ONNX graph as a module that learns: its own weights, by their own names."""

from deploykit.training.graphs.interpreting import GraphModule, module
from deploykit.training.graphs.learning import learned, relearned

__all__ = ["GraphModule", "learned", "module", "relearned"]
