"""Measurements: frames per second, the machine they were taken on, and their records."""
