"""deploykit: trained PyTorch checkpoint to a proven INT8 TensorRT engine."""
