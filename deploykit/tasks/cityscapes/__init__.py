"""Cityscapes: its labels, its truth in files, its two benchmarks and the form of predictions."""
