"""A checkpoint to a PyTorch module: layouts, layers, re-parameterisation, tracing."""
