"""ONNX graphs in memory: rewrites, and what a graph costs."""
