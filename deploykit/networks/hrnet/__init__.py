"""HRNet: its backbone, and the heads on it."""
