"""What a model is for: truth, results, metric."""
