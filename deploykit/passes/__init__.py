"""ONNX rewrites, one per file."""
